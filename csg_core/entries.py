"""What travels, described: every tensor's group, shape and kernels, in one order."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

Group = Literal["generator", "codes", "norms", "head", "other", "statistics"]
GROUPS: tuple[Group, ...] = get_args(Group)


class KernelGrid(NamedTuple):
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


NO_GRID = KernelGrid()


class Part(NamedTuple):
    """A tensor as codecs take it: its group, its number of values, and its kernels."""

    group: Group
    size: int
    grid: KernelGrid = NO_GRID


Parts = Sequence[Part]


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to exchange: its name in ``state_dict()``, group and shape, and its kernels.

    The kernels follow from the shape, and for a generator from what a manifest says of it.
    """

    name: str
    group: Group
    shape: tuple[int, ...]
    grid: KernelGrid = field(default=NO_GRID, compare=False)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


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
    def trained(self) -> int:
        """Number of values that training steps change: all but running statistics, which come last
        in the order.
        """
        return self.size - self.count("statistics")

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
