"""FLoCoRA: frozen dense kernels, drawn from the seed, plus trained low-rank adapters.

Grativol et al., "FLoCoRA: Federated learning compression with low-rank adaptation", EUSIPCO 2024,
with adapters of convolutions as in Huh et al., "Training neural networks from scratch with parallel
low-rank adapters", 2024: a convolution to r channels, then one of 1 x 1. Norms and the last layer
train whole.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from simulations.rivals.kernels import Kernel, convert

_RANK, _FACTOR = 32, 16.0


class AdaptedKernel(Kernel):
    """W = W0 + alpha / r * A B, with W0 frozen, A [O, r] zero at first and B [r, I, k, k]."""

    def __init__(self, conv: nn.Conv2d, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.outer = nn.Parameter(torch.zeros(conv.out_channels, rank))
        self.inner = nn.Parameter(torch.empty(rank, *conv.weight.shape[1:]))
        nn.init.kaiming_uniform_(self.inner, a=math.sqrt(5))

    def kernel(self, *tensors: Tensor) -> Tensor:
        (frozen,) = tensors
        return frozen + self.scale * torch.einsum("or,rikl->oikl", self.outer, self.inner)


def flocora(model: nn.Module, options: Mapping[str, float], seed: int) -> None:
    """Adapt every convolution that this makes smaller, and freeze its kernel; others train whole.

    ``rank`` is 32 and ``alpha`` 16 times the rank, unless given.
    """
    rank = options.get("rank", _RANK)
    alpha = options.get("alpha", _FACTOR * rank)
    if set(options) - {"rank", "alpha"} or rank < 1 or rank != int(rank) or not alpha > 0:
        raise ValueError(
            f"model.options {dict(options)}: flocora takes a whole rank from 1 on, as 32, and "
            "alpha above 0, as 512"
        )

    def kernel_of(conv: nn.Conv2d) -> AdaptedKernel | None:
        size = rank * (conv.out_channels + conv.weight[0].numel())
        return AdaptedKernel(conv, int(rank), alpha) if size < conv.weight.numel() else None

    convert(model, kernel_of, seed)
    for module in model.modules():
        if parametrize.is_parametrized(module, "weight"):
            module.parametrizations.weight.original.requires_grad_(False)  # type: ignore
