"""The doors that strangers' bytes come through, one function each, as a fuzzer wants them.

A door is given any bytes. It mends what would stop them at the first check (header, lengths,
checksum, and the digests that an attacker can compute as well), hands them to the code as a message
would, and raises AssertionError if that gave anything but a sound result or a refusal in one line.
"""

import struct
import zlib
from collections.abc import Callable
from functools import cache

import numpy as np
from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict

from csg_core.broadcast import MOST_FRAMES, Channel, Held
from csg_core.codecs import CODECS, Codec, CodecError, Float16, Predicted, codec_named
from csg_core.codecs.base import Values
from csg_core.codecs.predicted import TAPS
from csg_core.entries import KernelGrid, Part
from csg_core.payload import HEADER_BYTES, Label, PayloadError, decode, seal
from federation.messages import (
    ReplyError,
    evaluation_report_in,
    interface_in,
    payload_bytes_in,
    payload_in,
    train_report_in,
)

FINGERPRINT = "0123456789abcdef0123456789abcdef"
PARTS = (Part("generator", 90, KernelGrid((3, 3), 5)), Part("codes", 12), Part("codes", 0),
         Part("codes", 30), Part("norms", 7), Part("other", 1), Part("statistics", 16))  # fmt: skip
SIZE = 156
ROUND = 5
MOST_EXAMPLES = 50_000
# every codec as it comes, and with settings that take other ways through the code
LINES = (
    *sorted(CODECS),
    "uniform:bits=3,block=8",
    "uniform:bits=1,block=32,rotate=true",
    "topk:fraction=0.2,ternary=true",
    "ecsq:step=0.05,codes=0.05",
    "ecsq:step=4; norms=fp16; statistics=none",
    "topk:fraction=0.1; codes=uniform:bits=2,block=16; norms=fp32; other=ternary",
)
# flags of the second byte
RAW = 1  # what follows is a whole payload, not only a codec's bytes
WHOLE = 2  # the client's channel sends whole models, not deltas
FIT = 4  # a codec's bytes are cut or repeated to the length that it takes at most
PREDICTED = 8  # the codec writes what the deltas held do not foretell


@cache
def codec(number: int) -> Codec:
    """The codec that the first byte of an input names."""
    return codec_named(LINES[number % len(LINES)])


def label(kind: str = "update", version: int = ROUND) -> Label:
    """What the server expects in this round."""
    return Label(fingerprint=FINGERPRINT, parts=PARTS, round=ROUND, kind=kind, version=version,
                 digest=7)  # type: ignore[arg-type]  # fmt: skip


@cache
def held() -> Held:
    """What the client holds: version 3, and those before that predictions need."""
    rng = np.random.default_rng(0)
    values, *before = (rng.normal(size=(3, SIZE)).astype(np.float16)).astype(np.float32)
    return Held(3, values, tuple(before))


def mended(payload: bytes) -> bytes:
    """The payload with its magic, fingerprint, length and checksum made right."""
    if len(payload) < HEADER_BYTES:
        return payload
    head, body = bytearray(payload[:HEADER_BYTES]), payload[HEADER_BYTES:]
    head[:4] = seal(b"", label(), codec(0))[:4]
    head[8:24] = bytes.fromhex(FINGERPRINT)
    head[-8:-4] = struct.pack("<I", len(body))
    head[-4:] = struct.pack("<I", zlib.crc32(body, zlib.crc32(bytes(head[:-4]))))
    return bytes(head) + body


def fitted(body: bytes, chosen: Codec) -> bytes:
    """The bytes, as many as the codec takes at most, which are all that one of fixed rate takes."""
    most = chosen.most_bytes(PARTS)
    return (body * (most // len(body) + 1))[:most] if body else bytes(most)


def server(data: bytes) -> None:
    """A client's payload: codec, flags, and a payload or a codec's bytes."""
    if len(data) < 2:
        return
    chosen, body = codec(data[0]), data[2:]
    if data[1] & PREDICTED:
        chosen = Predicted(chosen, held().deltas)
    if data[1] & FIT:
        body = fitted(body, chosen)
    payload = mended(body) if data[1] & RAW else seal(body, label(), chosen)
    try:
        values = decode(payload, label(), chosen)
    except PayloadError as error:
        refused(error)
    else:
        sound(values)


def client(data: bytes) -> None:
    """A server's message: codec, flags, and frames: kind and version, length in 2 bytes, bytes."""
    if len(data) < 2:
        return
    channel = Channel(
        FINGERPRINT, PARTS, codec(data[0]), not data[1] & WHOLE, bool(data[1] & PREDICTED)
    )
    message = mended(data[2:]) if data[1] & RAW else _message(data[2:], channel)
    try:
        found = channel.receive(message, ROUND, held())
    except PayloadError as error:
        refused(error)
    else:
        sound(found.values)
        assert found.version >= 0


def messages(data: bytes) -> None:
    """The content of a reply, as protobuf: ours read it, whatever records it holds."""
    try:
        content = recorddict_from_proto(ProtoRecordDict.FromString(data))
    except Exception:  # Flower's own door, which has holes: docs/strangers.md
        return
    assert payload_bytes_in(content) >= 0
    for read, kind in _READERS:
        try:
            read(content)
        except kind:
            continue


def _train(content: RecordDict) -> None:
    report = train_report_in(content, most_examples=MOST_EXAMPLES)
    assert 1 <= report.examples <= MOST_EXAMPLES
    assert 0 <= report.partition < 2**31
    numbers = (report.train_loss, report.loss_before, report.loss_after, report.seconds)
    assert np.isfinite(numbers).all()


def _evaluation(content: RecordDict) -> None:
    report = evaluation_report_in(content, most_examples=MOST_EXAMPLES)
    assert 1 <= report.examples <= MOST_EXAMPLES
    assert 0 <= report.accuracy <= 1
    assert np.isfinite(report.loss)


def _payload(content: RecordDict) -> None:
    assert isinstance(payload_in(content), bytes)


def _interface(content: RecordDict) -> None:
    found = interface_in(content)
    assert found is None or (found.name.isprintable() and len(found.name) < 16)


_READERS: tuple[tuple[Callable[[RecordDict], None], type[Exception]], ...] = (
    (_train, ReplyError),
    (_evaluation, ReplyError),
    (_payload, PayloadError),
    (_interface, ReplyError),
)
DOORS: dict[str, Callable[[bytes], None]] = {
    "server": server,
    "client": client,
    "messages": messages,
}


def sound(values: Values) -> None:
    """Assert that the values are what every reader relies on."""
    assert values.dtype == np.float32
    assert values.shape == (SIZE,)
    assert np.isfinite(values).all()


def refused(error: PayloadError) -> None:
    """Assert that a refusal can be shown: one line, no control characters, not long."""
    text = str(error)
    assert text
    assert text.isprintable()
    assert len(text) < 300


def _message(data: bytes, channel: Channel) -> bytes:
    """Frames with the digests that their sender would compute; at most one too many of them."""
    model, message = held(), b""
    for _ in range(MOST_FRAMES + 1):
        if len(data) < 4:
            break
        what, step, length = data[0], data[1], int.from_bytes(data[2:4], "little")
        body, data = data[4 : 4 + length], data[4 + length :]
        whole = bool(what & 1) or not channel.deltas
        used: Codec = Float16() if channel.deltas else channel.codec
        if not whole:
            used = channel.predicting(channel.codec, model)
        if what & FIT:
            body = fitted(body, used)
        version = max(0, model.version + (step + 1 if step < 128 else step - 256))
        values = _led_to(body, used, None if whole else model.values)
        known = channel.predict and not whole
        model = Held(version, values, (model.values, *model.before)[:TAPS] if known else ())
        kind = "model" if whole else "delta"
        round_ = ROUND if len(data) < 4 else ROUND - 1
        digest = 0 if what & 2 else model.digest
        about = Label(fingerprint=FINGERPRINT, parts=PARTS, round=round_, kind=kind,
                      version=version, digest=digest)  # type: ignore[arg-type]  # fmt: skip
        message += seal(body, about, used)
    return message


def _led_to(body: bytes, used: Codec, before: Values | None) -> Values:
    try:
        with np.errstate(all="ignore"):
            values = used.decode(body, PARTS)
            return values if before is None else (before + values).astype("<f2").astype("<f4")
    except CodecError:
        return np.zeros(SIZE, np.float32)
