"""All kernels of a network from one matrix product, kept while nothing they come from changes."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from csg_core.generation import generate_kernels
from csg_core.generator import SliceGenerator
from csg_core.layout import KernelForm, Layout, kernels_from_slices

Stamp: TypeAlias = tuple[int, int, int, bool]


class CodedLayer(Protocol):
    """A layer whose kernel a bank makes: its codes, its kernel's form, its place in the bank."""

    codes: nn.Parameter
    form: KernelForm
    place: int


@dataclass(slots=True)
class _Made:
    """One generation of kernels, with the state of every tensor it was made from."""

    kernels: tuple[Tensor, ...]
    code_stamps: list[Stamp]
    weight_stamp: Stamp
    differentiable: bool
    sources: list[Tensor]  # keeps the storages alive, so that no address in a stamp is reused


class KernelBank:
    """Makes the kernels of all its layers at once and hands them out one by one.

    A kernel is reused, across forward passes and across the backward passes of gradient
    accumulation, until an optimiser step or any other change of W or of the layer's codes that
    autograd can see. A write through ``.data`` cannot be seen: call ``forget`` after one
    (``Module.train()`` and ``Module.eval()`` do).

    Only real parameters in eager mode are shared in this way. Under torch.compile or torch.func,
    and in the replicas of DataParallel, each layer makes its own kernel, without any state.
    """

    def __init__(self, generator: SliceGenerator, layout: Layout) -> None:
        self.generator = generator
        self.layout: Layout = layout
        self.layers: list[CodedLayer] = []
        self._made: _Made | None = None

    def add(self, layer: CodedLayer) -> int:
        """Take in a layer; its place in the bank."""
        self.layers.append(layer)
        self.forget()
        return len(self.layers) - 1

    def forget(self) -> None:
        """Drop the kernels made so far."""
        self._made = None

    def kernel(self, layer: CodedLayer) -> Tensor:
        """The kernel of one layer, shape [out, in, k, k]."""
        codes, weight = layer.codes, self.generator.weight
        if torch.compiler.is_compiling() or not _is_shareable(codes, weight):
            return self.make_alone(layer)
        made, place = self._made, layer.place
        if (
            made is None
            or made.code_stamps[place] != _stamp(codes)
            or made.weight_stamp != _stamp(weight)
            or (torch.is_grad_enabled() and not made.differentiable)
        ):
            made = self._made = self._make_all()
        return made.kernels[place]

    def make_alone(self, layer: CodedLayer) -> Tensor:
        """The kernel of one layer from its codes alone, without looking at or keeping any state."""
        weight = self.generator.weight
        with torch.autocast(weight.device.type, enabled=False):
            slices_SV = layer.codes.to(weight.device) @ weight.t()
            kernel = kernels_from_slices(slices_SV[None], layer.form)[0]
        return kernel.to(layer.codes.device)

    def _make_all(self) -> _Made:
        weight, codes = self.generator.weight, [layer.codes for layer in self.layers]
        differentiable = torch.is_grad_enabled()
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(differentiable),
            torch.autocast(weight.device.type, enabled=False),
        ):
            kernels = generate_kernels(weight, codes, [layer.form for layer in self.layers])
        return _Made(
            kernels=kernels,
            code_stamps=[_stamp(code) for code in codes],
            weight_stamp=_stamp(weight),
            differentiable=differentiable,
            sources=[tensor.detach() for tensor in (weight, *codes)],
        )

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start without kernels: those belong to the original's graph."""
        return self.__dict__ | {"_made": None}


def _stamp(tensor: Tensor) -> Stamp:
    """Changes whenever the values change in a way that autograd can see."""
    return id(tensor), tensor._version, tensor.data_ptr(), tensor.requires_grad


def _is_shareable(codes: Tensor, weight: Tensor) -> bool:
    """Whether these are the module's own tensors, not stand-ins of a transform or a replica."""
    return (
        isinstance(codes, nn.Parameter)
        and (isinstance(weight, nn.Parameter) or not weight.requires_grad)
        and codes.device == weight.device
        and not codes.is_inference()
        and not weight.is_inference()
    )
