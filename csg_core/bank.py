"""All kernels of a network from one matrix product, kept while nothing they come from changes."""

import functools
import weakref
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from csg_core.generation import generate_kernels
from csg_core.generator import SliceGenerator
from csg_core.layout import KernelForm, Layout, kernels_from_slices

Stamp: TypeAlias = tuple[int, int, int, bool]


class CodedLayer(Protocol):
    """A layer whose kernel a bank makes: its codes and its kernel's form."""

    codes: nn.Parameter
    form: KernelForm


@dataclass(slots=True)
class _Made:
    """One generation of kernels, with the state of everything it was made from."""

    kernels: dict[int, Tensor]  # by the layer's id
    stamps: dict[int, Stamp]
    weight_stamp: Stamp
    steps: int
    differentiable: bool
    sources: list[Tensor]  # keeps the storages alive, so that no address in a stamp is reused


class KernelBank:
    """Makes the kernels of all its layers at once and hands them out one by one.

    A kernel is reused, across forward passes and across the backward passes of gradient
    accumulation, until an optimiser steps, W or the layer's codes change in a way that autograd
    counts, their storage is exchanged, or the model changes between training and evaluation. A
    write behind autograd's back in between (``p.data.copy_(...)``, a numpy view) cannot be noticed:
    call ``forget`` after one.

    Only real parameters in eager mode are shared in this way. Under torch.compile, torch.jit.trace
    and torch.func, in the replicas of DataParallel, and where parameters are views of a longer
    tensor, as ``vector_to_parameters`` leaves them, each layer makes its own kernel, without any
    state.
    """

    def __init__(self, generator: SliceGenerator, layout: Layout) -> None:
        self.generator = generator
        self.layout: Layout = layout
        self._layers: list[weakref.ref[CodedLayer]] = []  # a layer taken out of the model is let go
        self._made: _Made | None = None

    def add(self, layer: CodedLayer) -> None:
        """Take in a layer."""
        self._layers.append(weakref.ref(layer))
        self.forget()

    def forget(self) -> None:
        """Drop the kernels made so far."""
        self._made = None

    def kernel(self, layer: CodedLayer) -> Tensor:
        """The kernel of one layer, shape [out, in, k, k]."""
        if _is_transformed():
            return self.make_alone(layer)
        codes, weight = layer.codes, self.generator.weight
        made, key = self._made, id(layer)
        if (
            made is not None
            and made.stamps.get(key) == _stamp(codes)
            and made.weight_stamp == _stamp(weight)
            and made.steps == _optimiser_steps().count
            and (made.differentiable or not torch.is_grad_enabled())
        ):
            return made.kernels[key]
        if not _are_own(codes, weight):
            return self.make_alone(layer)
        self._made = self._make_all()
        kernel = self._made.kernels.get(key)  # none of a layer that was copied by copy.copy
        return self.make_alone(layer) if kernel is None else kernel

    def make_alone(self, layer: CodedLayer) -> Tensor:
        """The kernel of one layer from its codes alone, without looking at or keeping any state."""
        weight = self.generator.weight
        with _without_autocast(weight.device):
            slices_SV = layer.codes.to(weight.device, weight.dtype) @ weight.t()
            kernel = kernels_from_slices(slices_SV[None], layer.form)[0]
        return kernel.to(layer.codes.device, layer.codes.dtype)

    def _make_all(self) -> _Made:
        weight = self.generator.weight
        alive = [layer for ref in self._layers if (layer := ref()) is not None]
        layers = [layer for layer in alive if _are_own(layer.codes, weight)]
        codes = [layer.codes for layer in layers]
        differentiable = torch.is_grad_enabled()
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(differentiable),
            _without_autocast(weight.device),
        ):
            kernels = generate_kernels(weight, codes, [layer.form for layer in layers])
        keys = [id(layer) for layer in layers]
        return _Made(
            kernels=dict(zip(keys, kernels, strict=True)),
            stamps={key: _stamp(code) for key, code in zip(keys, codes, strict=True)},
            weight_stamp=_stamp(weight),
            steps=_optimiser_steps().count,
            differentiable=differentiable,
            sources=[tensor.detach() for tensor in (weight, *codes)],
        )

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles start without kernels: those belong to the original's graph."""
        layers = [layer for ref in self._layers if (layer := ref()) is not None]
        return self.__dict__ | {"_made": None, "_layers": layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        layers = [weakref.ref(layer) for layer in state["_layers"]]
        self.__dict__.update(state | {"_layers": layers})


class _StepCounter:
    """Counts the steps of every optimiser of the process.

    Fused optimisers and those that write through ``.data`` change parameters without telling
    autograd; each of them runs torch's hook after a step.
    """

    def __init__(self) -> None:
        self.count = 0
        register_optimizer_step_post_hook(self._step)

    def _step(self, *_: Any) -> None:
        self.count += 1


@functools.cache
def _optimiser_steps() -> _StepCounter:
    return _StepCounter()


def _stamp(tensor: Tensor) -> Stamp:
    """Changes whenever the values change in a way that autograd counts."""
    version = 0 if tensor.is_inference() else tensor._version
    return id(tensor), version, tensor.data_ptr(), tensor.requires_grad


def _is_transformed() -> bool:
    """Whether this call is traced by torch.compile or torch.jit, or transformed by torch.func."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )


def _are_own(codes: Tensor, weight: Tensor) -> bool:
    """Whether these are the modules' own tensors, in one place, not a transform's stand-ins."""
    return (
        isinstance(codes, nn.Parameter)
        and (isinstance(weight, nn.Parameter) or not weight.requires_grad)
        and codes.device == weight.device
        and codes.dtype == weight.dtype
        and not codes.is_inference()
        and not weight.is_inference()
        and _holds_all(codes)
        and _holds_all(weight)
    )


def _holds_all(tensor: Tensor) -> bool:
    """Whether it is no view of a longer tensor, through which it could be changed unseen."""
    return tensor.untyped_storage().nbytes() <= tensor.nbytes


def _without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """As kernels are made; torch knows no autocast of meta tensors."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
