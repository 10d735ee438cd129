"""Levels come back, class by class, for little more than their entropy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csg_core.codecs import CodecError
from csg_core.codecs.entropy import entropy_bits
from csg_core.codecs.levels import code, decode, model_of

_LEVELS = st.lists(st.integers(-128, 127), max_size=60).map(lambda n: np.array(n, np.int32))
_SMALL = st.lists(st.sampled_from([0, 0, 0, 1, -1]), max_size=60).map(
    lambda n: np.array(n, np.int32)
)


@given(classes=st.lists(_LEVELS | _SMALL, max_size=6))
def test_levels_come_back(classes):
    told = [(levels, model_of(levels)) for levels in classes]
    found = decode(code(told), [(len(levels), model) for levels, model in told])
    assert all(np.array_equal(a, b) for a, b in zip(found, classes, strict=True))


@given(model=st.binary(min_size=3, max_size=3), levels=_LEVELS)
def test_any_model_holds_any_level(model, levels):
    if model[0]:
        (found,) = decode(code([(levels, model)]), [(len(levels), model)])
        assert np.array_equal(found, levels)


@pytest.mark.parametrize("scale", [0.05, 0.3, 1, 5, 30])
def test_levels_cost_little_more_than_their_entropy(scale):
    values = np.random.default_rng(0).laplace(scale=scale, size=100_000)
    levels = np.clip(np.rint(values), -127, 127).astype(np.int32)
    bound = entropy_bits(levels)
    assert 0.999 * bound < 8 * len(code([(levels, model_of(levels))])) < 1.02 * bound + 64


@given(
    told=st.lists(
        st.tuples(st.integers(-128, 127), st.integers(1, 5000) | st.integers(1, 3)),
        min_size=1,
        max_size=5,
    )
)
def test_no_levels_take_more_than_twelve_bits_each_and_two_words(told):
    """As ``Ecsq.most_bytes`` counts on, by 16 bits each."""
    values, counts = zip(*told, strict=True)
    levels = np.repeat(np.array(values, np.int32), counts)
    assert 8 * len(code([(levels, model_of(levels))])) <= 12 * levels.size + 64


def test_zeros_cost_nothing():
    zeros = np.zeros(10_000, np.int32)
    assert model_of(zeros) == bytes(3)
    assert code([(zeros, bytes(3))]) == b""
    assert not decode(b"", [(10_000, bytes(3))])[0].any()
    with pytest.raises(CodecError, match="damaged"):
        decode(bytes(4), [(10_000, bytes(3))])


def test_bytes_of_no_levels_are_refused():
    levels = np.random.default_rng(0).integers(-3, 4, 200).astype(np.int32)
    model = model_of(levels)
    body = code([(levels, model)])
    for wrong, message in ((body[:-1], "multiple of four"), (body[:-4], "damaged"),
                           (body + bytes(4), "damaged"), (b"", "damaged")):  # fmt: skip
        with pytest.raises(CodecError, match=message):
            decode(wrong, [(200, model)])
