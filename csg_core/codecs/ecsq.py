"""Entropy-coded scalar quantisation: uniform steps with a dead zone, then a range coder.

At low rates this is within a tenth of a bit of the rate-distortion bound of a Laplacian source
(Sullivan, "Efficient scalar quantization of exponential and Laplacian random variables", IEEE
Transactions on Information Theory, 1996), whence the dead zone and the shift of the levels.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from csg_core.codecs.base import Codec, CodecError, Parts, Values, require_finite, total
from csg_core.codecs.entropy import Symbols, code
from csg_core.codecs.entropy import decode as decode_symbols
from csg_core.exchange import Group

_MOST = 127  # largest level
_OCTAVE = 4  # step sizes to a factor of two
_ZERO = -128  # exponent of a tensor of zeros
_SHIFTS = 32  # resolution of the levels' shift, of a step
_FRACTIONS = np.array([1.0, 1.189207115002721, 1.414213562373095, 1.681792830507429])


@dataclass(frozen=True, slots=True)
class Ecsq(Codec):
    """Each tensor in steps of its own; all tensors of a group share one model of the symbols.

    A value x becomes level sign(x) * floor(|x| / step + 1 - dead), and the level k comes back as
    sign(k) * (|k| - shift) * step, with the shift that leaves no bias, chosen by group.

    Attributes:
        step: of the tensor's root mean square: 1.5 takes about 1.6 bits a value, 3 takes 0.6.
        dead: where level 1 begins, in steps; 0.5 rounds to the nearest.
    """

    step: float = 1.5
    dead: float = 0.6

    name = "ecsq"

    def __post_init__(self) -> None:
        if not 1e-3 <= self.step <= 100:
            raise ValueError(f"step={self.step:g}: give 0.001 to 100, as 1.5")
        if not 0.5 <= self.dead <= 1:
            raise ValueError(f"dead={self.dead:g}: give 0.5 to 1, as 0.6")

    def encode(self, values: Values, parts: Parts, rng: np.random.Generator) -> bytes:  # noqa: ARG002
        require_finite(values, self.name)
        body = []
        for sizes, start, end in _groups(parts):
            exponents = self._exponents(values[start:end], sizes)
            steps = np.repeat(_steps(exponents), sizes)
            scaled = np.abs(values[start:end]) / np.where(steps > 0, steps, np.inf)
            levels = np.floor(scaled + (1 - self.dead)).astype(np.int32)
            used = levels > 0
            bias = float((levels[used] - scaled[used]).mean()) if used.any() else 0.0
            shift = int(np.clip(round(bias * _SHIFTS), -127, 127))
            top = int(levels.max(initial=0))
            signed = np.where(values[start:end] < 0, -levels, levels)
            symbols = code((signed + top).astype(np.int32), 2 * top + 1)
            head = np.array([shift, top], np.int8).tobytes()
            body += [head, exponents.tobytes(), len(symbols).to_bytes(4, "little"), symbols]
        return b"".join(body)

    def decode(self, body: bytes | memoryview, parts: Parts) -> Values:
        values = np.zeros(total(parts), np.float32)
        rest = memoryview(body)
        for sizes, start, end in _groups(parts):
            rest = _decode_group(rest, sizes, values[start:end])
        if len(rest):
            raise CodecError(f"{len(rest):,} bytes of {self.name} are left over")
        return values

    def most_bytes(self, parts: Parts) -> int:
        # no symbol of a good model costs more than its index; 2 bytes hold any level with room
        return sum(2 + len(sizes) + 4 + 2 * _MOST + 1 + 2 * sum(sizes) + 8
                   for sizes, _, _ in _groups(parts))  # fmt: skip

    def bytes_about(self, parts: Parts) -> int:
        rate = _rate(self.step, self.dead)
        return round(sum(7 + len(sizes) + 3 + rate * sum(sizes) / 8 + 4
                         for sizes, _, _ in _groups(parts)))  # fmt: skip

    def _exponents(self, values: Values, sizes: list[int]) -> NDArray[np.int8]:
        """Step sizes, in quarter octaves; wide enough that no level passes the largest."""
        starts = np.cumsum([0, *sizes[:-1]])
        squares = np.add.reduceat(np.square(values, dtype=np.float64), starts)
        peaks = np.maximum.reduceat(np.abs(values), starts)
        wanted = np.maximum(self.step * np.sqrt(squares / sizes), peaks / _MOST)
        found = np.full(len(sizes), _ZERO)
        some = wanted > 0
        found[some] = np.ceil(np.log2(wanted[some]) * _OCTAVE - 0.5)
        found += some & (peaks > (_MOST - 1) * wanted)
        return np.where(found > _ZERO, np.clip(found, _ZERO, 127), _ZERO).astype(np.int8)


def _decode_group(body: memoryview, sizes: list[int], out: Values) -> memoryview:
    """Write one group's values; what is left of the body."""
    head = 2 + len(sizes) + 4
    if len(body) < head:
        raise CodecError("the body ends early")
    shift, top = np.frombuffer(body[:2], np.int8).tolist()
    exponents = np.frombuffer(body[2 : head - 4], np.int8)
    length = int.from_bytes(body[head - 4 : head], "little")
    if top < 0 or length > len(body) - head:
        raise CodecError("the head of a group is damaged")
    levels: Symbols = decode_symbols(body[head : head + length], out.size, 2 * top + 1) - top
    magnitudes = np.abs(levels) - np.where(levels != 0, shift / _SHIFTS, 0.0)
    out[:] = np.copysign(magnitudes * np.repeat(_steps(exponents), sizes), levels)
    return body[head + length :]


def _groups(parts: Parts) -> Iterator[tuple[list[int], int, int]]:
    """Sizes of the tensors of each group, and where the group begins and ends."""
    start = 0
    for _, members in groupby(parts, key=_group):
        sizes = [size for _, size in members if size]
        if sizes:
            yield sizes, start, start + sum(sizes)
        start += sum(sizes)


def _group(part: tuple[Group, int]) -> Group:
    return part[0]


def _steps(exponents: NDArray[np.int8]) -> NDArray[np.float64]:
    """2^(exponent / 4), the same on every machine; zero for a tensor of zeros."""
    whole, part = np.divmod(exponents.astype(np.int64), _OCTAVE)
    steps: NDArray[np.float64] = np.ldexp(_FRACTIONS[part], whole)
    return np.where(exponents == _ZERO, 0.0, steps)


def _rate(step: float, dead: float) -> float:
    """Bits a value of a Laplacian source, its root mean square being one."""
    beyond = math.exp(-math.sqrt(2) * step * dead)  # not zero
    further = math.exp(-math.sqrt(2) * step)  # a level higher, given that it is not zero
    return _binary(beyond) + beyond * (1 + _binary(further) / (1 - further))


def _binary(p: float) -> float:
    """Entropy of an event of probability p, bits."""
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p) if 0 < p < 1 else 0.0
