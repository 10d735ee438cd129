"""Where slices go: from generated slices to convolution kernels, and back.

A kernel of shape [out, in, k, k] is cut into slices of shape [s, s, k, k]; where out or in is no
multiple of s the surplus of the last slices is cut off (Omidvar et al. 2021, section 3). Two
placements exist, equally expressive but not interchangeable:

- ``block``: slice (o, i) is the contiguous block of filters [o*s:(o+1)*s, i*s:(i+1)*s], as in the
  paper's text and figure.
- ``flat``: the slices' memory, one after the other, read as [ceil(out/s)*s, ceil(in/s)*s, k, k], as
  in the authors' released models.

Shape letters: L kernels of one shape, S slices of one kernel, V values of a slice (s*s*k*k),
O output channels, I input channels, k kernel size.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

Layout = Literal["block", "flat"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


def check_layout(layout: str) -> None:
    """Raise ValueError unless ``layout`` is one of ``LAYOUTS``."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is unknown; use one of {', '.join(LAYOUTS)}")


def grid_shape(out_channels: int, in_channels: int, slice_size: int) -> tuple[int, int]:
    """Slices down and across one kernel: (ceil(out / s), ceil(in / s))."""
    return -(-out_channels // slice_size), -(-in_channels // slice_size)


def slice_count(out_channels: int, in_channels: int, slice_size: int) -> int:
    """Number of slices, and so of codes, that one kernel takes."""
    rows, columns = grid_shape(out_channels, in_channels, slice_size)
    return rows * columns


def kernels_from_slices(
    slices_LSV: Tensor,
    *,
    out_channels: int,
    in_channels: int,
    slice_size: int,
    kernel_size: int,
    layout: Layout,
) -> Tensor:
    """Put the slices of L equally shaped kernels in their places.

    Args:
        slices_LSV: slices of L kernels, shape [L, S, s*s*k*k].

    Returns:
        Kernels, shape [L, out, in, k, k], contiguous.
    """
    L = slices_LSV.shape[0]
    rows, columns = grid_shape(out_channels, in_channels, slice_size)
    s, k = slice_size, kernel_size
    if layout == "block":
        blocks = slices_LSV.reshape(L, rows, columns, s, s, k, k).transpose(2, 3)
    else:
        blocks = slices_LSV
    kernels_LOIkk = blocks.reshape(L, rows * s, columns * s, k, k)
    return kernels_LOIkk[:, :out_channels, :in_channels].contiguous()


def slices_from_kernel(kernel_OIkk: Tensor, *, slice_size: int, layout: Layout) -> Tensor:
    """Cut one kernel into slices, the surplus filled with zeros.

    Args:
        kernel_OIkk: kernel, shape [out, in, k, k].

    Returns:
        Slices, shape [S, s*s*k*k]; the inverse of ``kernels_from_slices`` inside the kernel.
    """
    out_channels, in_channels, k, _ = kernel_OIkk.shape
    rows, columns = grid_shape(out_channels, in_channels, slice_size)
    s = slice_size
    padded = torch.zeros(
        rows * s, columns * s, k, k, dtype=kernel_OIkk.dtype, device=kernel_OIkk.device
    )
    padded[:out_channels, :in_channels] = kernel_OIkk
    if layout == "block":
        padded = padded.reshape(rows, s, columns, s, k, k).transpose(1, 2)
    return padded.reshape(rows * columns, s * s * k * k)
