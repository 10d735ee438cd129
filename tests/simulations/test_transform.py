"""Bases made of what both ends have gather an update, at no more error."""

import numpy as np
import pytest

from csg_core.codecs.spatial import from_frequencies
from csg_core.entries import KernelGrid, Part
from simulations.studies.transform import bits_and_error, table, ways

_SLICES, _SIZE, _KERNELS = 40, 16, 30  # numbers of codes, of values of a code, kernels of a slice
_PARTS = (
    Part("generator", 9 * _KERNELS * _SIZE, KernelGrid((3, 3), _SIZE)),
    Part("codes", 4 * _SIZE),
    Part("codes", (_SLICES - 4) * _SIZE),
)


def _round():
    """A model and its update: smooth gradients of kernels, of which those of four slices are."""
    rng = np.random.default_rng(0)
    codes_SD = rng.standard_normal((_SLICES, _SIZE))
    generator_VD = rng.standard_normal((9 * _KERNELS, _SIZE))
    loud_S1 = np.where(np.arange(_SLICES) < 4, 1.0, 0.01)[:, None]
    side = np.sqrt([0.86, 0.1, 0.04])
    shares = np.tile(np.outer(side, side).ravel(), _KERNELS)
    kernels = (loud_S1 * rng.standard_normal((_SLICES, 9 * _KERNELS)) * shares).astype(np.float32)
    rows = [Part("other", kernels.size, KernelGrid((3, 3)))]
    gradient_SV = from_frequencies(kernels.ravel(), rows).reshape(kernels.shape)
    first = np.concatenate([generator_VD.ravel(), codes_SD.ravel()])
    update = np.concatenate([
        (gradient_SV.T @ codes_SD).ravel(), (gradient_SV @ generator_VD).ravel()
    ])  # fmt: skip
    return first.astype(np.float32), update.astype(np.float32)


def test_bases_keep_the_energy():
    plain, by_frequency, in_codes, codes, in_generator = (turned for _, turned, _ in ways(
        *_round(), _PARTS))  # fmt: skip
    energy = np.sum(plain**2)
    for turned in (by_frequency, in_codes):
        assert np.sum(turned**2) == pytest.approx(energy, rel=1e-4)
    assert np.sum(in_generator**2) == pytest.approx(np.sum(codes**2), rel=1e-4)


def test_each_basis_saves_bits_and_error():
    plain, by_frequency, in_codes, codes, in_generator = (
        bits_and_error(turned, classes, 1.5) for _, turned, classes in ways(*_round(), _PARTS)
    )
    for before, after in ((plain, by_frequency), (by_frequency, in_codes), (codes, in_generator)):
        assert after[0] < 0.97 * before[0]
        bits_for_error = 0.5 * np.log2(after[1] / before[1])  # a bit a value for a quarter of it
        assert after[0] + bits_for_error < 0.97 * before[0]
    assert in_codes[1] < by_frequency[1] < plain[1]


def test_fine_steps_leave_nothing_out():
    _, turned, classes = next(ways(*_round(), _PARTS))
    assert bits_and_error(turned, classes, 1e-3)[1] < 1e-6


def test_the_table_has_a_row_for_each_way():
    rows = table(*_round(), _PARTS).splitlines()
    assert len(rows) == 7
    assert all(row.count("|") == 8 for row in rows)
