"""What a codec is: flat float32 arrays to bytes and back, the same class for either direction."""

import math
from abc import ABC, abstractmethod
from dataclasses import fields
from typing import ClassVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

from csg_core.entries import Group, Parts

Values = NDArray[np.float32]
FLOAT16_MAX = float(np.finfo(np.float16).max)  # 65,504
FRAME_BYTES = 4


class CodecError(ValueError):
    """Values that a codec cannot hold, or bytes that are not a codec's; the message says which."""


class Codec(ABC):
    """How the values of a payload are written.

    A codec is a frozen dataclass of settings, of which ``declared`` makes the numbers what their
    fields say: payloads name it by its repr. Sender and receiver know the ``parts``, the tensors in
    their order; whatever else the receiver needs is in the bytes. What the receiver will have is
    what ``decode`` gives: a sender that has to know decodes its own bytes.

    Attributes:
        name: what recipes call it.
        exact: whether values of float32 come back as they were.
    """

    name: ClassVar[str]
    exact: ClassVar[bool] = False

    @abstractmethod
    def encode(self, values: Values, parts: Parts, rng: np.random.Generator) -> bytes:
        """The bytes of an array, float32 [sum of the parts]; ``rng`` is for stochastic rounding.

        Raises:
            CodecError: if the array is not of that size, or the codec cannot hold a value.
        """

    @abstractmethod
    def decode(self, body: bytes | memoryview, parts: Parts) -> Values:
        """The array, float32 [sum of the parts], in memory of some ten times its size at most.

        It may be read-only and share the body's memory. Foreign bytes may give NaN and infinity,
        which ``payload.decode`` refuses.

        Raises:
            CodecError: if the bytes are not those of such an array.
        """

    @abstractmethod
    def most_bytes(self, parts: Parts) -> int:
        """The most bytes that ``encode`` makes, to which receivers hold payloads."""

    def bytes_about(self, parts: Parts) -> int:
        """The bytes to expect: exact for codecs of fixed rate."""
        return self.most_bytes(parts)

    def drops(self, group: Group) -> bool:  # noqa: ARG002
        """Whether nothing is written of a group's tensors, which stay as they are."""
        return False

    @property
    def holds_models(self) -> bool:
        """Whether a model is of use after it, and not only what is new in one."""
        return self.exact

    @property
    def bears_statistics(self) -> bool:
        """Whether running statistics can be among the values, which are of other sizes than weights
        and among each other.
        """
        return True

    @property
    def bears_feedback(self) -> bool:
        """Whether what it leaves out stays of the size of few updates, or deltas, when it is added
        to what is encoded next.
        """
        return True


def declared(codec: Codec) -> None:
    """Turn the numbers of a codec, a frozen dataclass, into those that its fields declare.

    So that codecs which are equal have equal reprs. Raises ValueError for a fraction in place of a
    whole number or of a switch.
    """
    kinds = get_type_hints(type(codec))
    for setting in fields(codec):  # type: ignore[arg-type]
        kind, value = kinds[setting.name], getattr(codec, setting.name)
        if kind in (int, float, bool):
            if not isinstance(value, int | float | np.number | np.bool_):
                raise ValueError(f"{setting.name}={value!r}: give a number")
            if kind is not float and (not math.isfinite(value) or value != kind(value)):
                wanted = "a whole number" if kind is int else "true or false"
                raise ValueError(f"{setting.name}={value:g}: give {wanted}")
            object.__setattr__(codec, setting.name, kind(value))


def framed(body: bytes) -> bytes:
    """Bytes behind their length, in four bytes."""
    return len(body).to_bytes(FRAME_BYTES, "little") + body


def unframed(rest: memoryview, name: str) -> tuple[memoryview, memoryview]:
    """The first framed bytes, and what follows; raises CodecError if they are not whole."""
    end = FRAME_BYTES + int.from_bytes(rest[:FRAME_BYTES], "little")
    if len(rest) < max(end, FRAME_BYTES):
        raise CodecError(f"the bytes of {name} end early: {len(rest):,} are left")
    return rest[FRAME_BYTES:end], rest[end:]


def total(parts: Parts) -> int:
    """Number of values of all parts."""
    return sum(part.size for part in parts)


def require_size(values: Values, parts: Parts, name: str) -> None:
    """Raise CodecError unless there is a value for each place of the parts."""
    if values.shape != (total(parts),):
        raise CodecError(f"{name} is given values {values.shape}; the tensors take {total(parts)}")


def require_finite(values: Values, name: str) -> None:
    """Raise CodecError for NaN or infinity."""
    finite = np.isfinite(values)
    if not finite.all():
        value = values[np.argmin(finite)]
        raise CodecError(f"a value is {value}; {name} holds no NaN or infinity")


def require_length(body: bytes | memoryview, wanted: int, name: str) -> None:
    """Raise CodecError unless the body has the only possible length."""
    if len(body) != wanted:
        raise CodecError(f"{len(body):,} bytes of {name}; it takes {wanted:,}")
