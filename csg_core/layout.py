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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

Layout = Literal["block", "flat"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


def check_layout(layout: str) -> None:
    """Raise ValueError unless ``layout`` is one of ``LAYOUTS``."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is unknown; use one of {', '.join(LAYOUTS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelForm:
    """A kernel's shape [out, in, k, k], how it is cut into slices, and its memory format."""

    out_channels: int
    in_channels: int
    kernel_size: int
    slice_size: int
    layout: Layout = "block"
    channels_last: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """Slices down and across the kernel: (ceil(out / s), ceil(in / s))."""
        return -(-self.out_channels // self.slice_size), -(-self.in_channels // self.slice_size)

    @property
    def slices(self) -> int:
        """Number of slices, and so of codes, that the kernel takes."""
        rows, columns = self.grid
        return rows * columns


def kernels_from_slices(slices_LSV: Tensor, form: KernelForm) -> Tensor:
    """Put the slices of L kernels of one form in their places.

    Args:
        slices_LSV: slices, shape [L, S, s*s*k*k].

    Returns:
        Kernels, shape [L, out, in, k, k], each contiguous in its memory format.
    """
    L, s, k = slices_LSV.shape[0], form.slice_size, form.kernel_size
    rows, columns = form.grid
    O, I = rows * s, columns * s  # noqa: E741
    if form.layout == "block":  # axes: kernel, rows, columns, s (out), s (in), k, k
        parts = slices_LSV.reshape(L, rows, columns, s, s, k, k)
    else:
        parts = slices_LSV.reshape(L, 1, 1, O, I, k, k)
    if form.channels_last:
        kernels_LOkkI = parts.permute(0, 1, 3, 5, 6, 2, 4).reshape(L, O, k, k, I)
        kernels_LOkkI = kernels_LOkkI[:, : form.out_channels, :, :, : form.in_channels]
        return kernels_LOkkI.contiguous().permute(0, 1, 4, 2, 3)
    kernels_LOIkk = parts.transpose(2, 3).reshape(L, O, I, k, k)
    return kernels_LOIkk[:, : form.out_channels, : form.in_channels].contiguous()


def slices_from_kernels(kernels_OIkk: Sequence[Tensor], form: KernelForm) -> Tensor:
    """Cut L kernels of one form into slices, the surplus filled with zeros.

    This is the adjoint of ``kernels_from_slices``, and inside the kernels its inverse.

    Args:
        kernels_OIkk: L kernels, each of shape [out, in, k, k].

    Returns:
        Slices, shape [L, S, s*s*k*k].
    """
    L, s, k = len(kernels_OIkk), form.slice_size, form.kernel_size
    rows, columns = form.grid
    padded = kernels_OIkk[0].new_zeros(L, rows * s, columns * s, k, k)
    for place, kernel_OIkk in enumerate(kernels_OIkk):
        padded[place, : form.out_channels, : form.in_channels] = kernel_OIkk
    if form.layout == "block":
        padded = padded.reshape(L, rows, s, columns, s, k, k).transpose(2, 3)
    return padded.reshape(L, form.slices, s * s * k * k)
