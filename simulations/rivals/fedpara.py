"""FedPara: a kernel is the Hadamard product of two low-rank ones.

Hyeon-Woo et al., "FedPara: Low-rank Hadamard product for communication-efficient federated
learning", ICLR 2022, proposition 3.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from simulations.rivals.kernels import Kernel, convert

_GAMMA = 0.1


class FedParaKernel(Kernel):
    """W = (T1 x1 X1 x2 Y1) * (T2 x1 X2 x2 Y2), with T [R, R, k, k], X [O, R] and Y [I, R]."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank

    def kernel(self, *tensors: Tensor) -> Tensor:
        T1, X1, Y1, T2, X2, Y2 = tensors
        first = torch.einsum("rskl,or,is->oikl", T1, X1, Y1)
        second = torch.einsum("rskl,or,is->oikl", T2, X2, Y2)
        return first * second

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """First values, by which W has He's deviation; not the inverse, which there is none of."""
        out, into, *size = weight.shape
        R = self.rank
        # each factor is a sum of R^2 products of three, and W a product of two such sums
        std = (2 / weight[0].numel() / R**4) ** (1 / 12)
        shapes = [(R, R, *size), (out, R), (into, R)] * 2
        return tuple(std * torch.randn(shape) for shape in shapes)


def fedpara(model: nn.Module, options: Mapping[str, float], seed: int) -> None:
    """Factorise every convolution that this makes smaller.

    ``gamma`` from 0 to 1 (0.1, the authors' smallest) leads from the least rank by which W can be
    of full rank to the largest that saves parameters (section 2.2 and supplement).
    """
    unknown = set(options) - {"gamma"}
    gamma = options.get("gamma", _GAMMA)
    if unknown or not 0 <= gamma <= 1:
        raise ValueError(f"model.options {dict(options)}: fedpara takes gamma from 0 to 1, as 0.1")

    def kernel_of(conv: nn.Conv2d) -> FedParaKernel | None:
        rank = rank_of(conv, gamma)
        return FedParaKernel(rank) if size_of(conv, rank) < conv.weight.numel() else None

    convert(model, kernel_of, seed)


def rank_of(conv: nn.Conv2d, gamma: float) -> int:
    """R between the least that spans any kernel, R^2 >= min(O, I), and the largest that saves."""
    least = math.ceil(math.sqrt(min(conv.out_channels, conv.in_channels)))
    area, sides = math.prod(conv.kernel_size), conv.out_channels + conv.in_channels
    largest = math.floor(
        (math.sqrt(sides**2 + 2 * area * conv.weight.numel()) - sides) / (2 * area)
    )
    return math.ceil((1 - gamma) * least + gamma * largest)


def size_of(conv: nn.Conv2d, rank: int) -> int:
    """Parameters of the six factors."""
    area, sides = math.prod(conv.kernel_size), conv.out_channels + conv.in_channels
    return 2 * rank * (sides + rank * area)
