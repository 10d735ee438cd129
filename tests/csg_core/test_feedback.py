"""What codecs leave out, added to what they encode next, stays bounded."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csg_core.codecs import Predicted, Uniform, codec_named, total
from csg_core.entries import KernelGrid, Part
from tests.csg_core.test_codecs import LINES

PARTS = (Part("generator", 2700, KernelGrid((3, 3), 30)), Part("codes", 900), Part("norms", 300),
         Part("statistics", 196))  # fmt: skip
SIZES = [part.size for part in PARTS]
MOST = 4  # updates that may be owed
BEARING = [line for line in LINES if codec_named(line).bears_feedback and line != "none"]
NEAREST = [
    f"uniform:bits={bits},block={block},rotate={rotate},nearest=true"
    for bits in (1, 2, 4)
    for block in (8, 256, 4096)
    for rotate in ("false", "true")
]


def _laplace(rng):
    return rng.laplace(size=total(PARTS)) * np.repeat([1, 0.1, 0.01, 3], SIZES)


def _normal(rng):
    return rng.normal(size=total(PARTS))


def _outliers(rng):
    values = rng.normal(size=total(PARTS)) * 0.01
    values[rng.choice(values.size, 8, replace=False)] = rng.choice([-1, 1], 8)
    return values


def _left(codec, draw, rounds):
    """Norms of what is left out of what is sent, round by round; the updates' is one."""
    rng, left, norms = np.random.default_rng(0), np.zeros(total(PARTS), np.float32), []
    sent = np.repeat([not codec.drops(part.group) for part in PARTS], SIZES)
    for _ in range(rounds):
        update = draw(rng).astype(np.float32)
        wanted = update + left
        left = wanted - codec.decode(codec.encode(wanted, PARTS, rng), PARTS)
        norms.append(np.linalg.norm(left[sent]))
    return norms / np.linalg.norm(update)


@pytest.mark.parametrize("draw", [_laplace, _normal, _outliers])
@pytest.mark.parametrize("line", [*BEARING, *NEAREST])
def test_what_is_left_out_stays_bounded_and_does_not_grow(line, draw):
    norms = _left(codec_named(line), draw, 60)
    assert norms.max() < MOST
    assert norms[30:].mean() <= 1.3 * norms[:30].max()


@pytest.mark.parametrize("size", [1, 2, 12, 100])
@pytest.mark.parametrize("line", ["ecsq", "ecsq:step=4", "ecsq:step=8,codes=8"])
def test_small_tensors_are_not_owed_for_ever(line, size):
    """All values of about one size are less than half a wide step."""
    codec, parts = codec_named(line), (Part("codes", size),)
    rng, left = np.random.default_rng(0), np.zeros(size, np.float32)
    for _ in range(60):
        wanted = (1 + 0.1 * rng.normal(size=size)).astype(np.float32) + left
        left = wanted - codec.decode(codec.encode(wanted, parts, rng), parts)
    assert np.abs(left).max() < 4 * codec.step + 2 * size


@pytest.mark.parametrize("draw", [_laplace, _normal, _outliers])
@pytest.mark.parametrize("line", ["uniform:bits=1", "uniform:bits=2", "uniform:bits=2,rotate=true"])
def test_what_bears_no_feedback_owes_many_updates(line, draw):
    codec = codec_named(line)
    assert not codec.bears_feedback
    assert _left(codec, draw, 60).max() > MOST


def test_a_codec_of_others_bears_feedback_if_all_of_them_do():
    for line, bears in {"fp16; codes=uniform:bits=2": False, "uniform:bits=2; codes=fp16": False,
                        "uniform:bits=2,nearest=true; codes=ternary": True}.items():  # fmt: skip
        assert codec_named(line).bears_feedback == bears
        assert Predicted(codec_named(line)).bears_feedback == bears


# smaller ones have fewer digits, and so have their scales
_sizes = st.floats(2.0**-100, 2.0**110, width=32)
_finite = st.one_of(st.just(0.0), _sizes, _sizes.map(lambda size: -size))


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@given(values=st.lists(_finite, min_size=1, max_size=40))
def test_nearest_levels_leave_less_of_every_block_than_there_was(bits, rotate, values):
    codec = Uniform(bits=bits, block=8, rotate=rotate, nearest=True)
    array, parts = np.array(values, np.float32), (Part("codes", len(values)),)
    back = codec.decode(codec.encode(array, parts, np.random.default_rng(0)), parts)
    for start in range(0, array.size, codec.block):
        block = array[start : start + codec.block].astype(np.float64)
        error = np.square(block - back[start : start + codec.block]).sum()
        assert error < np.square(block).sum() or not (block.any() or error)


def test_nearest_levels_of_one_bit_have_the_mean_magnitude():
    """Of the values that there are, not of those that fill the last block."""
    values, parts = np.array([3, -1, 0.5, -2, 1, 1, 4, -4, 2, -6], np.float32), (Part("codes", 10),)
    codec = Uniform(bits=1, block=8, nearest=True)
    back = codec.decode(codec.encode(values, parts, np.random.default_rng(0)), parts)
    magnitude = np.abs(values[:8]).mean()
    assert back.tolist() == [*np.sign(values[:8]) * magnitude, 4, -4]
