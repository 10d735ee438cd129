"""All kernels of a network from one matrix product, kept while nothing they come from changes.

Shape letters: S slices (of all layers together), V values of a slice, D code size.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from csg_core.generator import SliceGenerator
from csg_core.layout import Layout, kernels_from_slices

if TYPE_CHECKING:
    from csg_core.convolution import GeneratedConv2d

Stamp: TypeAlias = tuple[int, int, int, bool]


@dataclass(slots=True)
class _Made:
    """One generation of kernels, with the state of every tensor it was made from."""

    kernels: list[Tensor]
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
        self.layers: list[GeneratedConv2d] = []
        self._made: _Made | None = None

    def add(self, layer: "GeneratedConv2d") -> int:
        """Take in a layer; its place in the bank."""
        self.layers.append(layer)
        self.forget()
        return len(self.layers) - 1

    def forget(self) -> None:
        """Drop the kernels made so far."""
        self._made = None

    def kernel(self, layer: "GeneratedConv2d") -> Tensor:
        """The kernel of one layer, shape [out, in, k, k]."""
        codes, weight = layer.codes, self.generator.weight
        if torch.compiler.is_compiling() or not _is_shareable(codes, weight):
            return self._make_alone(layer)
        made, place = self._made, layer.place
        if (
            made is None
            or made.code_stamps[place] != _stamp(codes)
            or made.weight_stamp != _stamp(weight)
            or (torch.is_grad_enabled() and not made.differentiable)
        ):
            made = self._made = self._make_all()
        return made.kernels[place]

    def _make_alone(self, layer: "GeneratedConv2d") -> Tensor:
        weight = self.generator.weight
        with torch.autocast(weight.device.type, enabled=False):
            slices_SV = layer.codes.to(weight.device) @ weight.t()
            kernel = self._lay_out(slices_SV[None], layer)[0]
        return kernel.to(layer.codes.device)

    def _make_all(self) -> _Made:
        weight = self.generator.weight
        codes = [layer.codes for layer in self.layers]
        differentiable = torch.is_grad_enabled()
        groups: dict[tuple[int, int], list[int]] = {}
        for place, layer in enumerate(self.layers):
            groups.setdefault((layer.out_channels, layer.in_channels), []).append(place)
        order = [place for places in groups.values() for place in places]
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(differentiable),
            torch.autocast(weight.device.type, enabled=False),
        ):
            stacked = torch.cat([codes[p] for p in order])
            slices_SV: Tensor = _SharedProduct.apply(stacked, weight)  # type: ignore[no-untyped-call]
            kernels = dict(self._split(slices_SV, groups))
        return _Made(
            kernels=[kernels[place] for place in range(len(codes))],
            code_stamps=[_stamp(code) for code in codes],
            weight_stamp=_stamp(weight),
            differentiable=differentiable,
            sources=[tensor.detach() for tensor in (weight, *codes)],
        )

    def _split(
        self, slices_SV: Tensor, groups: dict[tuple[int, int], list[int]]
    ) -> list[tuple[int, Tensor]]:
        """Kernels by place; layers of equal shape are laid out together."""
        counts = [sum(len(self.layers[p].codes) for p in places) for places in groups.values()]
        placed: list[tuple[int, Tensor]] = []
        for places, part in zip(groups.values(), slices_SV.split(counts), strict=True):
            by_layer = part.reshape(len(places), -1, part.shape[-1])
            placed += zip(places, self._lay_out(by_layer, self.layers[places[0]]), strict=True)
        return placed

    def _lay_out(self, slices_LSV: Tensor, layer: "GeneratedConv2d") -> Tensor:
        return kernels_from_slices(
            slices_LSV,
            out_channels=layer.out_channels,
            in_channels=layer.in_channels,
            slice_size=self.generator.slice_size,
            kernel_size=self.generator.kernel_size,
            layout=self.layout,
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


class _SharedProduct(torch.autograd.Function):
    """codes @ W.T with a backward that may run many times for one forward.

    Autograd frees what an ordinary product saved after its first backward pass; here both factors
    are parameters, which live on anyway, so the same kernels serve every pass until a step.
    """

    @staticmethod
    def forward(ctx: Any, codes_SD: Tensor, weight_VD: Tensor) -> Tensor:
        ctx.codes, ctx.weight, ctx.version = codes_SD, weight_VD, weight_VD._version
        return codes_SD @ weight_VD.t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad_SV,) = grads
        if ctx.weight._version != ctx.version:
            raise RuntimeError(
                "the generator's weight was changed in place between forward and backward; "
                "run backward before the optimiser step"
            )
        codes_grad = grad_SV @ ctx.weight if ctx.needs_input_grad[0] else None
        weight_grad = grad_SV.t() @ ctx.codes if ctx.needs_input_grad[1] else None
        return codes_grad, weight_grad
