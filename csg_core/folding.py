"""From generated filters back to a plain CNN."""

import copy

import torch
from torch import nn

from csg_core.convolution import GeneratedConv2d
from csg_core.modules import generated, swap_modules, unwrap


def fold(model: nn.Module) -> nn.Module:
    """A plain CNN with the kernels this model generates now; the model itself is left as it is.

    Returns:
        A copy in which every generated convolution is an ordinary ``nn.Conv2d`` with a ``weight``,
        and no generator is left.
    """
    folded = copy.deepcopy(unwrap(model))
    layers = generated(folded).values()
    with torch.no_grad():
        swap_modules(folded, {id(layer): _plain(layer) for layer in layers})
    return folded


def _plain(layer: GeneratedConv2d) -> nn.Conv2d:
    kernel = layer.weight
    conv = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        bias=layer.bias is not None,
        padding_mode=layer.padding_mode,
        device="meta",
    )
    conv.weight = nn.Parameter(kernel.detach().clone(), requires_grad=layer.codes.requires_grad)
    conv.bias = layer.bias
    return conv.train(layer.training)
