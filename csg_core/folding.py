"""From generated filters back to a plain CNN."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from csg_core.modules import generated, swap_modules, unwrap


def fold(model: nn.Module) -> nn.Module:
    """A plain CNN with the kernels this model generates now; the model itself is left as it is.

    Returns:
        A copy in which every generated convolution, and every one whose kernel is made by torch's
        ``parametrize``, is an ordinary ``nn.Conv2d`` with a ``weight``; no generator is left.
    """
    folded = copy.deepcopy(unwrap(model))
    made = [m for m in folded.modules() if isinstance(m, nn.Conv2d) and _is_made(m)]
    layers = [*generated(folded).values(), *made]
    with torch.no_grad():
        swap_modules(folded, {id(layer): _plain(layer) for layer in layers})
    return folded


def _is_made(layer: nn.Conv2d) -> bool:
    return parametrize.is_parametrized(layer, "weight")


def _plain(layer: Any) -> nn.Conv2d:
    """Of a GeneratedConv2d or a parametrized Conv2d, which have the same attributes."""
    kernel = layer.weight
    trains = any(p.requires_grad for name, p in layer.named_parameters() if name != "bias")
    conv = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
        device="meta",
    )
    conv.weight = nn.Parameter(kernel.detach().clone(), requires_grad=trains)
    conv.bias = layer.bias
    return conv.train(layer.training)
