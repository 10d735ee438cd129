"""Entropy-coded scalar quantisation: uniform steps, then a range coder.

At low rates this is within a tenth of a bit of the rate-distortion bound of a Laplacian source
(Sullivan, "Efficient scalar quantization of exponential and Laplacian random variables", IEEE
Transactions on Information Theory, 1996), whence the shift of the levels. His dead zone, which
rounds to zero what lies beyond half a step, saves bytes and leaves less out of one update; but
what it leaves out is learned rounds later, which costs more (docs/codecs.md).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from csg_core.codecs.base import (
    Codec,
    CodecError,
    Values,
    declared,
    require_finite,
    require_length,
    require_size,
    total,
)
from csg_core.codecs.levels import MODEL_BYTES, MOST, Levels, model_of
from csg_core.codecs.levels import code as code_levels
from csg_core.codecs.levels import decode as decode_levels
from csg_core.codecs.spatial import BANDS, bands_in, bands_of, from_frequencies, to_frequencies
from csg_core.entries import NO_GRID, Group, Part, Parts

_SHARES = (0.8, 0.14, 0.06)  # of a kernel's energy, by frequency, to expect of an update
_FINE: tuple[Group, ...] = ("norms", "head", "statistics")
_OCTAVE = 4  # step sizes to a factor of two
_ZERO, _LARGEST = -128, 127  # exponents: of a tensor of zeros, and of the largest steps
_SHIFTS = 32  # resolution of the levels' shift, of a step
_HEAD = MODEL_BYTES + 1  # bytes of a class: its model and its shift
_LEAST, _MOST = 1e-3, 100  # steps, in root mean squares
_FRACTIONS = np.array([1.0, 1.189207115002721, 1.414213562373095, 1.681792830507429])


@dataclass(frozen=True, slots=True)
class Ecsq(Codec):
    """Each tensor in steps of its own; kernels by spatial frequency.

    A value x becomes the level nearest to x / step, and the level k comes back as
    sign(k) * (|k| - shift) * step. Classes of levels, of which each has a model and the shift that
    leaves no bias, are the bands of frequencies in a group's kernels, and what else is in it.

    Attributes:
        step: of the tensor's root mean square: 1.5 takes about 1.5 bits a value without kernels.
        codes: the same of codes, where that is more than ``step``: coarse steps of theirs cost no
            training that was seen (docs/codecs.md).
        fine: the same of norms, head and statistics, where that is less than ``step``: few values
            on which much depends.
        dct: whether kernels are written by frequency.

    Raises:
        ValueError: if steps are not from 0.001 to 100.
    """

    step: float = 1.5
    codes: float = 3.0
    fine: float = 0.6
    dct: bool = True

    name = "ecsq"

    def __post_init__(self) -> None:
        declared(self)
        for setting in fields(self):
            value = getattr(self, setting.name)
            if setting.name != "dct" and not _LEAST <= value <= _MOST:
                wanted = f"give {_LEAST:g} to {_MOST:g}, as {setting.default:g}"
                raise ValueError(f"{setting.name}={value:g}: {wanted}")

    def encode(self, values: Values, parts: Parts, rng: np.random.Generator) -> bytes:  # noqa: ARG002
        require_size(values, parts, self.name)
        used = self._used(parts)
        if not used:
            return b""
        with np.errstate(over="ignore", invalid="ignore"):  # refused in the next lines
            written = to_frequencies(values, used)
        if not np.isfinite(written).all():
            require_finite(values, self.name)
            raise self._too_large(np.inf)
        exponents = self._exponents(written, used)
        steps = np.repeat(_steps(exponents), [part.size for part in used])
        classes, shifts = [_told_apart(exponents)], []
        for places in _classes(used):
            own_steps = steps[places]
            scaled = written[places] / np.where(own_steps > 0, own_steps, np.inf)
            magnitudes = np.floor(np.abs(scaled) + 0.5)
            some = magnitudes > 0
            bias = float((magnitudes - np.abs(scaled))[some].mean()) if some.any() else 0.0
            shifts.append(int(np.clip(round(bias * _SHIFTS), -127, 127)))
            levels = np.copysign(magnitudes, scaled).astype(np.int32)
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
            raise CodecError(f"{len(body):,} bytes of {self.name}; it takes {end:,} and more")
        models = np.frombuffer(body[: end - len(classes)], np.uint8).reshape(-1, MODEL_BYTES)
        shifts = np.frombuffer(body[end - len(classes) : end], np.int8)
        counts = [len(used), *(places.size for places in classes)]
        told = [(count, model.tobytes()) for count, model in zip(counts, models, strict=True)]
        differences, *found = decode_levels(bytes(body[end:]), told)
        exponents = np.cumsum(differences, dtype=np.int8)
        steps = np.repeat(_steps(exponents), [part.size for part in used])
        written = np.zeros(total(used), np.float32)
        for places, levels, shift in zip(classes, found, shifts.tolist(), strict=True):
            magnitudes = np.abs(levels) - np.where(levels != 0, shift / _SHIFTS, 0.0)
            written[places] = np.copysign(magnitudes * steps[places], levels)
        return from_frequencies(written, used)

    def most_bytes(self, parts: Parts) -> int:
        # Two bytes a level are more than enough: bits of a geometric model are linear in the
        # magnitude, so that their mean depends on the mean magnitude alone, which is at most 128,
        # less than 9 bits. Whether a level is zero, whether it is beyond one, and its sign take up
        # to one each. Rounding the model to bytes costs little: a share below 1/512 may round to
        # nothing, and a level of it then costs 24 bits, 0.05 a level, for each of two shares. The
        # last eight bytes are what the coder ends with.
        used = self._used(parts)
        if not used:
            return 0
        return MODEL_BYTES + _HEAD * len([*_keys(used)]) + 2 * len(used) + 2 * total(used) + 8

    def bytes_about(self, parts: Parts) -> int:
        used = self._used(parts)
        bits = 8.0 * (MODEL_BYTES + _HEAD * len([*_keys(used)]) + len(used) / 2 + 4)
        for part in used:
            step = self._step(part.group)
            left = min(1.0, step**2 / 12)  # out of the updates before, evenly over frequencies
            rates = [_rate(step / math.sqrt((1 - left) * energy + left))
                     for energy in energies(part)]  # fmt: skip
            bits += sum(rates) * part.size / len(rates)
        return round(bits / 8)

    def _used(self, parts: Parts) -> tuple[Part, ...]:
        """The tensors that hold values, with kernels only if they are written by frequency."""
        used = tuple(part if self.dct else part._replace(grid=NO_GRID)
                     for part in parts if part.size)  # fmt: skip
        assert all(part.size % part.grid.size == 0 for part in used), "tensors of whole kernels"
        return used

    def _step(self, group: Group) -> float:
        if group == "codes":
            return max(self.step, self.codes)
        return min(self.step, self.fine) if group in _FINE else self.step

    def _exponents(self, values: Values, parts: tuple[Part, ...]) -> NDArray[np.int8]:
        """Step sizes, in quarter octaves; wide enough that no level passes the largest, and no
        wider than what still writes the largest value: of what is never written more and more is
        owed.

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
        most = np.floor(np.log2(2 * peaks[some]) * _OCTAVE)
        found = np.full(len(parts), _ZERO)
        if (beyond := np.ceil(enough) > _LARGEST).any():
            raise self._too_large(peaks[some][beyond].max())
        steps = np.maximum(np.minimum(np.rint(nearest), most), np.ceil(enough))
        found[some] = np.clip(steps, _ZERO + 1, _LARGEST)
        return found.astype(np.int8)

    def _too_large(self, peak: float) -> CodecError:
        most = MOST * float(_steps(np.array([_LARGEST], np.int8))[0])
        kernels = ", kernels by frequency" if self.dct else ""
        return CodecError(f"{self.name} holds no value as large as {peak:g}, but up to {most:.3g}"
                          f"{kernels}; use fp32z or fp32")  # fmt: skip


def energies(part: Part) -> list[float]:
    """Energy to expect of each frequency of a tensor's kernels: [height * width], row by row.

    Their mean is one. ``[1.0]`` of tensors without kernels.
    """
    height, width = (_shares(size) for size in part.grid.sides)
    return [len(height) * len(width) * down * across for down in height for across in width]


def _shares(size: int) -> Sequence[float]:
    first, second, rest = _SHARES
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
def _classes(parts: tuple[Part, ...]) -> tuple[NDArray[np.int32], ...]:
    """The places of each class's levels."""
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
        found.append(places)
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


@lru_cache(maxsize=256)
def _rate(step: float) -> float:
    """Bits a value whose root mean square is one takes in the levels' model, zero or geometric.

    Of normal or of Laplacian values, whichever are more: updates are nearer to the former, and in
    steps of more than three deviations it is the latter's tails that are left.
    """
    beyond = math.exp(-math.sqrt(2) * step / 2)  # a Laplacian value's level is not zero
    mean = 1 / (1 - beyond**2)  # of the magnitudes of such levels
    tails = [math.erfc((k + 0.5) * step / math.sqrt(2)) for k in range(round(9 / step) + 1)]
    return max(_bits(beyond, mean), _bits(tails[0], sum(tails) / tails[0]) if tails[0] else 0.0)


def _bits(beyond: float, mean: float) -> float:
    """Bits a level, if it is not zero with a probability, and geometric of this mean then."""
    return _binary(beyond) + beyond * (1 + mean * _binary(1 - 1 / mean))  # and its sign


def _binary(p: float) -> float:
    """Entropy of an event of probability p, bits."""
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p) if 0 < p < 1 else 0.0
