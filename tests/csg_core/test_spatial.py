"""Kernels by frequency and back: nothing lost, the same on every machine."""

from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csg_core.codecs.spatial import bands_of, basis, from_frequencies, to_frequencies
from csg_core.entries import KernelGrid, Part

PI = Decimal("3.14159265358979323846264338327950288419716939937510")
_SIDES = st.integers(1, 7)
_GRIDS = st.builds(KernelGrid, st.tuples(_SIDES, _SIDES), st.integers(1, 4))


@given(grids=st.lists(_GRIDS, max_size=4), seed=st.integers(0, 99))
def test_values_and_energy_come_back(grids, seed):
    parts = [Part("other", 3 * g.sides[0] * g.sides[1] * g.inner, g) for g in grids]
    values = np.random.default_rng(seed).normal(size=sum(p.size for p in parts)).astype(np.float32)
    before = values.copy()
    turned = to_frequencies(values, parts)
    np.testing.assert_array_equal(values, before)
    np.testing.assert_allclose(from_frequencies(turned, parts), values, atol=1e-5)
    assert np.square(turned).sum() == pytest.approx(np.square(values).sum(), rel=1e-4)


def test_a_kernel_turns_as_the_definition_says():
    part = Part("generator", 2 * 3 * 5 * 4, KernelGrid((3, 5), 4))
    values = np.random.default_rng(0).normal(size=part.size).astype(np.float32)
    u, x, v, y = np.ix_(range(3), range(3), range(5), range(5))
    down = np.cos(np.pi * (2 * x + 1) * u / 6) * np.where(u > 0, np.sqrt(2 / 3), np.sqrt(1 / 3))
    across = np.cos(np.pi * (2 * y + 1) * v / 10) * np.where(v > 0, np.sqrt(2 / 5), np.sqrt(1 / 5))
    wanted = np.einsum("uxvy,nxyi->nuvi", down * across, values.reshape(2, 3, 5, 4))
    np.testing.assert_allclose(to_frequencies(values, [part]), wanted.ravel(), atol=1e-5)


def test_even_kernels_are_all_mean_and_others_stay():
    parts = [Part("other", 18, KernelGrid((3, 3))), Part("norms", 4)]
    values = np.array([1.0] * 9 + [-2.0] * 9 + [1, 2, 3, 4], np.float32)
    turned = to_frequencies(values, parts)
    wanted = [3.0, *[0.0] * 8, -6.0, *[0.0] * 8, 1, 2, 3, 4]
    np.testing.assert_allclose(turned, wanted, atol=1e-5)


@pytest.mark.parametrize("size", range(1, 17))
def test_no_machines_cosine_can_round_to_another_basis(size):
    """Cosines differ by less than 1e-15 from one library to another; these are to 40 digits."""
    with localcontext(prec=40):
        for row, frequency in zip(basis(size), range(size), strict=True):
            scale = (Decimal(1 if frequency == 0 else 2) / size).sqrt() * 2**22
            for found, place in zip(row, range(size), strict=True):
                exact = scale * _cosine(PI * frequency * (2 * place + 1) / (2 * size))
                whole = exact.to_integral_value()
                assert float(found) * 2**22 == whole
                assert abs(abs(exact - whole) - Decimal("0.5")) > Decimal("1e-6")


def _cosine(angle):
    """By its series, in decimal numbers."""
    angle %= 2 * PI
    term = total = Decimal(1)
    for n in range(1, 60):
        term *= -angle * angle / ((2 * n - 1) * (2 * n))
        total += term
    return total


def test_bands_are_nine_however_large_the_kernel():
    assert bands_of(Part("other", 9, KernelGrid((3, 3)))).tolist() == [*range(9)]
    assert bands_of(Part("other", 4, KernelGrid((1, 2), 2))).tolist() == [0, 0, 1, 1]
    assert set(bands_of(Part("other", 49, KernelGrid((7, 7)))).tolist()) == {*range(9)}
