"""Different codecs for different groups of tensors."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csg_core.codecs.base import Codec, CodecError, Values, total
from csg_core.exchange import Group, Parts

_LENGTH = 4  # bytes


@dataclass(frozen=True, slots=True)
class Grouped(Codec):
    """One codec for most tensors, and others for the groups named; each after its length.

    Attributes:
        default: for the groups that are not named.
        others: by group.
    """

    default: Codec
    others: tuple[tuple[Group, Codec], ...]

    name = "grouped"

    def encode(self, values: Values, parts: Parts, rng: np.random.Generator) -> bytes:
        body = []
        for codec, chosen, rows in self._shares(parts):
            written = codec.encode(np.ascontiguousarray(values[rows]), chosen, rng)
            body += [len(written).to_bytes(_LENGTH, "little"), written]
        return b"".join(body)

    def decode(self, body: bytes | memoryview, parts: Parts) -> Values:
        rest = memoryview(body)
        values = np.zeros(total(parts), np.float32)
        for codec, chosen, rows in self._shares(parts):
            end = _LENGTH + int.from_bytes(rest[:_LENGTH], "little")
            if len(rest) < end or len(rest) < _LENGTH:
                raise CodecError("the body ends early")
            values[rows] = codec.decode(rest[_LENGTH:end], chosen)
            rest = rest[end:]
        if len(rest):
            raise CodecError(f"{len(rest):,} bytes are left over")
        return values

    def most_bytes(self, parts: Parts) -> int:
        return sum(_LENGTH + codec.most_bytes(chosen) for codec, chosen, _ in self._shares(parts))

    def bytes_about(self, parts: Parts) -> int:
        return sum(_LENGTH + codec.bytes_about(chosen) for codec, chosen, _ in self._shares(parts))

    def _shares(self, parts: Parts) -> list[tuple[Codec, Parts, NDArray[np.bool_]]]:
        """Each codec that is used, with its tensors and the places of their values."""
        others = dict(self.others)
        shares: list[tuple[Codec, Parts, NDArray[np.bool_]]] = []
        sizes = [part.size for part in parts]
        for codec in (self.default, *others.values()):
            mine = [others.get(part.group, self.default) is codec for part in parts]
            if any(mine):
                chosen = [part for part, yes in zip(parts, mine, strict=True) if yes]
                shares.append((codec, chosen, np.repeat(mine, sizes)))
        return shares
