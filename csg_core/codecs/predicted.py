"""Values written as what differs from a prediction, by deltas that both ends hold.

Updates and deltas go on where the ones before went: codes and norms because their gradients change
slowly, all of the model by the server's momentum. Linear prediction of the next from the last ones
is what DPCM does in speech and video (Jayant and Noll, "Digital Coding of Waveforms", 1984, chapter
6), and leaves less to be written in the same steps.
"""

from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from csg_core.codecs.base import Codec, CodecError, Values, require_finite, require_size, total
from csg_core.entries import Parts

TAPS = 2  # deltas that a prediction is made of, at most
_UNIT = 32  # units of a factor to one
_LARGEST = 127  # units, 3.97
_AT_ONCE = 4096  # values


@dataclass(frozen=True, slots=True)
class Predicted(Codec):
    """What a codec makes of values minus deltas, each times a factor for every group of tensors.

    The factors are sent, one byte each, so the receiver needs no settings. They are 0 of deltas
    that the sender does not hold; the receiver may hold more. Groups that the codec drops have
    none, and stay as they are.

    Attributes:
        codec: of what differs from the prediction.
        deltas: the last ones, float32 [sum of the parts], the newest first.
    """

    codec: Codec
    deltas: tuple[Values, ...] = field(default=(), repr=False, compare=False)

    name = "predicted"

    def encode(self, values: Values, parts: Parts, rng: np.random.Generator) -> bytes:
        require_size(values, parts, self.name)
        with np.errstate(over="ignore", invalid="ignore"):  # refused in the next lines
            factors = self._factors(values, parts)
            differences = values - self._prediction(factors, parts)
        if not np.isfinite(differences).all():
            require_finite(values, self.name)
            most = np.abs(values).max(initial=0)
            raise CodecError(f"{most:g} is too large for {self.name}; set wire.predict=false")
        return factors.tobytes() + self.codec.encode(differences, parts, rng)

    def decode(self, body: bytes | memoryview, parts: Parts) -> Values:
        factors, rest = self._read(body, parts)
        if (used := _reach(factors)) > len(self.deltas):
            raise CodecError(f"the body builds on {used} deltas; {len(self.deltas)} are held")
        return self.codec.decode(rest, parts) + self._prediction(factors, parts)

    def reach(self, body: bytes | memoryview, parts: Parts) -> int:
        """How many of the last deltas a receiver has to hold.

        Raises:
            CodecError: if the body ends before it says so.
        """
        return _reach(self._read(body, parts)[0])

    def most_bytes(self, parts: Parts) -> int:
        return TAPS * len(self._groups(parts)) + self.codec.most_bytes(parts)

    def bytes_about(self, parts: Parts) -> int:
        return TAPS * len(self._groups(parts)) + self.codec.bytes_about(parts)

    @property
    def bears_feedback(self) -> bool:
        return self.codec.bears_feedback

    def _read(
        self, body: bytes | memoryview, parts: Parts
    ) -> tuple[NDArray[np.int8], bytes | memoryview]:
        shape = (len(self._groups(parts)), TAPS)
        end = shape[0] * TAPS
        if len(body) < end:
            raise CodecError(f"{len(body):,} bytes of {self.name}; it takes {end:,} and more")
        return np.frombuffer(body[:end], np.int8).reshape(shape), body[end:]

    def _factors(self, values: Values, parts: Parts) -> NDArray[np.int8]:
        """In units, int8 [groups, TAPS]."""
        groups = self._groups(parts)
        found = np.zeros((len(groups), TAPS), np.int8)
        for row, places in zip(found, groups, strict=True):
            arrays = [values, *self.deltas[:TAPS]]
            products = _products([array[places] for array in arrays])
            if len(arrays) > 1 and np.isfinite(products).all():
                row[: len(arrays) - 1] = _best(products)
        return found

    def _prediction(self, factors: NDArray[np.int8], parts: Parts) -> Values:
        """Products and sums of float32, one by one, so that both ends come to the same bits."""
        predicted = np.zeros(total(parts), np.float32)
        for row, places in zip(factors, self._groups(parts), strict=True):
            for units, delta in zip(row.tolist(), self.deltas, strict=False):
                if units:
                    predicted[places] += np.float32(units / _UNIT) * delta[places]
        return predicted

    def _groups(self, parts: Parts) -> list[slice]:
        """The places of each group's values that are written; a group's tensors stand together."""
        found, end = [], 0
        for group, own in groupby(parts, key=attrgetter("group")):
            start, end = end, end + sum(part.size for part in own)
            if not self.codec.drops(group):
                found.append(slice(start, end))
        return found


def _products(arrays: list[Values]) -> NDArray[np.float64]:
    """Each array times each, float64 [arrays, arrays]; few values at a time, which one thread sums
    whatever there are.
    """
    found = np.zeros((len(arrays), len(arrays)))
    for start in range(0, arrays[0].size, _AT_ONCE):
        some = np.array([array[start : start + _AT_ONCE] for array in arrays], np.float64)
        found += some @ some.T
    return found


def _best(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors in units: of least squares, of the newest delta alone, or none, as leaves least.

    ``products`` are those of what is wanted, and of the deltas after it.
    """
    square, onto, among = products[0, 0], products[0, 1:], products[1:, 1:]
    sizes = np.sqrt(among.diagonal())
    sizes = np.where(sizes > 0, sizes, 1)
    alone = np.zeros(len(sizes))
    alone[0] = onto[0] / sizes[0]
    exact = [np.linalg.lstsq(among / np.outer(sizes, sizes), onto / sizes, rcond=1e-6)[0], alone]
    tried = [np.clip(np.rint(_UNIT * of / sizes), -_LARGEST, _LARGEST) for of in exact]
    left = [square + units / _UNIT @ (among @ units / _UNIT - 2 * onto) for units in tried]
    best = int(np.argmin(left))
    return tried[best] if left[best] < square else 0 * alone


def _reach(factors: NDArray[np.int8]) -> int:
    used = np.flatnonzero(factors.any(axis=0))
    return int(used[-1]) + 1 if used.size else 0
