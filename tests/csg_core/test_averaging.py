"""Federated averaging weighs by examples, and refuses what cannot be averaged."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from csg_core.averaging import WeightedMean

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@given(st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.integers(1, 10**6)), min_size=1))
def test_the_mean_is_that_of_all_examples(parts):
    mean = WeightedMean(1)
    for value, weight in parts:
        mean.add(np.array([value], np.float32), weight)
    wanted = np.average([value for value, _ in parts], weights=[weight for _, weight in parts])
    assert mean.mean()[0] == pytest.approx(wanted, rel=1e-6, abs=1e-3)


@pytest.mark.parametrize("weights", [[49] * 2, [50] * 3, [5000] * 10, [1, 7, 300]])
@pytest.mark.parametrize("device", DEVICES)
def test_arrays_and_tensors_come_to_the_same_bits_everywhere(device, weights):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=10_000).astype(np.float32) for _ in weights]
    for array in arrays[::2]:
        array.setflags(write=False)  # as what is decoded from bytes
    wanted = np.zeros(10_000, np.float64)
    by_array, by_tensor, tensor_first, array_first = (WeightedMean(10_000) for _ in range(4))
    for number, (array, weight) in enumerate(zip(arrays, weights, strict=True)):
        wanted += array.astype(np.float64) * weight
        tensor = torch.tensor(array, device=device)
        by_array.add(array, weight)
        by_tensor.add(tensor, weight)
        tensor_first.add(array if number else tensor, weight)
        array_first.add(tensor if number else array, weight)
    wanted = (wanted / sum(weights)).astype(np.float32)
    for mean in (by_array, by_tensor, tensor_first, array_first):
        assert np.array_equal(mean.mean(), wanted)


def test_a_mean_of_nothing_that_travels_is_empty():
    mean = WeightedMean(0)
    mean.add(np.zeros(0, np.float32), 3)
    assert mean.mean().shape == (0,)


def test_a_mean_may_be_asked_for_on_the_way():
    mean = WeightedMean(1)
    for value, so_far in ((2.0, 2.0), (4.0, 3.0), (9.0, 5.0)):
        mean.add(np.array([value], np.float32), 7)
        assert mean.mean() == [so_far]


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_weights_that_cannot_be_are_refused(weight):
    with pytest.raises(ValueError, match="weight"):
        WeightedMean(1).add(np.zeros(1, np.float32), weight)


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="array of float64; need float32"):
        WeightedMean(3).add(np.zeros(3), 1.0)


def test_shapes_and_emptiness_are_refused():
    with pytest.raises(ValueError, match="shape"):
        WeightedMean(2).add(np.zeros(1, np.float32), 1)
    with pytest.raises(ValueError, match="no arrays"):
        WeightedMean(2).mean()
