"""From generated filters back to a plain CNN."""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize

from csg_core.convolution import GeneratedConv2d
from csg_core.modules import generated, has_hooks, swap_modules, unwrap


def fold(model: nn.Module) -> nn.Module:
    """A plain CNN with the kernels this model generates now; the model itself is left as it is.

    Returns:
        A copy in which every generated convolution is an ordinary ``nn.Conv2d`` with a ``weight``,
        and so is every one with tensors that torch's ``parametrize`` makes; no generator is left.

    Raises:
        ValueError: if a generated convolution has hooks, which would be lost.
    """
    for name, layer in generated(unwrap(model)).items():
        if has_hooks(layer):
            raise ValueError(f"{name} has hooks, which would be lost; remove them first")
    folded = copy.deepcopy(unwrap(model))
    with torch.no_grad():
        plain = {id(layer): _plain(layer) for layer in generated(folded).values()}
    swap_modules(folded, plain)
    for module in list(folded.modules()):
        if isinstance(module, nn.Conv2d) and parametrize.is_parametrized(module):
            _unparametrize(module)
    return plain.get(id(folded), folded)


def _unparametrize(conv: nn.Conv2d) -> None:
    """Make parameters and buffers of what is made of others, as it is now.

    torch's own way would take them from the model that ``conv`` was copied from as well, since both
    are of one class, which torch made for the first.
    """
    sources = dict(conv.parametrizations.items())  # type: ignore[operator, union-attr]
    values = {name: getattr(conv, name).detach().clone() for name in sources}
    conv.__class__ = type(conv).__bases__[0]
    del conv._modules["parametrizations"]
    for name, tensor in values.items():
        if any(key.startswith("original") for key in sources[name]._buffers):
            conv.register_buffer(name, tensor)
            continue
        trains = any(p.requires_grad for p in sources[name].parameters())
        conv.register_parameter(name, nn.Parameter(tensor, requires_grad=trains))


def _plain(layer: GeneratedConv2d) -> nn.Conv2d:
    kernel = layer.weight
    trains = layer.codes.requires_grad or layer.bank.generator.weight.requires_grad
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
