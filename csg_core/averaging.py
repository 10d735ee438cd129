"""Federated averaging of flat arrays (McMahan et al., 2017, algorithm 1)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class WeightedMean:
    """The weighted mean of arrays given one after another, in the memory of two.

    Sums are float64, so the mean depends on the order only in its last bits; add in a fixed order
    (by partition) where runs shall be bit-identical. They are where the first array is, and the
    same to the last bit on the CPU and on CUDA: each operation rounds as IEEE 754 has it.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._sums: tuple[Tensor, Tensor] | None = None  # float64 [size], and room for as much
        self.weight = 0.0

    def add(self, values: NDArray[np.float32] | Tensor, weight: float) -> None:
        """Take in an array, float32 [size], with a positive weight.

        Raises:
            ValueError: if the shape, the type or the weight cannot be.
        """
        if values.dtype not in (np.float32, torch.float32):
            raise ValueError(f"array of {values.dtype}; need float32")
        if values.shape != (self._size,):
            raise ValueError(f"array of shape {tuple(values.shape)}; need ({self._size},)")
        if not 0 < weight < float("inf"):
            raise ValueError(f"weight {weight} is not a positive number")
        if self._sums is None:
            device = values.device if isinstance(values, Tensor) else None
            zeros = torch.zeros(self._size, dtype=torch.float64, device=device)
            self._sums = zeros, torch.empty_like(zeros)
        total, weighted = self._sums
        if isinstance(values, Tensor):
            weighted.copy_(values).mul_(weight)  # not in one with the sum: rounded twice
        elif total.device.type == "cpu":  # also of a payload's bytes, which torch cannot share
            np.multiply(values, weight, out=weighted.numpy(), dtype=np.float64)
        else:
            weighted.copy_(torch.tensor(values)).mul_(weight)
        total += weighted
        self.weight += weight

    def mean(self) -> NDArray[np.float32]:
        """The mean so far, float32 [size].

        Raises:
            ValueError: if nothing was added.
        """
        if self._sums is None:
            raise ValueError("the mean of no arrays does not exist")
        total, room = self._sums
        # a tensor: by a number, torch multiplies by its reciprocal on a GPU, which rounds otherwise
        torch.div(total, total.new_tensor(self.weight), out=room)
        mean: NDArray[np.float32] = room.float().cpu().numpy()
        return mean
