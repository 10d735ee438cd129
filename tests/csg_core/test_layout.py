"""Slices become kernels of exactly the asked shape, in both layouts, and can be cut out again."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from csg_core.layout import LAYOUTS, KernelForm, kernels_from_slices, slices_from_kernels

forms = st.builds(
    KernelForm,
    out_channels=st.integers(1, 40),
    in_channels=st.integers(1, 40),
    kernel_size=st.integers(1, 5),
    slice_size=st.integers(1, 17),
    layout=st.sampled_from(LAYOUTS),
    channels_last=st.booleans(),
)


def _shape(form: KernelForm) -> tuple[int, ...]:
    return form.out_channels, form.in_channels, form.kernel_size, form.kernel_size


@given(forms, st.integers(1, 3))
def test_any_convolution_shape_comes_out_exactly(form, count):
    values = form.slice_size**2 * form.kernel_size**2
    slices = torch.arange(count * form.slices * values, dtype=torch.float64)
    kernels = kernels_from_slices(slices.reshape(count, form.slices, values), form)
    assert kernels.shape == (count, *_shape(form))
    assert kernels.unique().numel() == kernels.numel(), "a slice value was used twice"
    memory = torch.channels_last if form.channels_last else torch.contiguous_format
    assert all(kernel.is_contiguous(memory_format=memory) for kernel in kernels)


@given(forms)
def test_cutting_undoes_placing(form):
    kernel = torch.randn(_shape(form))
    again = kernels_from_slices(slices_from_kernels([kernel, -kernel], form), form)
    assert torch.equal(again[0], kernel)
    assert torch.equal(again[1], -kernel)


@given(forms)
def test_cutting_is_the_adjoint_of_placing(form):
    slices = torch.randn(1, form.slices, form.slice_size**2 * form.kernel_size**2).double()
    kernel = torch.randn(_shape(form)).double()
    forward = (kernels_from_slices(slices, form)[0] * kernel).sum()
    backward = (slices * slices_from_kernels([kernel], form)).sum()
    torch.testing.assert_close(forward, backward)


def test_block_layout_puts_each_slice_into_its_own_block_of_filters():
    s = 2
    form = KernelForm(out_channels=4, in_channels=6, slice_size=s, kernel_size=3)
    slices = torch.randn(1, 6, s * s * 9)
    kernel = kernels_from_slices(slices, form)[0]
    for row in range(2):
        for column in range(3):
            block = kernel[row * s : (row + 1) * s, column * s : (column + 1) * s]
            assert torch.equal(block.reshape(-1), slices[0, row * 3 + column])


def test_flat_layout_reads_the_slices_memory_as_one_padded_kernel():
    form = KernelForm(out_channels=2, in_channels=3, slice_size=2, kernel_size=1, layout="flat")
    slices = torch.arange(2 * 2 * 2 * 1 * 1, dtype=torch.float32).reshape(1, 2, 4)
    kernel = kernels_from_slices(slices, form)[0, :, :, 0, 0]
    assert kernel.tolist() == [[0, 1, 2], [4, 5, 6]]
