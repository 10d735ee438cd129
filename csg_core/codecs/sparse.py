"""Few values of many: ternary, top-k, and sparse ternary compression."""

from dataclasses import dataclass

import numpy as np

from csg_core.codecs.base import (
    FLOAT16_MAX,
    Codec,
    CodecError,
    Values,
    declared,
    require_finite,
    require_length,
    require_size,
    total,
)
from csg_core.codecs.entropy import code
from csg_core.codecs.entropy import decode as decode_symbols
from csg_core.entries import Parts

_TRITS = 3 ** np.arange(5)  # five to a byte
_ALPHABET = 3
_CUT = 0.7  # of the mean magnitude


@dataclass(frozen=True, slots=True)
class Ternary(Codec):
    """Minus, zero or plus one scale a tensor, 1.6 bits a value (Li et al., 2016, equation 6).

    Magnitudes under 0.7 of the tensor's mean become zero; the scale is the mean of the others.
    """

    name = "ternary"

    def encode(self, values: Values, parts: Parts, rng: np.random.Generator) -> bytes:  # noqa: ARG002
        require_size(values, parts, self.name)
        require_finite(values, self.name)
        sizes = [part.size for part in parts if part.size]
        starts = np.cumsum([0, *sizes])[:-1]
        magnitudes = np.abs(values)
        sums = np.add.reduceat(magnitudes, starts, dtype=np.float64) if sizes else np.zeros(0)
        kept = magnitudes > np.repeat(_CUT * sums / sizes, sizes)
        counts = np.add.reduceat(kept, starts, dtype=np.int64) if sizes else np.zeros(0)
        above = np.add.reduceat(np.where(kept, magnitudes, 0), starts, dtype=np.float64)
        scales = np.divide(above, counts, out=np.zeros(len(sizes)), where=counts > 0)
        digits = np.zeros(-(-values.size // 5) * 5, np.int64)
        digits[: values.size] = np.where(kept, np.sign(values), 0) + 1
        packed = (digits.reshape(-1, 5) @ _TRITS).astype(np.uint8)
        return scales.astype("<f4").tobytes() + packed.tobytes()

    def decode(self, body: bytes | memoryview, parts: Parts) -> Values:
        require_length(body, self.most_bytes(parts), self.name)
        sizes = [part.size for part in parts if part.size]
        scales = np.frombuffer(body[: 4 * len(sizes)], "<f4")
        packed = np.frombuffer(body[4 * len(sizes) :], np.uint8)
        if (packed >= _ALPHABET**5).any():
            raise CodecError(f"a byte of {self.name} is no five digits")
        digits = (packed[:, None] // _TRITS % _ALPHABET).reshape(-1)[: total(parts)]
        values: Values = ((digits - 1) * np.repeat(scales, sizes)).astype(np.float32)
        return values

    def most_bytes(self, parts: Parts) -> int:
        return 4 * sum(1 for part in parts if part.size) + -(-total(parts) // 5)


@dataclass(frozen=True, slots=True)
class TopK(Codec):
    """The largest magnitudes of all values together; the others are zero.

    Of equal magnitudes the first places are kept.

    With ``ternary`` they are sent as plus or minus their mean magnitude: sparse ternary compression
    (Sattler et al., 2019, algorithm 1), its positions range-coded instead of Golomb-coded.

    Attributes:
        fraction: of the values that is kept; at least one is.
        ternary: whether magnitudes are replaced by their mean; else they are sent as fp16.
    """

    fraction: float = 0.01
    ternary: bool = False

    name = "topk"

    @property
    def bears_statistics(self) -> bool:
        return False  # they are the largest values, and nothing else would be sent

    def __post_init__(self) -> None:
        declared(self)
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction:g}: give a number above 0, up to 1, as 0.01")

    def encode(self, values: Values, parts: Parts, rng: np.random.Generator) -> bytes:  # noqa: ARG002
        require_size(values, parts, self.name)
        require_finite(values, self.name)
        count = self._count(parts)
        if not count:
            return b""
        magnitudes = np.abs(values)
        least = np.partition(magnitudes, -count)[-count]
        kept, alike = magnitudes > least, np.flatnonzero(magnitudes == least)
        kept[alike[: count - np.count_nonzero(kept)]] = True
        chosen = np.flatnonzero(kept)
        symbols = np.ones(values.size, np.int32)
        symbols[chosen] += np.where(values[chosen] < 0, -1, 1)
        sent = magnitudes[chosen]
        if self.ternary:
            sent = sent.mean(keepdims=True, dtype=np.float64)
        elif sent.max() > FLOAT16_MAX:
            raise CodecError(f"{sent.max():g} is too large for {self.name}, which sends values in "
                             f"float16, up to {FLOAT16_MAX:g}; use fp32")  # fmt: skip
        return sent.astype(self._format).tobytes() + code(symbols, _ALPHABET)

    def decode(self, body: bytes | memoryview, parts: Parts) -> Values:
        values = np.zeros(total(parts), np.float32)
        count = self._count(parts)
        head = np.dtype(self._format).itemsize * (min(count, 1) if self.ternary else count)
        if len(body) < head or (not count and len(body)):
            raise CodecError(f"{len(body):,} bytes of {self.name}; it takes {head:,} and more")
        if not count:
            return values
        signs = decode_symbols(body[head:], values.size, _ALPHABET) - 1
        chosen = np.flatnonzero(signs)
        if len(chosen) != count:
            raise CodecError(f"{len(chosen):,} values of {self.name}; it takes {count:,}")
        magnitudes = np.frombuffer(body[:head], self._format).astype(np.float32)
        values[chosen] = signs[chosen] * magnitudes
        return values

    def most_bytes(self, parts: Parts) -> int:
        return 2 * self._count(parts) + 4 + _ALPHABET + total(parts) // 4 + 8

    def bytes_about(self, parts: Parts) -> int:
        p, size, count = self.fraction, total(parts), self._count(parts)
        bits = -p * np.log2(p) - (1 - p) * np.log2(1 - p) + p if p < 1 else 1.0
        head = 4 if self.ternary else 2 * count
        return round(head + _ALPHABET + bits * size / 8)

    @property
    def _format(self) -> str:
        return "<f4" if self.ternary else "<f2"

    def _count(self, parts: Parts) -> int:
        size = total(parts)
        return min(size, max(1, round(self.fraction * size)))
