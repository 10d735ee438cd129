"""A model's ordered tensors to exchange, as one flat array, and back.

Exchanged are the generator if it is learned, the codes, all other trained tensors, and the running
means and variances of the norms. The head is the last linear layer. A frozen or binary generator
does not travel; nor do parameters that do not train, other buffers, and the norms' counters of
batches.
"""

import json
import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from csg_core.convolution import GeneratedConv2d
from csg_core.entries import GROUPS, NO_GRID, Entry, Group, KernelGrid, Manifest
from csg_core.generator import SliceGenerator
from csg_core.modules import generated, generators, require_generators, unwrap

_KERNEL_DIMS = 4  # [out, in, height, width]
_LARGEST_KERNEL = 16  # on a side
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def exchanged(model: nn.Module, groups: Collection[Group] = GROUPS) -> dict[Entry, Tensor]:
    """The tensors to exchange, in order; the tensors are the model's own, not copies.

    ``groups`` narrows the exchange, as to leave norms with the clients (FedBN).

    Raises:
        ValueError: if a group is unknown, a parameter complex, or a generator is no longer a module
            of the model.
    """
    return {entry: getattr(module, name) for entry, module, name in _ordered(model, groups)}


def manifest(model: nn.Module, groups: Collection[Group] = GROUPS) -> Manifest:
    """What ``model`` exchanges, of the given groups; raises ValueError as ``exchanged`` does."""
    model = unwrap(model)
    tensors = exchanged(model, groups)
    made_by = {id(generator): name for name, generator in generators(model).items()}
    grounds = [
        (f"generator {name}", json.dumps(generator.describe()))
        for name, generator in generators(model).items()
    ]
    for name, layer in generated(model).items():
        shape = f"{layer.out_channels} x {layer.in_channels}"
        maker = made_by[id(layer.bank.generator)]
        grounds.append((f"kernel {name}", f"{shape} {layer.bank.layout} by {maker}"))
    return Manifest(tuple(tensors), tuple(grounds))


class Exchanged:
    """What a model exchanges, found once, for a model that is packed time and again."""

    def __init__(self, model: nn.Module, groups: Collection[Group] = GROUPS) -> None:
        found = _ordered(model, groups)
        self._entries = [entry for entry, _, _ in found]
        self._sizes = [entry.size for entry in self._entries]
        self._places = [(module, name) for _, module, name in found]
        self._variances = [
            place for place, entry in enumerate(self._entries) if _is_variance(entry)
        ]

    @property
    def size(self) -> int:
        """Number of values."""
        return sum(self._sizes)

    def _tensors(self) -> list[Tensor]:
        """As they are now: models may be moved, or put into another format."""
        return [getattr(module, name) for module, name in self._places]

    @torch.no_grad()
    def flat(self) -> Tensor:
        """All values, float32 [size]; a copy, where the model is, or on the CPU if it is apart."""
        tensors = self._tensors()
        device = _device_of(tensors)
        flat = [t.reshape(-1).to(device, torch.float32) for t in tensors]
        return torch.cat(flat) if flat else torch.empty(0)

    def checked(self, packed: NDArray[np.float32]) -> Tensor:
        """A packed array as ``write`` takes it, float32 [size], where the model is.

        Raises:
            ValueError: as ``unpack`` does.
        """
        if not isinstance(packed, np.ndarray):
            raise ValueError(f"packed is a {type(packed).__name__}; give an array, as pack does")
        if packed.dtype != np.float32 or packed.shape != (self.size,):
            raise ValueError(
                f"packed array is {packed.dtype} {packed.shape}; "
                f"this model needs float32 ({self.size},)"
            )
        source = torch.tensor(packed)
        tensors, parts = self._tensors(), source.split(self._sizes)
        for entry, tensor, values in zip(self._entries, tensors, parts, strict=True):
            if not _fits(values, tensor.dtype):
                raise ValueError(f"{entry.name} holds NaN or infinity; nothing was written")
        return source.to(_device_of(tensors))  # in one transfer

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        """Write what ``checked`` gave; running variances below zero become zero."""
        tensors = self._tensors()
        if tensors:  # torch takes no empty lists
            parts = zip(self._entries, values.split(self._sizes), strict=True)
            torch._foreach_copy_(tensors, [part.view(entry.shape) for entry, part in parts])
        if self._variances:
            torch._foreach_clamp_min_([tensors[place] for place in self._variances], 0.0)

    def packed(self) -> NDArray[np.float32]:
        """All values, as ``pack`` gives them."""
        packed: NDArray[np.float32] = self.flat().cpu().numpy()
        return packed

    def unpack(self, packed: NDArray[np.float32]) -> None:
        """Write a packed array; raises ValueError as the function ``unpack`` does."""
        self.write(self.checked(packed))


def pack(model: nn.Module, groups: Collection[Group] = GROUPS) -> NDArray[np.float32]:
    """All values to exchange as one flat array, float32 [manifest(model, groups).size]."""
    return Exchanged(model, groups).packed()


@torch.no_grad()
def stacked(models: Sequence[Exchanged]) -> Tensor:
    """The values of N models that are alike, float32 [N, size]; a copy, where the models are."""
    if len(models) == 1:
        return models[0].flat()[None]
    columns = list(zip(*(model._tensors() for model in models), strict=True))
    if not columns:
        return torch.empty(len(models), 0)
    device = _device_of([tensor for column in columns for tensor in column])
    parts = [torch.stack([t.to(device, torch.float32) for t in column]) for column in columns]
    return torch.cat([part.reshape(len(models), -1) for part in parts], dim=1)


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinity; takes no memory, and waits for a device but once."""
    return finite_rows(values.reshape(1, -1))[0]


def finite_rows(values: Tensor) -> list[bool]:
    """Whether no value of a row is NaN or infinity, for each row of values [N, size]."""
    if not values.numel():
        return [True] * len(values)
    lows, highs = torch.stack([values.amin(1), values.amax(1)]).tolist()
    return [
        math.isfinite(low) and math.isfinite(high) for low, high in zip(lows, highs, strict=True)
    ]


def split(packed: NDArray[np.float32], entries: Sequence[Entry]) -> dict[Entry, NDArray[Any]]:
    """Views of a packed array, one per entry, each in its entry's shape.

    Raises:
        ValueError: if the array is not as long as they are together.
    """
    ends = np.cumsum([entry.size for entry in entries])
    size = sum(entry.size for entry in entries)
    if packed.shape != (size,):
        raise ValueError(f"packed array has shape {packed.shape}; the entries need ({size},)")
    return {
        entry: packed[end - entry.size : end].reshape(entry.shape)
        for entry, end in zip(entries, ends, strict=True)
    }


def unpack(
    model: nn.Module, packed: NDArray[np.float32], groups: Collection[Group] = GROUPS
) -> None:
    """Write a packed array into ``model``; either everything is written or nothing.

    Running variances below zero, as lossy codecs may leave them, become zero.

    Raises:
        ValueError: if the size or the type is not this model's, or a value is NaN or infinite; the
            tensor is named.
    """
    Exchanged(model, groups).unpack(packed)


def _is_variance(entry: Entry) -> bool:
    return entry.group == "statistics" and entry.name.endswith("running_var")


def _fits(values: Tensor, dtype: torch.dtype) -> bool:
    """Whether all of them are finite, as they are and in a model's type."""
    return all_finite(values.to(dtype).float())


_Place = tuple[Entry, nn.Module, str]  # a tensor, its module, and its name there


def _device_of(tensors: Sequence[Tensor]) -> torch.device:
    """Where they are together, else the CPU."""
    devices = {tensor.device for tensor in tensors}
    return devices.pop() if len(devices) == 1 else torch.device("cpu")


def _ordered(model: nn.Module, groups: Collection[Group]) -> list[_Place]:
    """Every tensor to exchange, in the order of a manifest."""
    wanted = [*groups]  # an iterator is read once
    unknown = [groups] if isinstance(groups, str) else [g for g in wanted if g not in GROUPS]
    if unknown:
        raise ValueError(f"groups {unknown}: give a list of {', '.join(GROUPS)}")
    model = unwrap(model)
    require_generators(model)
    found = list(_walk(model))
    return [p for group in GROUPS if group in wanted for p in found if p[0].group == group]


def _walk(model: nn.Module) -> Iterator[_Place]:
    """Every tensor to exchange, once, in the order of the modules."""
    seen: set[int] = set()
    head = next((m for m in reversed([*model.modules()]) if isinstance(m, nn.Linear)), None)
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                if parameter.is_complex():
                    raise ValueError(f"{prefix}{name} is complex; only real numbers are exchanged")
                owner, kind = _parametrized(model, path) or (module, name)
                group = "head" if owner is head else _group(owner, kind)
                grid = _grid(owner, parameter)
                yield Entry(prefix + name, group, tuple(parameter.shape), grid), module, name
        if isinstance(module, _NORMS):
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    yield Entry(prefix + name, "statistics", tuple(buffer.shape)), module, name


def _parametrized(model: nn.Module, path: str) -> tuple[nn.Module, str] | None:
    """The module and the tensor that a parametrization makes, if the module at ``path`` is one's.

    ``weight_norm`` of a module's ``weight`` trains tensors of its ``parametrizations.weight``.
    """
    owner, found, rest = f".{path}.".rpartition(".parametrizations.")
    return (model.get_submodule(owner.removeprefix(".")), rest.split(".")[0]) if found else None


def _group(module: nn.Module, name: str) -> Group:
    if isinstance(module, SliceGenerator):
        return "generator"
    if isinstance(module, GeneratedConv2d) and name == "codes":
        return "codes"
    return "norms" if isinstance(module, _NORMS) else "other"


def _grid(module: nn.Module, parameter: Tensor) -> KernelGrid:
    if isinstance(module, SliceGenerator):
        matrix = tuple(parameter.shape) == (module.slice_values, module.code_size)
        sides = (module.kernel_size, module.kernel_size)
        return KernelGrid(sides, module.code_size) if matrix else NO_GRID
    if parameter.dim() != _KERNEL_DIMS or max(parameter.shape[2:]) > _LARGEST_KERNEL:
        return NO_GRID
    _, _, height, width = parameter.shape
    return KernelGrid((height, width))
