"""From codes and W to kernels: one matrix product forward, two back, for a whole network.

Shape letters: S slices of all layers together, V values of a slice, D code size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from csg_core.layout import KernelForm, kernels_from_slices, slices_from_kernels


def generate_kernels(
    weight_VD: Tensor, codes: Sequence[Tensor], forms: Sequence[KernelForm]
) -> tuple[Tensor, ...]:
    """The kernels of all layers, differentiable any number of times for one generation.

    Args:
        weight_VD: the generator's W, shape [s*s*k*k, D].
        codes: the codes of each layer, shape [form.slices, D].
        forms: the form of each layer's kernel.

    Returns:
        One kernel of shape [out, in, k, k] per layer.
    """
    return _GenerateKernels.apply(weight_VD, tuple(forms), *codes)  # type: ignore[no-untyped-call,no-any-return]


class _GenerateKernels(torch.autograd.Function):
    """One node of the graph, whose backward may run many times for one forward.

    Autograd frees what an ordinary product saved after its first backward pass; here both factors
    are parameters, which live on anyway, so the same kernels serve every pass until a step. Layers
    of equal form are laid out together.
    """

    @staticmethod
    def forward(
        ctx: Any, weight_VD: Tensor, forms: tuple[KernelForm, ...], *codes: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.weight, ctx.codes, ctx.forms = weight_VD, codes, forms
        ctx.versions = [tensor._version for tensor in (weight_VD, *codes)]
        ctx.groups = _alike(forms)
        return _kernels(weight_VD, codes, forms)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        needs_weight, _, *needs_codes = ctx.needs_input_grad
        came = [grad is not None for grad in grads]
        read = [any(needs and some for needs, some in zip(needs_codes, came, strict=True)),
                *(needs_weight and some for some in came)]  # fmt: skip
        versions = [tensor._version for tensor in (ctx.weight, *ctx.codes)]
        if any(r and a != b for r, a, b in zip(read, ctx.versions, versions, strict=True)):
            raise RuntimeError(
                "the generator or codes were changed in place between forward and backward; "
                "run backward before the optimiser step"
            )
        order, parts = [], []
        for group in ctx.groups:
            used = [place for place in group if grads[place] is not None]
            if used:
                kernels = [grad for place in used if (grad := grads[place]) is not None]
                slices_LSV = slices_from_kernels(kernels, ctx.forms[group[0]])
                order += used
                parts.append(slices_LSV.reshape(-1, slices_LSV.shape[-1]))  # flatten has no vmap
        result: list[Tensor | None] = [None] * (2 + len(ctx.codes))
        if not order:
            return tuple(result)
        slices_SV = torch.cat(parts)
        if needs_weight:
            result[0] = slices_SV.t() @ torch.cat([ctx.codes[place] for place in order])
        if any(needs_codes):
            codes_SD = slices_SV @ ctx.weight
            counts = [len(ctx.codes[place]) for place in order]
            for place, grad in zip(order, codes_SD.split(counts), strict=True):
                result[2 + place] = grad if needs_codes[place] else None
        return tuple(result)


def _kernels(
    weight_VD: Tensor, codes: Sequence[Tensor], forms: Sequence[KernelForm]
) -> tuple[Tensor, ...]:
    """One product for all layers; those of equal form are laid out together."""
    groups = _alike(forms)
    slices_SV = torch.cat([codes[place] for group in groups for place in group]) @ weight_VD.t()
    kernels: dict[int, Tensor] = {}
    counts = [len(group) * forms[group[0]].slices for group in groups]
    for group, part in zip(groups, slices_SV.split(counts), strict=True):
        slices_LSV = part.reshape(len(group), -1, part.shape[-1])
        placed = kernels_from_slices(slices_LSV, forms[group[0]])
        kernels.update(zip(group, placed, strict=True))
    return tuple(kernels[place] for place in range(len(forms)))


def _alike(forms: Sequence[KernelForm]) -> list[list[int]]:
    """Places of layers, grouped by form."""
    groups: dict[KernelForm, list[int]] = {}
    for place, form in enumerate(forms):
        groups.setdefault(form, []).append(place)
    return list(groups.values())
