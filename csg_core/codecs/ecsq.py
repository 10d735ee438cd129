"""Entropy-coded scalar quantisation: uniform steps with a dead zone, then a range coder.

At low rates this is within a tenth of a bit of the rate-distortion bound of a Laplacian source
(Sullivan, "Efficient scalar quantization of exponential and Laplacian random variables", IEEE
Transactions on Information Theory, 1996), whence the dead zone and the shift of the levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from csg_core.codecs import levels as coder
from csg_core.codecs.base import Codec, CodecError, Values, require_finite, require_length, total
from csg_core.codecs.levels import MODEL_BYTES, MOST, Levels
from csg_core.codecs.spatial import BANDS, bands_of, from_frequencies, to_frequencies
from csg_core.exchange import Part, Parts

_OCTAVE = 4  # step sizes to a factor of two
_ZERO = -128  # exponent of a tensor of zeros
_SHIFTS = 32  # resolution of the levels' shift, of a step
_HEAD = MODEL_BYTES + 1  # bytes of a class: its model and its shift
_FRACTIONS = np.array([1.0, 1.189207115002721, 1.414213562373095, 1.681792830507429])
_SHARES = (0.86, 0.1, 0.04)  # of a kernel's energy, by frequency, as measured of updates


@dataclass(frozen=True, slots=True)
class Ecsq(Codec):
    """Each tensor in steps of its own; kernels by spatial frequency.

    A value x becomes level sign(x) * floor(|x| / step + 1 - dead), and the level k comes back as
    sign(k) * (|k| - shift) * step. Classes of levels, of which each has a model and the shift that
    leaves no bias, are the bands of frequencies in a group's kernels, and what else is in it.

    Attributes:
        step: of the tensor's root mean square: 1.5 takes about 1.6 bits a value of an even tensor,
            3 takes 0.6; kernels take less than half of it.
        dead: where level 1 begins, in steps; 0.5 rounds to the nearest.
        dct: whether kernels are written by frequency.
    """

    step: float = 1.5
    dead: float = 0.6
    dct: bool = True

    name = "ecsq"

    def __post_init__(self) -> None:
        if not 1e-3 <= self.step <= 100:
            raise ValueError(f"step={self.step:g}: give 0.001 to 100, as 1.5")
        if not 0.5 <= self.dead <= 1:
            raise ValueError(f"dead={self.dead:g}: give 0.5 to 1, as 0.6")

    def encode(self, values: Values, parts: Parts, rng: np.random.Generator) -> bytes:  # noqa: ARG002
        require_finite(values, self.name)
        used = self._used(parts)
        if not used:
            return b""
        written = to_frequencies(values, used)
        sizes = [part.size for part in used]
        exponents = self._exponents(written, sizes)
        steps = np.repeat(_steps(exponents), sizes)
        scaled = np.abs(written) / np.where(steps > 0, steps, np.inf)
        levels = np.floor(scaled + (1 - self.dead)).astype(np.int32)
        signed = np.where(written < 0, -levels, levels)
        head, classes = [], [_told_apart(exponents)]
        for places in _classes(used):
            own, chosen = signed[places], levels[places] > 0
            bias = float((levels[places] - scaled[places])[chosen].mean()) if chosen.any() else 0.0
            shift = int(np.clip(round(bias * _SHIFTS), -127, 127))
            classes.append((own, coder.model_of(own)))
            head.append(np.int8(shift).tobytes())
        models = b"".join(model for _, model in classes)
        return models + b"".join(head) + coder.code(classes)

    def decode(self, body: bytes | memoryview, parts: Parts) -> Values:
        used = self._used(parts)
        if not used:
            require_length(body, 0, self.name)
            return np.zeros(0, np.float32)
        sizes, classes = [part.size for part in used], _classes(used)
        end = MODEL_BYTES + _HEAD * len(classes)
        if len(body) < end:
            raise CodecError("the body ends early")
        models = np.frombuffer(body[: end - len(classes)], np.uint8).reshape(-1, MODEL_BYTES)
        shifts = np.frombuffer(body[end - len(classes) : end], np.int8)
        counts = [len(sizes), *map(len, classes)]
        told = [(count, model.tobytes()) for count, model in zip(counts, models, strict=True)]
        differences, *found = coder.decode(bytes(body[end:]), told)
        exponents = np.cumsum(differences, dtype=np.int8)
        written = np.zeros(total(used), np.float32)
        steps = np.repeat(_steps(exponents), sizes)
        for places, levels, shift in zip(classes, found, shifts.tolist(), strict=True):
            magnitudes = np.abs(levels) - np.where(levels != 0, shift / _SHIFTS, 0.0)
            written[places] = np.copysign(magnitudes * steps[places], levels)
        return from_frequencies(written, used)

    def most_bytes(self, parts: Parts) -> int:
        # no level of a good model costs more than its index; 2 bytes hold any with room
        used = self._used(parts)
        if not used:
            return 0
        head = MODEL_BYTES + _HEAD * len(_classes(used))
        return head + 2 * len(used) + 2 * total(used) + 8

    def bytes_about(self, parts: Parts) -> int:
        used = self._used(parts)
        bits = 8.0 * (MODEL_BYTES + _HEAD * len(_classes(used)) + len(used) / 2 + 4)
        for part in used:
            energies = _energies(part)
            rates = [_rate(self.step / math.sqrt(energy), self.dead) for energy in energies]
            bits += sum(rates) * part.size / len(rates)
        return round(bits / 8)

    def _used(self, parts: Parts) -> tuple[Part, ...]:
        """The tensors that hold values, with kernels only if they are written by frequency."""
        return tuple(part if self.dct else Part(*part[:2]) for part in parts if part.size)

    def _exponents(self, values: Values, sizes: list[int]) -> NDArray[np.int8]:
        """Step sizes, in quarter octaves; wide enough that no level passes the largest."""
        starts = np.cumsum([0, *sizes[:-1]])
        squares = np.add.reduceat(np.square(values, dtype=np.float64), starts)
        peaks = np.maximum.reduceat(np.abs(values), starts)
        wanted = np.maximum(self.step * np.sqrt(squares / sizes), peaks / MOST)
        found = np.full(len(sizes), _ZERO)
        some = wanted > 0
        found[some] = np.ceil(np.log2(wanted[some]) * _OCTAVE - 0.5)
        found += some & (peaks > (MOST - 1) * wanted)
        return np.where(found > _ZERO, np.clip(found, _ZERO, 127), _ZERO).astype(np.int8)


@lru_cache(maxsize=8)
def _classes(parts: tuple[Part, ...]) -> tuple[NDArray[np.int32], ...]:
    """The places of each class's levels, group by group: bands of kernels, then the others."""
    classes: list[NDArray[np.int32]] = []
    start = 0
    for _, members in groupby(parts, key=lambda part: part.group):
        own = list(members)
        bands = np.concatenate([
            bands_of(part) if part.grid.spatial else np.full(part.size, BANDS, np.uint8)
            for part in own
        ])  # fmt: skip
        found = (np.flatnonzero(bands == band) for band in range(BANDS + 1))
        classes += [(start + places).astype(np.int32) for places in found if places.size]
        start += bands.size
    return tuple(classes)


def _told_apart(exponents: NDArray[np.int8]) -> tuple[Levels, bytes]:
    """Exponents as differences from one to the next, modulo 256, and their model."""
    differences = np.diff(exponents, prepend=np.int8(0)).astype(np.int32)
    return differences, coder.model_of(differences)


def _steps(exponents: NDArray[np.int8]) -> NDArray[np.float64]:
    """2^(exponent / 4), the same on every machine; zero for a tensor of zeros."""
    whole, part = np.divmod(exponents.astype(np.int64), _OCTAVE)
    steps: NDArray[np.float64] = np.ldexp(_FRACTIONS[part], whole)
    return np.where(exponents == _ZERO, 0.0, steps)


def _energies(part: Part) -> list[float]:
    """Energy of each place of a kernel in frequencies to expect, the mean being one."""
    height, width = (_shares(size) for size in part.grid.sides)
    return [len(height) * len(width) * down * across for down in height for across in width]


def _shares(size: int) -> Sequence[float]:
    first, second, rest = _SHARES
    if size == 1:
        return (1.0,)
    if size == 2:
        return (first, second + rest)
    return (first, second, *[rest / (size - 2)] * (size - 2))


def _rate(step: float, dead: float) -> float:
    """Bits a value of a Laplacian source, its root mean square being one."""
    beyond = math.exp(-math.sqrt(2) * step * dead)  # not zero
    further = math.exp(-math.sqrt(2) * step)  # a level higher, given that it is not zero
    return _binary(beyond) + beyond * (1 + _binary(further) / (1 - further))


def _binary(p: float) -> float:
    """Entropy of an event of probability p, bits."""
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p) if 0 < p < 1 else 0.0
