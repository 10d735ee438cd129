"""The payload of a message: one byte string, a header of 48 bytes and the codec's bytes.

Header, little-endian: 4 bytes ``CSG`` and the format's version; 4 bytes the codec's name, padded
with zeros; 16 bytes the fingerprint of the manifest; 4 bytes the round; 4 bytes the kind, 0 for a
model and 1 for an update; 8 bytes the number of values; 4 bytes the length of the body; 4 bytes
CRC-32 of everything else.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from csg_core.codecs import Codec

Kind = Literal["model", "update"]

VERSION = 1
_MAGIC = b"CSG" + bytes([VERSION])
_HEADER = struct.Struct("<4s4s16sIIQI")
_CHECKSUM = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CHECKSUM.size
_KINDS: tuple[Kind, ...] = ("model", "update")


class PayloadError(ValueError):
    """A payload that must not be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """What a payload has to be: the receiver knows it all before it reads the first byte.

    Attributes:
        fingerprint: of the manifest, 32 hexadecimal digits.
        size: number of values.
        round: from 1 on.
        kind: a ``model``, or an ``update``, trained minus received.
    """

    fingerprint: str
    size: int
    round: int
    kind: Kind


def payload_bytes(size: int, codec: Codec) -> int:
    """Bytes of a payload of so many values: exact for codecs of fixed rate."""
    return HEADER_BYTES + codec.body_bytes(size)


def encode(values: NDArray[np.float32], label: Label, codec: Codec) -> bytes:
    """The payload of an array, float32 [label.size].

    Raises:
        ValueError: if the array is not of that shape, or the codec cannot hold a value.
    """
    if values.dtype != np.float32 or values.shape != (label.size,):
        raise ValueError(f"array is {values.dtype} {values.shape}; need float32 ({label.size},)")
    body = codec.encode(values)
    header = _header(label, codec, len(body))
    return header + _CHECKSUM.pack(zlib.crc32(body, zlib.crc32(header))) + body


def decode(payload: bytes, label: Label, codec: Codec) -> NDArray[np.float32]:
    """The array of a payload, float32 [label.size], all finite.

    Everything is checked before anything of the payload's size is allocated.

    Raises:
        PayloadError: if the payload is not what ``label`` and ``codec`` say, is damaged, or holds
            NaN or infinity.
    """
    limit = payload_bytes(label.size, codec)
    if not HEADER_BYTES <= len(payload) <= limit:
        raise PayloadError(f"payload of {len(payload):,} bytes; this round takes {limit:,}")
    magic, name, fingerprint, round_, kind, size, length = _HEADER.unpack_from(payload)
    if magic[:3] != _MAGIC[:3]:
        raise PayloadError("payload does not begin with CSG; it is of no csg-fl peer")
    if magic != _MAGIC:
        raise PayloadError(f"payload of format version {magic[3]}; this side speaks {VERSION}")
    if fingerprint.hex() != label.fingerprint:
        raise PayloadError(
            f"payload of another model (fingerprint {fingerprint.hex()[:8]}, here "
            f"{label.fingerprint[:8]}); use the same recipe and code on both sides"
        )
    found = (name, round_, kind, size, length)
    body = memoryview(payload)[HEADER_BYTES:]
    wanted = (_name(codec), label.round, _KINDS.index(label.kind), label.size, len(body))
    for what, here, there in zip(
        ("codec", "round", "kind", "number of values", "length"), wanted, found, strict=True
    ):
        if here != there:
            raise PayloadError(f"payload with {what} {there!r}; expected {here!r}")
    checksum = zlib.crc32(body, zlib.crc32(payload[: _HEADER.size]))
    if _CHECKSUM.unpack_from(payload, _HEADER.size)[0] != checksum:
        raise PayloadError("payload is damaged (checksum)")
    try:
        values = codec.decode(body, label.size)
    except ValueError as error:
        raise PayloadError(f"payload cannot be decoded: {error}") from error
    if not np.isfinite(values).all():
        raise PayloadError("payload holds NaN or infinity")
    return values


def _header(label: Label, codec: Codec, length: int) -> bytes:
    return _HEADER.pack(
        _MAGIC,
        _name(codec),
        bytes.fromhex(label.fingerprint),
        label.round,
        _KINDS.index(label.kind),
        label.size,
        length,
    )


def _name(codec: Codec) -> bytes:
    return codec.name.encode().ljust(4, b"\0")
