"""Floating-point numbers in fewer bytes, every bit kept: byte planes, range-coded where that helps.

The exponents of weights take few values, and a difference of two numbers of float32 (an update)
ends in zeros; the other bits of a mantissa are noise, which nothing makes shorter. Splitting by
bytes is known from scientific data: Masui et al., "Bitshuffle", Astronomy and Computing, 2015.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from csg_core.codecs.base import (
    FRAME_BYTES,
    Codec,
    CodecError,
    Values,
    framed,
    require_finite,
    require_size,
    total,
    unframed,
)
from csg_core.codecs.entropy import code, entropy_bits
from csg_core.codecs.entropy import decode as decode_symbols
from csg_core.entries import Parts

_PLANES = 4
_ALPHABET = 256
_WORTH = 0.99  # of a plane's bytes; one that would save less is left as it is
_EXPONENT_BITS = 3  # of a value, as measured on ResNets and their updates


@dataclass(frozen=True, slots=True)
class Float32Lossless(Codec):
    """About 3.4 bytes a value for weights and 2.6 to 3.3 for updates, nothing lost.

    The words are turned by one bit, so that the last of their four bytes is the exponent and the
    first begins with the sign. Each plane follows its length: a byte a value, or fewer, of symbols.
    """

    name = "fp32z"
    exact = True

    def encode(self, values: Values, parts: Parts, rng: np.random.Generator) -> bytes:  # noqa: ARG002
        require_size(values, parts, self.name)
        require_finite(values, self.name)
        words = values.astype("<f4").view("<u4")
        turned = (words << np.uint32(1)) | (words >> np.uint32(31))
        planes = turned.astype("<u4").view(np.uint8).reshape(total(parts), _PLANES).T
        return b"".join(framed(_written(plane)) for plane in planes)

    def decode(self, body: bytes | memoryview, parts: Parts) -> Values:
        count, rest = total(parts), memoryview(body)
        turned = np.zeros((count, _PLANES), np.uint8)
        for number in range(_PLANES):
            written, rest = unframed(rest, self.name)
            if len(written) > count:
                raise CodecError(
                    f"a plane of {self.name} has {len(written):,} bytes; it takes {count:,}"
                )
            turned[:, number] = _plane(written, count)
        if len(rest):
            raise CodecError(f"{len(rest):,} bytes of {self.name} are left over")
        words = turned.view("<u4")[:, 0]
        values: Values = ((words >> np.uint32(1)) | (words << np.uint32(31))).view("<f4")
        return values.astype(np.float32, copy=False)

    def most_bytes(self, parts: Parts) -> int:
        return _PLANES * (FRAME_BYTES + total(parts))

    def bytes_about(self, parts: Parts) -> int:
        coded = min(total(parts), _ALPHABET + total(parts) * _EXPONENT_BITS // 8)
        return _PLANES * FRAME_BYTES + (_PLANES - 1) * total(parts) + coded


def _written(plane: NDArray[np.uint8]) -> bytes:
    if entropy_bits(plane) / 8 + _ALPHABET < _WORTH * plane.size:
        symbols = code(plane.astype(np.int32), _ALPHABET)
        if len(symbols) < plane.size:
            return symbols
    return plane.tobytes()


def _plane(written: memoryview, count: int) -> NDArray[np.uint8]:
    if len(written) == count:
        return np.frombuffer(written, np.uint8)
    return decode_symbols(written, count, _ALPHABET).astype(np.uint8)
