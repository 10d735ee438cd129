"""Federated averaging of flat arrays (McMahan et al., 2017, algorithm 1)."""

import numpy as np
from numpy.typing import NDArray


class WeightedMean:
    """The weighted mean of arrays given one after another, in the memory of two.

    Sums are float64, so the mean depends on the order only in its last bits; add in a fixed order
    (by partition) where runs shall be bit-identical.
    """

    def __init__(self, size: int) -> None:
        self._sum = np.zeros(size, np.float64)
        self._weighted = np.empty(size, np.float64)
        self.weight = 0.0

    def add(self, values: NDArray[np.float32], weight: float) -> None:
        """Take in an array, float32 [size], with a positive weight.

        Raises:
            ValueError: if the shape or the weight cannot be.
        """
        if values.shape != self._sum.shape:
            raise ValueError(f"array of shape {values.shape}; need {self._sum.shape}")
        if not 0 < weight < float("inf"):
            raise ValueError(f"weight {weight} is not a positive number")
        self._sum += np.multiply(values, weight, out=self._weighted, dtype=np.float64)
        self.weight += weight

    def mean(self) -> NDArray[np.float32]:
        """The mean so far, float32 [size].

        Raises:
            ValueError: if nothing was added.
        """
        if not self.weight:
            raise ValueError("the mean of no arrays does not exist")
        mean: NDArray[np.float32] = (self._sum / self.weight).astype(np.float32)
        return mean
