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

from csg_core.codecs.base import Codec, CodecError, Values, require_finite, total
from csg_core.exchange import Parts

TAPS = 2  # deltas that a prediction is made of, at most
_UNIT = 32  # a factor is so many of its units
_LARGEST = 127


@dataclass(frozen=True, slots=True)
class Predicted(Codec):
    """What a codec makes of values minus deltas, each times a factor for every group of tensors.

    The factors, which leave the least, are sent, one byte each; so the receiver needs no settings.
    They are 0 of deltas that the sender does not hold, and the receiver may hold more.

    Attributes:
        codec: of what differs from the prediction.
        deltas: the last ones, float32 [sum of the parts], the newest first.
    """

    codec: Codec
    deltas: tuple[Values, ...] = field(default=(), repr=False, compare=False)

    name = "predicted"

    def encode(self, values: Values, parts: Parts, rng: np.random.Generator) -> bytes:
        with np.errstate(over="ignore", invalid="ignore"):  # refused in the next line
            factors = self._factors(values, parts)
            differences = values - self._prediction(factors, parts)
        require_finite(differences, self.name)
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
        return TAPS * len(_groups(parts)) + self.codec.most_bytes(parts)

    def bytes_about(self, parts: Parts) -> int:
        return TAPS * len(_groups(parts)) + self.codec.bytes_about(parts)

    @property
    def holds_models(self) -> bool:
        return self.codec.holds_models

    def _read(
        self, body: bytes | memoryview, parts: Parts
    ) -> tuple[NDArray[np.int8], bytes | memoryview]:
        shape = (len(_groups(parts)), TAPS)
        end = shape[0] * shape[1]
        if len(body) < end:
            raise CodecError("the body ends early")
        return np.frombuffer(body[:end], np.int8).reshape(shape), body[end:]

    def _factors(self, values: Values, parts: Parts) -> NDArray[np.int8]:
        """In units, int8 [groups, TAPS]: those of least squares, or none if they leave more."""
        groups = _groups(parts)
        found = np.zeros((len(groups), TAPS), np.int8)
        for row, places in zip(found, groups, strict=True):
            wanted = values[places].astype(np.float64)
            taps = np.array([delta[places] for delta in self.deltas[:TAPS]], np.float64)
            sizes = np.sqrt(np.square(taps).sum(axis=-1))
            if not sizes.any() or not np.isfinite(wanted).all():
                continue
            sizes[sizes == 0] = 1
            alike = taps / sizes[:, None]
            best = np.linalg.lstsq(alike @ alike.T, alike @ wanted, rcond=1e-6)[0] / sizes
            units = np.clip(np.rint(_UNIT * best), -_LARGEST, _LARGEST)
            if np.square(wanted - units / _UNIT @ taps).sum() < np.square(wanted).sum():
                row[: len(taps)] = units
        return found

    def _prediction(self, factors: NDArray[np.int8], parts: Parts) -> Values:
        """Products and sums of float32, one by one, so that both ends come to the same bits."""
        predicted = np.zeros(total(parts), np.float32)
        for row, places in zip(factors, _groups(parts), strict=True):
            for units, delta in zip(row.tolist(), self.deltas, strict=False):
                if units:
                    predicted[places] += np.float32(units / _UNIT) * delta[places]
        return predicted


def _reach(factors: NDArray[np.int8]) -> int:
    used = np.flatnonzero(factors.any(axis=0))
    return int(used[-1]) + 1 if used.size else 0


def _groups(parts: Parts) -> list[slice]:
    """The places of each group's values; groups stand one after the other."""
    sizes = [sum(part.size for part in own) for _, own in groupby(parts, key=attrgetter("group"))]
    ends = np.cumsum(sizes).tolist()
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]
