"""Entropy-coded scalar quantisation: uniform steps with a dead zone, then a range coder.

At low rates this is within a tenth of a bit of the rate-distortion bound of a Laplacian source
(Sullivan, "Efficient scalar quantization of exponential and Laplacian random variables", IEEE
Transactions on Information Theory, 1996), whence the dead zone and the shift of the levels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from csg_core.codecs.base import Codec, CodecError, Values, require_finite, require_length, total
from csg_core.codecs.levels import MODEL_BYTES, MOST, Levels, model_of
from csg_core.codecs.levels import code as code_levels
from csg_core.codecs.levels import decode as decode_levels
from csg_core.codecs.spatial import BANDS, bands_in, bands_of, from_frequencies, to_frequencies
from csg_core.exchange import NO_GRID, Group, Part, Parts

SHARES = (0.8, 0.14, 0.06)  # of a kernel's energy, by frequency, to expect of an update
DEAD = 0.6
_FINE: tuple[Group, ...] = ("norms", "head", "statistics")
_OCTAVE = 4  # step sizes to a factor of two
_ZERO, _LARGEST = -128, 127  # exponents: of a tensor of zeros, and of the largest steps
_SHIFTS = 32  # resolution of the levels' shift, of a step
_HEAD = MODEL_BYTES + 1  # bytes of a class: its model and its shift
_LIMITS = {"step": (1e-3, 100, 1.5), "fine": (1e-3, 100, 0.6), "detail": (1, 100, 2.5),
           "dead": (0.5, 1, 0.6)}  # of settings: least, most, an example  # fmt: skip
_FRACTIONS = np.array([1.0, 1.189207115002721, 1.414213562373095, 1.681792830507429])


@dataclass(frozen=True, slots=True)
class Ecsq(Codec):
    """Each tensor in steps of its own; kernels by spatial frequency.

    A value x becomes level sign(x) * floor(|x| / step + 1 - dead), and the level k comes back as
    sign(k) * (|k| - shift) * step. Classes of levels, of which each has a model and the shift that
    leaves no bias, are the bands of frequencies in a group's kernels, and what else is in it.

    Attributes:
        step: of the tensor's root mean square: 1.5 takes about 1.4 bits a value without kernels.
        fine: the same of norms, head and statistics, few values on which much depends, if less.
        detail: how many times as large steps are for all frequencies of a kernel but its mean. What
            passes through it is smooth, so that an error there changes little.
        dead: where level 1 begins, in steps; 0.5 rounds to the nearest.
        dct: whether kernels are written by frequency.
    """

    step: float = 1.5
    fine: float = 0.6
    detail: float = 2.5
    dead: float = DEAD
    dct: bool = True

    name = "ecsq"

    def __post_init__(self) -> None:
        for name, (least, most, example) in _LIMITS.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name}={value:g}: give {least:g} to {most:g}, as {example:g}")

    def encode(self, values: Values, parts: Parts, rng: np.random.Generator) -> bytes:  # noqa: ARG002
        used = self._used(parts)
        if not used:
            return b""
        with np.errstate(over="ignore", invalid="ignore"):  # refused in the next line
            written = to_frequencies(values, used)
        require_finite(written, self.name)
        exponents = self._exponents(written, used)
        steps = np.repeat(_steps(exponents), [part.size for part in used])
        classes, shifts = [_told_apart(exponents)], []
        for places, high in _classes(used):
            own_steps = steps[places] * (self.detail if high else 1.0)
            scaled = written[places] / np.where(own_steps > 0, own_steps, np.inf)
            magnitudes = np.floor(np.abs(scaled) + (1 - self.dead)).astype(np.int32)
            some = magnitudes > 0
            bias = float((magnitudes - np.abs(scaled))[some].mean()) if some.any() else 0.0
            shifts.append(int(np.clip(round(bias * _SHIFTS), -127, 127)))
            levels = np.where(scaled < 0, -magnitudes, magnitudes)
            classes.append((levels, model_of(levels)))
        models = b"".join(model for _, model in classes)
        return models + np.array(shifts, np.int8).tobytes() + code_levels(classes)

    def decode(self, body: bytes | memoryview, parts: Parts) -> Values:
        used = self._used(parts)
        if not used:
            require_length(body, 0, self.name)
            return np.zeros(0, np.float32)
        classes = _classes(used)
        end = MODEL_BYTES + _HEAD * len(classes)
        if len(body) < end:
            raise CodecError("the body ends early")
        models = np.frombuffer(body[: end - len(classes)], np.uint8).reshape(-1, MODEL_BYTES)
        shifts = np.frombuffer(body[end - len(classes) : end], np.int8)
        counts = [len(used), *(places.size for places, _ in classes)]
        told = [(count, model.tobytes()) for count, model in zip(counts, models, strict=True)]
        differences, *found = decode_levels(bytes(body[end:]), told)
        exponents = np.cumsum(differences, dtype=np.int8)
        steps = np.repeat(_steps(exponents), [part.size for part in used])
        written = np.zeros(total(used), np.float32)
        for (places, high), levels, shift in zip(classes, found, shifts.tolist(), strict=True):
            own_steps = steps[places] * (self.detail if high else 1.0)
            magnitudes = np.abs(levels) - np.where(levels != 0, shift / _SHIFTS, 0.0)
            written[places] = np.copysign(magnitudes * own_steps, levels)
        return from_frequencies(written, used)

    def most_bytes(self, parts: Parts) -> int:
        # the mean of a fitted geometric model is at most 12 bits, single levels may take 24
        used = self._used(parts)
        if not used:
            return 0
        return MODEL_BYTES + _HEAD * len([*_keys(used)]) + 2 * len(used) + 2 * total(used) + 8

    def bytes_about(self, parts: Parts) -> int:
        used = self._used(parts)
        bits = 8.0 * (MODEL_BYTES + _HEAD * len([*_keys(used)]) + len(used) / 2 + 4)
        for part in used:
            wanted = self._step(part.group)
            steps = [wanted * (self.detail if band else 1) for band in bands_in(part.grid)]
            rates = [_rate(step / math.sqrt(energy), self.dead)
                     for step, energy in zip(steps, energies(part), strict=True)]  # fmt: skip
            bits += sum(rates) * part.size / len(rates)
        return round(bits / 8)

    def _used(self, parts: Parts) -> tuple[Part, ...]:
        """The tensors that hold values, with kernels only if they are written by frequency."""
        used = tuple(part if self.dct else part._replace(grid=NO_GRID)
                     for part in parts if part.size)  # fmt: skip
        assert all(part.size % part.grid.size == 0 for part in used), "tensors of whole kernels"
        return used

    def _step(self, group: Group) -> float:
        return min(self.step, self.fine) if group in _FINE else self.step

    def _exponents(self, values: Values, parts: tuple[Part, ...]) -> NDArray[np.int8]:
        """Step sizes, in quarter octaves; wide enough that no level passes the largest.

        Raises:
            CodecError: if a value takes larger steps than there are.
        """
        sizes = np.array([part.size for part in parts])
        wanted = np.array([self._step(part.group) for part in parts])
        starts = np.cumsum([0, *sizes[:-1]])
        squares = np.add.reduceat(np.square(values, dtype=np.float64), starts)
        peaks = np.maximum.reduceat(np.abs(values), starts).astype(np.float64)
        some = peaks > 0
        nearest = np.log2(wanted[some] * np.sqrt(squares / sizes)[some]) * _OCTAVE
        enough = np.log2(peaks[some] / MOST) * _OCTAVE
        found = np.full(len(parts), _ZERO)
        found[some] = np.clip(np.maximum(np.rint(nearest), np.ceil(enough)), _ZERO + 1, None)
        if (found > _LARGEST).any():
            raise CodecError(f"{self.name} holds no value as large as {peaks.max():g}")
        return found.astype(np.int8)


def energies(part: Part) -> list[float]:
    """Energy of each frequency of a tensor's kernels to expect, the mean over them being one."""
    height, width = (_shares(size) for size in part.grid.sides)
    return [len(height) * len(width) * down * across for down in height for across in width]


def _shares(size: int) -> Sequence[float]:
    first, second, rest = SHARES
    if size == 1:
        return (1.0,)
    if size == 2:
        return (first, second + rest)
    return (first, second, *[rest / (size - 2)] * (size - 2))


def _keys(parts: tuple[Part, ...]) -> Iterator[tuple[int, int]]:
    """The classes of levels: number of the group, and band; ``BANDS`` for what is no kernel."""
    for number, (_, members) in enumerate(groupby(parts, key=_group)):
        bands = {int(band) for part in members
                 for band in (bands_in(part.grid) if part.grid.spatial else [BANDS])}  # fmt: skip
        yield from ((number, band) for band in sorted(bands))


@lru_cache(maxsize=4)
def _classes(parts: tuple[Part, ...]) -> tuple[tuple[NDArray[np.int32], bool], ...]:
    """The places of each class's levels, and whether it is of a band beyond kernels' means."""
    bands = []
    for number, (_, members) in enumerate(groupby(parts, key=_group)):
        for part in members:
            own = bands_of(part) if part.grid.spatial else np.full(part.size, BANDS)
            bands.append(own.astype(np.int16) + number * (BANDS + 1))
    numbered = np.concatenate(bands)
    found = []
    for number, band in _keys(parts):
        places = np.flatnonzero(numbered == number * (BANDS + 1) + band).astype(np.int32)
        places.setflags(write=False)
        found.append((places, 0 < band < BANDS))
    return tuple(found)


def _group(part: Part) -> Group:
    return part.group


def _told_apart(exponents: NDArray[np.int8]) -> tuple[Levels, bytes]:
    """Exponents as differences from one to the next, modulo 256, and their model."""
    differences = np.diff(exponents, prepend=np.int8(0)).astype(np.int32)
    return differences, model_of(differences)


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
