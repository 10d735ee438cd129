"""ECSQ: its error, its steps, and what it writes by spatial frequency."""

import numpy as np
import pytest

from csg_core.codecs import CodecError, Ecsq
from csg_core.codecs.spatial import from_frequencies
from csg_core.entries import KernelGrid, Part
from tests.csg_core.test_codecs import _laplace, _rng


@pytest.mark.parametrize(("step", "most"), [(0.1, 0.001), (1.0, 0.12), (1.5, 0.2), (3.0, 0.55)])
def test_ecsq_keeps_to_its_error_and_leaves_no_bias(step, most):
    parts = (Part("generator", 50_000), Part("codes", 20_000))
    values = _laplace(parts)
    codec = Ecsq(step=step, codes=step)
    back = codec.decode(codec.encode(values, parts, _rng()), parts)
    for rows in (slice(0, 50_000), slice(50_000, None)):
        power = np.square(values[rows], dtype=np.float64).sum()
        assert np.square(back[rows] - values[rows], dtype=np.float64).sum() < most * power
        sent = back[rows] != 0
        gain = np.abs(back[rows][sent]).sum() / np.abs(values[rows][sent]).sum()
        assert gain == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("step", [0.05, 0.5, 1.5])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 3e4])
def test_ecsq_holds_a_spike_in_zeros_however_many(step, scale):
    codec = Ecsq(step=step)
    for size in range(3_000, 40_000, 97):
        parts = (Part("codes", size),)
        values = np.zeros(size, np.float32)
        values[size // 2] = scale
        back = codec.decode(codec.encode(values, parts, _rng()), parts)
        assert back[size // 2] == pytest.approx(scale, rel=0.03)
        assert np.count_nonzero(back) == 1


@pytest.mark.parametrize("value", [1e12, 1e17, 3e38])
def test_ecsq_names_a_value_beyond_its_steps(value):
    parts = (Part("other", 9, KernelGrid((3, 3))),)
    values = np.full(9, value, np.float32)
    with pytest.raises(CodecError, match=r"holds no value as large as .*, but up to 4.59e\+11"):
        Ecsq().encode(values, parts, _rng())


def test_ecsq_holds_values_up_to_the_one_it_names():
    for value in (1e10, 4.5e11):
        values = np.full(9, value, np.float32)
        parts = (Part("other", 9),)
        back = Ecsq().decode(Ecsq().encode(values, parts, _rng()), parts)
        assert back == pytest.approx(values, rel=0.2)
    both = (Part("norms", 4), Part("other", 4))
    values = np.repeat(np.array([1e11, 5e11], np.float32), 4)
    with pytest.raises(CodecError, match=r"as large as 5e\+11"):
        Ecsq().encode(values, both, _rng())


def test_ecsq_tells_nan_from_what_is_too_large():
    parts = (Part("other", 9, KernelGrid((3, 3))),)
    values = np.full(9, 1.0, np.float32)
    values[5] = np.nan
    with pytest.raises(CodecError, match="a value is nan; ecsq holds no NaN or infinity"):
        Ecsq().encode(values, parts, _rng())


def test_ecsq_writes_what_much_depends_on_in_finer_steps():
    parts = (Part("codes", 3000), Part("norms", 3000), Part("head", 3000), Part("statistics", 3000))
    values = np.random.default_rng(0).laplace(size=12_000).astype(np.float32)
    back = Ecsq(step=2).decode(Ecsq(step=2).encode(values, parts, _rng()), parts)
    codes, norms, head, statistics = np.square(back - values).reshape(4, -1).mean(axis=1)
    assert max(norms, head, statistics) < 0.15 * codes
    finest = Ecsq(step=0.1, codes=0.1, fine=0.6)
    back = finest.decode(finest.encode(values, parts, _rng()), parts)
    assert np.square(back - values).mean() < 0.01


def test_ecsq_writes_codes_in_coarser_steps_and_none_in_finer_ones():
    parts = (Part("other", 9000), Part("codes", 9000))
    values = np.random.default_rng(0).laplace(size=18_000).astype(np.float32)
    errors = {}
    for codec in (Ecsq(step=0.5, codes=1.5), Ecsq(step=1.5, codes=0.5)):
        back = codec.decode(codec.encode(values, parts, _rng()), parts)
        errors[codec.step] = np.square(back - values).reshape(2, -1).mean(axis=1)
    assert errors[0.5][1] > 4 * errors[0.5][0]
    assert errors[1.5][1] == pytest.approx(errors[1.5][0], rel=0.05)


def test_ecsq_holds_far_outliers_and_zeros():
    parts = (Part("codes", 4), Part("codes", 1000))
    values = np.zeros(1004, np.float32)
    values[7], values[9] = 3e4, -1e-3
    back = Ecsq(step=0.5).decode(Ecsq(step=0.5).encode(values, parts, _rng()), parts)
    assert back[7] == pytest.approx(3e4, rel=0.02)
    assert not back[:7].any()


def _smooth(parts):
    """Kernels with energy by frequency as a client's update has it, and codes without."""
    rng = np.random.default_rng(1)
    values = []
    for part in parts:
        height, width = part.grid.sides
        side = np.sqrt([0.86, 0.1, 0.04]) if part.grid.spatial else np.ones(1)
        sizes = (-1, height, width, part.grid.inner)
        values.append(
            rng.laplace(size=part.size).reshape(sizes) * (side[:, None] * side)[..., None]
        )
    return from_frequencies(np.concatenate([v.ravel() for v in values]).astype(np.float32), parts)


@pytest.mark.parametrize("step", [0.5, 1, 1.5, 2.5])
def test_ecsq_writes_smooth_kernels_in_fewer_bytes_with_less_error(step):
    """As in ResNet-20: a generator, layers' codes, and kernels of a plain convolution."""
    parts = (Part("generator", 93_312, KernelGrid((3, 3), 72)), *[Part("codes", 650)] * 30,
             Part("other", 4608, KernelGrid((3, 3))))  # fmt: skip
    values = _smooth(parts)
    sent, error = {}, {}
    for dct in (True, False):
        codec = Ecsq(step=step, codes=step, dct=dct)
        body = codec.encode(values, parts, _rng())
        sent[dct] = len(body)
        error[dct] = np.square(codec.decode(body, parts) - values)[:93_312].sum()
    assert sent[True] < (0.75 if step < 1 else 0.65) * sent[False]
    assert error[True] < (0.9 if step < 1 else 0.65) * error[False]
