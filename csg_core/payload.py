"""The payload of a message: one byte string, a header of 56 bytes and the codec's bytes.

Header, little-endian: 4 bytes ``CSG`` and the format's version; 4 bytes CRC-32 of the codec's
settings; 16 bytes the fingerprint of the manifest; then numbers of 4 bytes: the round; the kind, 0
for a model, 1 for an update, 2 for a delta; the version of the model that the payload makes or was
trained from; the digest of that model; the number of tensors; the number of values; the length of
the body; and CRC-32 of everything else.
"""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from csg_core.codecs import Codec, CodecError, Parts, total
from csg_core.codecs.base import Values

Kind = Literal["model", "update", "delta"]

VERSION = 5
_MAGIC = b"CSG" + bytes([VERSION])
_HEADER = struct.Struct("<4s4s16s7I")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size
_KINDS: tuple[Kind, ...] = get_args(Kind)


class PayloadError(ValueError):
    """A payload that must not be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a payload has to be: the receiver knows it before it reads the first byte.

    Attributes:
        fingerprint: of the manifest, 32 hexadecimal digits.
        parts: every tensor, as codecs take it.
        round: from 1 on.
        kind: a ``model``; a ``delta``, the next model minus the one before; or an ``update``,
            trained minus received.
        version: of the model that the payload makes, or was trained from.
        digest: of that model.
    """

    fingerprint: str
    parts: Parts
    round: int
    kind: Kind
    version: int
    digest: int

    @property
    def size(self) -> int:
        """Number of values."""
        return total(self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a payload says of itself, beside the model that it is of; as in a ``Label``.

    Attributes:
        codec: four bytes that stand for the codec and its settings.
        tensors, values: how many there are.
        length: of the codec's bytes.
    """

    codec: bytes
    round: int
    kind: Kind
    version: int
    digest: int
    tensors: int
    values: int
    length: int

    @property
    def end(self) -> int:
        """Of the payload, in bytes from its beginning."""
        return HEADER_BYTES + self.length


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passed:
    """A payload between parties of one process: the values, and never bytes.

    It stands for a payload of the codec ``fp32``, and is as long.

    Attributes:
        values: float32 [size], to be left as they are: of a model on the CPU, of an update where it
            was trained.
        kind, round, version: as in a ``Label``.
    """

    values: Tensor
    kind: Kind
    round: int
    version: int

    def __len__(self) -> int:
        return HEADER_BYTES + self.values.nbytes

    def opened(self, size: int, kind: Kind, round_: int, version: int | None = None) -> Tensor:
        """The values, float32 [size], if they are what is expected; None takes any version.

        Raises:
            PayloadError: if not.
        """
        wanted = (kind, round_, self.version if version is None else version)
        found = (self.kind, self.round, self.version)
        if found != wanted:
            raise PayloadError(
                "{} of round {}, version {}".format(*found)
                + "; expected {} of round {}, version {}".format(*wanted)
            )
        if self.values.shape != (size,) or self.values.dtype != torch.float32:
            shape = tuple(self.values.shape)
            raise PayloadError(f"{self.values.dtype} {shape}; expected float32 ({size},)")
        return self.values


Payload = bytes | Passed


def digest_of(model: Values) -> int:
    """CRC-32 of the values, float32: by it, sender and receiver know that theirs are equal."""
    return zlib.crc32(model.astype("<f4").tobytes())


def payload_bytes(parts: Parts, codec: Codec) -> int:
    """Bytes of a payload to expect: exact for codecs of fixed rate."""
    return HEADER_BYTES + codec.bytes_about(parts)


def most_payload_bytes(parts: Parts, codec: Codec) -> int:
    """The most bytes of a payload, to which receivers hold it."""
    return HEADER_BYTES + codec.most_bytes(parts)


def encode(values: Values, label: Label, codec: Codec, rng: np.random.Generator) -> bytes:
    """The payload of an array, float32 [label.size].

    Raises:
        ValueError: if the array is not of that shape, the codec cannot hold a value, or the label
            has a number that does not go into four bytes.
    """
    if values.dtype != np.float32 or values.shape != (label.size,):
        raise ValueError(f"array is {values.dtype} {values.shape}; need float32 ({label.size},)")
    return seal(codec.encode(values, label.parts, rng), label, codec)


def seal(body: bytes, label: Label, codec: Codec) -> bytes:
    """The payload of a codec's bytes; raises ValueError as ``encode`` does."""
    numbers = {
        "round": label.round,
        "kind": _KINDS.index(label.kind),
        "version": label.version,
        "digest": label.digest,
        "number of tensors": len(label.parts),
        "number of values": label.size,
        "length": len(body),
    }
    for name, number in numbers.items():
        if not 0 <= number < 2**32:
            raise ValueError(f"{name} {number:,} does not go into four bytes")
    fingerprint = bytes.fromhex(label.fingerprint)
    header = _HEADER.pack(_MAGIC, _identity(codec), fingerprint, *numbers.values())
    return header + _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(header))) + body


def header_of(payload: bytes | memoryview, fingerprint: str) -> Header:
    """Read the header of the payload that ``payload`` begins with.

    Raises:
        PayloadError: if it is none of this format and model, or is not whole.
    """
    if len(payload) < HEADER_BYTES:
        raise PayloadError(f"payload of {len(payload):,} bytes; a header is {HEADER_BYTES}")
    magic, codec, found, round_, kind, *numbers, length = _HEADER.unpack_from(payload)
    if magic[:3] != _MAGIC[:3]:
        raise PayloadError("payload does not begin with CSG; it is of no csg-fl peer")
    if magic != _MAGIC:
        raise PayloadError(f"payload of format version {magic[3]}; this side speaks {VERSION}")
    if found.hex() != fingerprint:
        raise PayloadError(
            f"payload of another model (fingerprint {found.hex()[:8]}, here {fingerprint[:8]}); "
            "use the same recipe and code on both sides"
        )
    if kind >= len(_KINDS):
        raise PayloadError(f"payload of kind {kind}; expected 0 to {len(_KINDS) - 1}")
    if len(payload) < HEADER_BYTES + length:
        raise PayloadError(f"payload of {len(payload):,} bytes; its header says {length:,} more")
    version, digest, tensors, values = numbers
    return Header(
        codec=codec, round=round_, kind=_KINDS[kind], version=version, digest=digest,
        tensors=tensors, values=values, length=length,
    )  # fmt: skip


def body_of(payload: bytes | memoryview) -> memoryview:
    """The codec's bytes of a payload that is known to be whole."""
    return memoryview(payload)[HEADER_BYTES:]


def codec_of(header: Header, codecs: Sequence[Codec]) -> Codec:
    """Which of the codecs a payload names; the first, which ``decode`` then refuses, if none."""
    return next((codec for codec in codecs if _identity(codec) == header.codec), codecs[0])


def decode(payload: bytes | memoryview, label: Label, codec: Codec) -> Values:
    """The array of a payload, float32 [label.size], all finite; it may be read-only.

    Everything is checked before anything of the payload's size is allocated.

    Raises:
        PayloadError: if the payload is not what ``label`` and ``codec`` say, is damaged, or holds
            NaN or infinity.
    """
    limit = most_payload_bytes(label.parts, codec)
    if not HEADER_BYTES <= len(payload) <= limit:
        raise PayloadError(f"payload of {len(payload):,} bytes; "
                           f"this round takes {HEADER_BYTES} to {limit:,}")  # fmt: skip
    header = header_of(payload, label.fingerprint)
    if header.codec != _identity(codec):
        raise PayloadError(f"payload of another codec; expected {codec}")
    body = body_of(payload)
    for what, there, here in (
        ("kind", header.kind, label.kind),
        ("round", header.round, label.round),
        ("version", header.version, label.version),
        ("digest", header.digest, label.digest),
        ("number of tensors", header.tensors, len(label.parts)),
        ("number of values", header.values, label.size),
        ("length", header.length, len(body)),
    ):
        if here != there:
            raise PayloadError(f"payload with {what} {there!r}; expected {here!r}")
    checksum = zlib.crc32(body, zlib.crc32(payload[: _HEADER.size]))
    if _CHECKSUM.unpack_from(payload, _HEADER.size)[0] != checksum:
        raise PayloadError("payload is damaged (checksum)")
    try:
        with np.errstate(all="ignore"):  # whatever comes of foreign bits is looked at below
            values = codec.decode(body, label.parts)
    except CodecError as error:
        raise PayloadError(f"payload cannot be decoded: {error}") from error
    if not np.isfinite(values).all():
        raise PayloadError("payload holds NaN or infinity")
    return values


def _identity(codec: Codec) -> bytes:
    """Four bytes that stand for a codec and all its settings."""
    return zlib.crc32(repr(codec).encode()).to_bytes(4, "little")
