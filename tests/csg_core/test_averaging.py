"""Federated averaging weighs by examples, and refuses what cannot be averaged."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csg_core.averaging import WeightedMean


@given(st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.integers(1, 10**6)), min_size=1))
def test_the_mean_is_that_of_all_examples(parts):
    mean = WeightedMean(1)
    for value, weight in parts:
        mean.add(np.array([value], np.float32), weight)
    wanted = np.average([value for value, _ in parts], weights=[weight for _, weight in parts])
    assert mean.mean()[0] == pytest.approx(wanted, rel=1e-6, abs=1e-3)


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_weights_that_cannot_be_are_refused(weight):
    with pytest.raises(ValueError, match="weight"):
        WeightedMean(1).add(np.zeros(1, np.float32), weight)


def test_shapes_and_emptiness_are_refused():
    with pytest.raises(ValueError, match="shape"):
        WeightedMean(2).add(np.zeros(1, np.float32), 1)
    with pytest.raises(ValueError, match="no arrays"):
        WeightedMean(2).mean()
