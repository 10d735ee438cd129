"""Kernels by spatial frequency: an orthonormal cosine transform (DCT-II) over height and width.

What passes through a convolution is smooth and, after a ReLU, not negative: the gradients of a
kernel's places are alike, and most of an update's energy is in the mean of each kernel. Only
float32 products and sums in a fixed order are used, so that every machine comes to the same bits.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from csg_core.codecs.base import Values
from csg_core.entries import KernelGrid, Part, Parts

BANDS = 9  # of frequencies: 0, 1 and higher, of height times width; band 0 is a kernel's mean
_HIGH = 2  # from which frequency on all are one band
_GRID = 1 << 22  # the basis is rounded to multiples of 1 / _GRID


def to_frequencies(values: Values, parts: Parts) -> Values:
    """A copy of values, float32 [sum of the parts], in which frequencies take the places of each
    kernel's height and width.
    """
    return _each_kernel(values, parts, inverse=False)


def from_frequencies(values: Values, parts: Parts) -> Values:
    """What ``to_frequencies`` was given, float32 [sum of the parts], but for rounding."""
    return _each_kernel(values, parts, inverse=True)


def bands_of(part: Part) -> NDArray[np.uint8]:
    """The band of each value of a tensor in frequencies, uint8 [size]."""
    kernel = np.repeat(bands_in(part.grid), part.grid.inner)
    return np.tile(kernel, part.size // kernel.size)


def bands_in(grid: KernelGrid) -> NDArray[np.uint8]:
    """The band of each frequency of a kernel, uint8 [height * width]."""
    height, width = (np.minimum(np.arange(n), _HIGH) for n in grid.sides)
    band_HW = (_HIGH + 1) * height[:, None] + width
    return band_HW.astype(np.uint8).ravel()


@lru_cache
def basis(size: int) -> NDArray[np.float32]:
    """The cosine basis, one row a frequency, float32 [size, size]."""
    places = np.arange(size)
    angles = math.pi / (2 * size) * np.outer(places, 2 * places + 1)
    rows = np.cos(angles) * np.sqrt(np.where(places == 0, 1, 2) / size)[:, None]
    rounded: NDArray[np.float32] = (np.rint(rows * _GRID) / _GRID).astype(np.float32)
    rounded.setflags(write=False)
    return rounded


def _each_kernel(values: Values, parts: Parts, *, inverse: bool) -> Values:
    turned, start = values.copy(), 0
    for part in parts:
        end = start + part.size
        if part.grid.spatial and part.size:
            kernels = turned[start:end].reshape(-1, *part.grid.sides, part.grid.inner)
            # a place of all kernels after the other, so that what is added stands together
            planes = np.ascontiguousarray(np.moveaxis(kernels, 0, 2))
            for axis in (0, 1):
                matrix = basis(planes.shape[axis])
                planes = _along(planes, matrix.T if inverse else matrix, axis)
            kernels[:] = np.moveaxis(planes, 2, 0)
        start = end
    return turned


def _along(planes: Values, matrix: NDArray[np.float32], axis: int) -> Values:
    """Each line of the axis times a matrix, its terms summed one after the other."""
    lines = np.moveaxis(planes, axis, 0)
    turned = np.empty_like(planes)
    for out, row in zip(np.moveaxis(turned, axis, 0), matrix, strict=True):
        np.multiply(lines[0], row[0], out=out)
        for line, factor in zip(lines[1:], row[1:], strict=True):
            out += line * factor
    return turned
