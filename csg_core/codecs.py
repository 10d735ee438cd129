"""Codecs: flat float32 arrays to bytes and back, the same class for either direction."""

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray


class Codec(ABC):
    """How the values of a payload are written; ``name`` is what recipes and headers call it."""

    name: str

    @abstractmethod
    def encode(self, values: NDArray[np.float32]) -> bytes:
        """The bytes of an array, float32 [n].

        Raises:
            ValueError: if the codec cannot hold a value.
        """

    @abstractmethod
    def decode(self, body: bytes | memoryview, size: int) -> NDArray[np.float32]:
        """The array, float32 [size]; bytes of any other size are refused before allocating.

        Raises:
            ValueError: if the bytes are not those of ``size`` values.
        """

    @abstractmethod
    def body_bytes(self, size: int) -> int:
        """Bytes of ``size`` values: exact, and the bound that a decoder holds payloads to."""


class _Plain(Codec):
    """Values one after another in a little-endian floating-point format."""

    dtype: np.dtype[np.floating]

    def encode(self, values: NDArray[np.float32]) -> bytes:
        with np.errstate(over="ignore"):
            written = values.astype(self.dtype)
        if not np.isfinite(written).all():
            raise ValueError(f"a value is NaN, infinite or too large for {self.name}; use fp32")
        return written.tobytes()

    def decode(self, body: bytes | memoryview, size: int) -> NDArray[np.float32]:
        if len(body) != self.body_bytes(size):
            raise ValueError(
                f"{len(body):,} bytes of {self.name}; {size:,} values are {self.body_bytes(size):,}"
            )
        return np.frombuffer(body, self.dtype).astype(np.float32)

    def body_bytes(self, size: int) -> int:
        return size * self.dtype.itemsize


class Float32(_Plain):
    """Four bytes a value, nothing lost."""

    name = "fp32"
    dtype = np.dtype("<f4")


class Float16(_Plain):
    """Two bytes a value; values up to 65,504, eleven significant bits."""

    name = "fp16"
    dtype = np.dtype("<f2")


CODECS: dict[str, Codec] = {codec.name: codec for codec in (Float32(), Float16())}


def codec_named(name: str) -> Codec:
    """The codec of a recipe.

    Raises:
        ValueError: if there is none of this name.
    """
    if name not in CODECS:
        raise ValueError(f"codec {name!r} is unknown; use one of {', '.join(CODECS)}")
    return CODECS[name]
