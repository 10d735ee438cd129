"""Codecs of fixed rate without state: floating-point numbers one after another, and nothing."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from csg_core.codecs.base import (
    Codec,
    CodecError,
    Values,
    require_finite,
    require_length,
    require_size,
    total,
)
from csg_core.entries import Group, Parts


class _Plain(Codec):
    """Values one after another in a little-endian floating-point format."""

    dtype: ClassVar[np.dtype[np.floating]]

    def encode(self, values: Values, parts: Parts, rng: np.random.Generator) -> bytes:  # noqa: ARG002
        require_size(values, parts, self.name)
        with np.errstate(over="ignore", invalid="ignore"):  # refused in the next lines
            written = values.astype(self.dtype, copy=False)
        if not np.isfinite(written).all():
            require_finite(values, self.name)
            most = np.finfo(self.dtype).max
            raise CodecError(f"{np.abs(values).max():g} is too large for {self.name}, which holds "
                             f"up to {most:g}; use fp32")  # fmt: skip
        return written.tobytes()

    def decode(self, body: bytes | memoryview, parts: Parts) -> Values:
        require_length(body, self.most_bytes(parts), self.name)
        return np.frombuffer(body, self.dtype).astype(np.float32, copy=False)

    def most_bytes(self, parts: Parts) -> int:
        return total(parts) * self.dtype.itemsize

    @property
    def holds_models(self) -> bool:
        return True


@dataclass(frozen=True, slots=True)
class Float32(_Plain):
    """Four bytes a value, nothing lost."""

    name = "fp32"
    exact = True
    dtype = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class Float16(_Plain):
    """Two bytes a value; values up to 65,504, eleven significant bits."""

    name = "fp16"
    dtype = np.dtype("<f2")


@dataclass(frozen=True, slots=True)
class Nothing(Codec):
    """Zero bytes, decoded as zeros: of updates and deltas, values that stay as they are."""

    name = "none"

    @property
    def bears_statistics(self) -> bool:
        return False

    def encode(self, values: Values, parts: Parts, rng: np.random.Generator) -> bytes:  # noqa: ARG002
        require_size(values, parts, self.name)
        return b""

    def decode(self, body: bytes | memoryview, parts: Parts) -> Values:
        require_length(body, 0, self.name)
        return np.zeros(total(parts), np.float32)

    def most_bytes(self, parts: Parts) -> int:  # noqa: ARG002
        return 0

    def drops(self, group: Group) -> bool:  # noqa: ARG002
        return True
