"""Different codecs for different groups of tensors."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csg_core.codecs.base import (
    FRAME_BYTES,
    Codec,
    CodecError,
    Values,
    framed,
    require_size,
    total,
    unframed,
)
from csg_core.entries import GROUPS, Group, Parts


@dataclass(frozen=True, slots=True)
class Grouped(Codec):
    """One codec for most tensors, and others for the groups named; each after its length.

    What goes by equal codecs goes together.

    Attributes:
        default: for the groups that are not named.
        others: by group.

    Raises:
        ValueError: if a group is unknown, or has two codecs.
    """

    default: Codec
    others: tuple[tuple[Group, Codec], ...]

    name = "grouped"

    def __post_init__(self) -> None:
        groups = [group for group, _ in self.others]
        for group in groups:
            if group not in GROUPS:
                raise ValueError(f"group {group!r} is unknown; groups are {', '.join(GROUPS)}")
            if groups.count(group) > 1:
                raise ValueError(f"group {group!r} has two codecs; give one")

    def encode(self, values: Values, parts: Parts, rng: np.random.Generator) -> bytes:
        require_size(values, parts, self.name)
        body = []
        for codec, chosen, rows in self._shares(parts):
            body.append(framed(codec.encode(np.ascontiguousarray(values[rows]), chosen, rng)))
        return b"".join(body)

    def decode(self, body: bytes | memoryview, parts: Parts) -> Values:
        rest = memoryview(body)
        values = np.zeros(total(parts), np.float32)
        for codec, chosen, rows in self._shares(parts):
            written, rest = unframed(rest, codec.name)
            values[rows] = codec.decode(written, chosen)
        if len(rest):
            raise CodecError(f"{len(rest):,} bytes of {self.name} are left over")
        return values

    def most_bytes(self, parts: Parts) -> int:
        return sum(
            FRAME_BYTES + codec.most_bytes(chosen) for codec, chosen, _ in self._shares(parts)
        )

    def bytes_about(self, parts: Parts) -> int:
        return sum(
            FRAME_BYTES + codec.bytes_about(chosen) for codec, chosen, _ in self._shares(parts)
        )

    def drops(self, group: Group) -> bool:
        return dict(self.others).get(group, self.default).drops(group)

    @property
    def holds_models(self) -> bool:
        return all(codec.holds_models for codec in (self.default, *dict(self.others).values()))

    @property
    def bears_feedback(self) -> bool:
        return all(codec.bears_feedback for codec in (self.default, *dict(self.others).values()))

    @property
    def bears_statistics(self) -> bool:
        return dict(self.others).get("statistics", self.default).bears_statistics

    def _shares(self, parts: Parts) -> list[tuple[Codec, Parts, NDArray[np.bool_]]]:
        """Each codec that is used, with its tensors and the places of their values."""
        others = dict(self.others)
        shares: list[tuple[Codec, Parts, NDArray[np.bool_]]] = []
        sizes = [part.size for part in parts]
        for codec in dict.fromkeys((self.default, *others.values())):
            mine = [others.get(part.group, self.default) == codec for part in parts]
            if any(mine):
                chosen = [part for part, yes in zip(parts, mine, strict=True) if yes]
                shares.append((codec, chosen, np.repeat(mine, sizes)))
        return shares
