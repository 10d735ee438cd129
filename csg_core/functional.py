"""A network as a function of its tensors, for torch.func to differentiate and to batch."""

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from csg_core.folding import fold
from csg_core.generation import pure_kernels
from csg_core.modules import generated, generators, unwrap


class PureNetwork:
    """A model in training as a function of its parameters and buffers, which are left as they are.

    All kernels of a generator come out of one product, and are the parameters of the folded
    network: under torch.func the model's own layers would each make theirs. A model with kernels of
    torch's ``parametrize`` is called as it is.
    """

    def __init__(self, model: nn.Module) -> None:
        model = unwrap(model)
        mixed = any(parametrize.is_parametrized(module) for module in model.modules())
        self._layers = {} if mixed else generated(model)
        self._generators = {} if mixed else generators(model)
        makers = {id(generator) for generator in self._generators.values()}
        assert all(id(layer.bank.generator) in makers for layer in self._layers.values())
        self._spent = {f"{name}.codes" for name in self._layers}  # on kernels
        self._spent |= {f"{n}.{t}" for n in self._generators for t in ("weight", "draw")}
        self._network = (fold(model) if self._layers else copy.deepcopy(model)).train()
        for norm in self._network.modules():
            if isinstance(norm, _BatchNorm):
                norm.forward = functools.partial(_widened, norm.forward)  # type: ignore[method-assign]

    def __call__(self, tensors: Mapping[str, Tensor], images_B3HW: Tensor) -> Tensor:
        """Logits [B, classes], as of the model with ``tensors`` in place of those of these names.

        Buffers among ``tensors``, as running statistics, are updated in place.
        """
        kept = {name: tensor for name, tensor in tensors.items() if name not in self._spent}
        logits: Tensor = functional_call(
            self._network, kept | self._kernels(tensors), (images_B3HW,)
        )
        return logits

    def _kernels(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The kernels of all generated layers, in float32 whatever autocast says."""
        kernels: dict[str, Tensor] = {}
        for maker, generator in self._generators.items():
            named = {n: m for n, m in self._layers.items() if m.bank.generator is generator}
            codes = [tensors[f"{name}.codes"] for name in named]
            forms = [replace(layer.form, channels_last=False) for layer in named.values()]
            weight = tensors[f"{maker}.weight"]
            with torch.autocast(weight.device.type, enabled=False):
                made = pure_kernels(weight, codes, forms)
            kernels |= {f"{name}.weight": k for name, k in zip(named, made, strict=True)}
        return kernels


def _widened(norm: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Norms take half precision beside float32, and compute in float32; under vmap they do not."""
    return norm(x.float()).to(x.dtype) if x.dtype.itemsize < 4 else norm(x)
