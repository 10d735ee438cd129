"""Slices become kernels of exactly the asked shape, in both layouts, and can be cut out again."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from csg_core.layout import LAYOUTS, kernels_from_slices, slice_count, slices_from_kernel

sizes = st.integers(1, 40)
layouts = st.sampled_from(LAYOUTS)


@given(sizes, sizes, st.integers(1, 17), st.integers(1, 5), st.integers(1, 3), layouts)
def test_any_convolution_shape_comes_out_exactly(out, channels, s, k, L, layout):
    count = slice_count(out, channels, s)
    slices = torch.arange(L * count * s * s * k * k, dtype=torch.float64).reshape(L, count, -1)
    kernels = kernels_from_slices(
        slices,
        out_channels=out,
        in_channels=channels,
        slice_size=s,
        kernel_size=k,
        layout=layout,
    )
    assert kernels.shape == (L, out, channels, k, k)
    assert kernels.is_contiguous()
    assert kernels.unique().numel() == kernels.numel(), "a slice value was used twice"


@given(sizes, sizes, st.integers(1, 17), st.integers(1, 5), layouts)
def test_cutting_undoes_placing(out, channels, s, k, layout):
    kernel = torch.randn(out, channels, k, k)
    slices = slices_from_kernel(kernel, slice_size=s, layout=layout)
    again = kernels_from_slices(
        slices[None],
        out_channels=out,
        in_channels=channels,
        slice_size=s,
        kernel_size=k,
        layout=layout,
    )
    assert torch.equal(again[0], kernel)


def test_block_layout_puts_each_slice_into_its_own_block_of_filters():
    s, k = 2, 3
    slices = torch.randn(1, 6, s * s * k * k)
    kernel = kernels_from_slices(
        slices, out_channels=4, in_channels=6, slice_size=s, kernel_size=k, layout="block"
    )[0]
    for row in range(2):
        for column in range(3):
            block = kernel[row * s : (row + 1) * s, column * s : (column + 1) * s]
            assert torch.equal(block.reshape(-1), slices[0, row * 3 + column])


def test_flat_layout_reads_the_slices_memory_as_one_padded_kernel():
    slices = torch.arange(2 * 2 * 2 * 1 * 1, dtype=torch.float32).reshape(1, 2, 4)
    kernel = kernels_from_slices(
        slices, out_channels=2, in_channels=3, slice_size=2, kernel_size=1, layout="flat"
    )[0, :, :, 0, 0]
    assert kernel.tolist() == [[0, 1, 2], [4, 5, 6]]
