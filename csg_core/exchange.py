"""What travels: a model's ordered tensors to exchange, as one flat array, and back.

Exchanged are the generator if it is learned, the codes, all other trained tensors, and the running
means and variances of the norms. The head is the last linear layer. A frozen or binary generator
does not travel; nor do parameters that do not train, other buffers, and the norms' counters of
batches.
"""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from csg_core.convolution import GeneratedConv2d
from csg_core.generator import SliceGenerator
from csg_core.modules import generated, generators, unwrap

Group = Literal["generator", "codes", "norms", "head", "other", "statistics"]
GROUPS: tuple[Group, ...] = get_args(Group)

_KERNEL_DIMS = 4  # [out, in, height, width]
_LARGEST_KERNEL = 16  # on a side
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Grid(NamedTuple):
    """Where the kernels are in a tensor, whose shape is [.., height, width, inner].

    Attributes:
        sides: height and width of a kernel; 1 and 1 of what is none.
        inner: number of values from one place of a kernel to the next.
    """

    sides: tuple[int, int] = (1, 1)
    inner: int = 1

    @property
    def size(self) -> int:
        """Number of values of ``inner`` kernels."""
        height, width = self.sides
        return height * width * self.inner

    @property
    def spatial(self) -> bool:
        """Whether there are kernels of more than one place."""
        return self.sides != (1, 1)


NO_GRID = Grid()


class Part(NamedTuple):
    """A tensor as codecs take it: its group, its number of values, and its kernels."""

    group: Group
    size: int
    grid: Grid = NO_GRID


Parts = Sequence[Part]


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to exchange: its name in ``state_dict()``, group and shape, and its kernels.

    The kernels follow from the shape, and for a generator from what a manifest says of it.
    """

    name: str
    group: Group
    shape: tuple[int, ...]
    grid: Grid = field(default=NO_GRID, compare=False)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True, slots=True)
class Manifest:
    """The ordered tensors that a model exchanges, and the grounds on which they mean something.

    The grounds are the generators (size, kind, seed) and, for every generated kernel, its shape,
    layout and generator.

    Order: group by group as in ``GROUPS``, within a group as in the model. Models whose manifests
    differ must not exchange. Equal manifests say nothing of what is outside the tensors and the
    generators, as strides or the values of frozen parameters.
    """

    entries: tuple[Entry, ...]
    grounds: tuple[tuple[str, str], ...]  # what, and its description

    @property
    def fingerprint(self) -> str:
        """32 hexadecimal digits that stand for the whole manifest."""
        content = [[e.name, e.group, list(e.shape)] for e in self.entries]
        text = json.dumps([content, self.grounds], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def size(self) -> int:
        """Number of values of all entries."""
        return sum(entry.size for entry in self.entries)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Every entry as codecs take it."""
        return tuple(Part(entry.group, entry.size, entry.grid) for entry in self.entries)

    def count(self, *groups: Group) -> int:
        """Number of values in the given groups."""
        return sum(entry.size for entry in self.entries if entry.group in groups)

    def difference(self, other: "Manifest") -> str | None:
        """The first thing in which ``other`` differs, by name, or None if nothing does."""
        ours = {e.name: f"{e.group} {e.shape}" for e in self.entries}
        theirs = {e.name: f"{e.group} {e.shape}" for e in other.entries}
        ours |= dict(self.grounds)
        theirs |= dict(other.grounds)
        for name in [*ours, *(n for n in theirs if n not in ours)]:
            here, there = ours.get(name, "absent"), theirs.get(name, "absent")
            if here != there:
                return f"{name} is {here} here and {there} there"
        return None if self == other else "the order of the tensors differs"

    def require(self, other: "Manifest") -> None:
        """Raise ValueError, naming the first difference, unless ``other`` is equal."""
        difference = self.difference(other)
        if difference is not None:
            raise ValueError(f"the models do not match: {difference}")


def exchanged(model: nn.Module, groups: Collection[Group] = GROUPS) -> dict[Entry, Tensor]:
    """The tensors to exchange, in order; the tensors are the model's own, not copies.

    ``groups`` narrows the exchange, as to leave norms with the clients (FedBN).

    Raises:
        ValueError: if a group is unknown, or a generator is no longer a module of the model.
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

    @property
    def size(self) -> int:
        """Number of values."""
        return sum(self._sizes)

    def _tensors(self) -> list[Tensor]:
        """As they are now: models may be moved, or put into another format."""
        return [getattr(module, name).detach() for module, name in self._places]

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

    def write(self, values: Tensor) -> None:
        """Write what ``checked`` gave; running variances below zero become zero."""
        tensors = self._tensors()
        if tensors:  # torch takes no empty lists
            parts = zip(self._entries, values.split(self._sizes), strict=True)
            torch._foreach_copy_(tensors, [part.view(entry.shape) for entry, part in parts])
        for entry, tensor in zip(self._entries, tensors, strict=True):
            if _is_variance(entry):
                tensor.clamp_(min=0)


def pack(model: nn.Module, groups: Collection[Group] = GROUPS) -> NDArray[np.float32]:
    """All values to exchange as one flat array, float32 [manifest(model, groups).size]."""
    packed: NDArray[np.float32] = Exchanged(model, groups).flat().cpu().numpy()
    return packed


def all_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinity; takes no memory, and waits for a device but once."""
    return not values.numel() or bool(torch.stack(values.aminmax()).isfinite().all())


def split(packed: NDArray[np.float32], entries: Sequence[Entry]) -> dict[Entry, NDArray[Any]]:
    """Views of a packed array, one per entry, each in its entry's shape.

    Raises:
        ValueError: if the array is not as long as they are together.
    """
    ends = np.cumsum([entry.size for entry in entries])
    if packed.shape != (sum(entry.size for entry in entries),):
        raise ValueError(f"packed array has shape {packed.shape}; the entries need {ends[-1:]}")
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
    tensors = Exchanged(model, groups)
    tensors.write(tensors.checked(packed))


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
    unknown = [groups] if isinstance(groups, str) else [g for g in groups if g not in GROUPS]
    if unknown:
        raise ValueError(f"groups {unknown}: give a list of {', '.join(GROUPS)}")
    model = unwrap(model)
    there = {id(generator) for generator in generators(model).values()}
    for name, layer in generated(model).items():
        if id(layer.bank.generator) not in there:
            raise ValueError(
                f"the generator of {name} is no module of the model, as when the first generated "
                "convolution, whose child it is, was taken out: layer = "
                f"model.get_submodule({name!r}); layer.generator = layer.bank.generator"
            )
    found = list(_walk(model))
    return [p for wanted in GROUPS if wanted in groups for p in found if p[0].group == wanted]


def _walk(model: nn.Module) -> Iterator[_Place]:
    """Every tensor to exchange, once, in the order of the modules."""
    seen: set[int] = set()
    head = next((m for m in reversed([*model.modules()]) if isinstance(m, nn.Linear)), None)
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                group = "head" if module is head else _group(module, name)
                grid = _grid(module, parameter)
                yield Entry(prefix + name, group, tuple(parameter.shape), grid), module, name
        if isinstance(module, _NORMS):
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    yield Entry(prefix + name, "statistics", tuple(buffer.shape)), module, name


def _group(module: nn.Module, name: str) -> Group:
    if isinstance(module, SliceGenerator):
        return "generator"
    if isinstance(module, GeneratedConv2d) and name == "codes":
        return "codes"
    return "norms" if isinstance(module, _NORMS) else "other"


def _grid(module: nn.Module, parameter: Tensor) -> Grid:
    if isinstance(module, SliceGenerator):
        return Grid((module.kernel_size, module.kernel_size), module.code_size)
    if parameter.dim() != _KERNEL_DIMS or max(parameter.shape[2:]) > _LARGEST_KERNEL:
        return NO_GRID
    _, _, height, width = parameter.shape
    return Grid((height, width))
