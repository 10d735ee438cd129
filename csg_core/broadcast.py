"""The downlink: one chain of model versions, sent whole or as deltas from version to version.

What clients are given is the *reference*, which follows the server's float32 target as closely as
the codec lets it; what a delta leaves out is in the next one, since each is taken against the
reference. References of a chain of deltas are rounded to float16, so that a
client that is new or has fallen behind can be sent one exactly in two bytes a value, as a video
codec sends a key frame. Version 0 is the model that the recipe's seed makes: nothing is sent of it.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from csg_core.codecs import Codec, CodecError, Float16, Parts, Predicted, without_generator
from csg_core.codecs.base import FLOAT16_MAX, Values, require_finite
from csg_core.codecs.predicted import TAPS
from csg_core.payload import (
    HEADER_BYTES,
    Header,
    Kind,
    Label,
    Passed,
    Payload,
    PayloadError,
    codec_of,
    decode,
    digest_of,
    header_of,
)

KEY = Float16()  # of whole models, where deltas are sent
MOST_FRAMES = 64  # of a message; a receiver that lacks more versions is sent a whole model


@dataclass(frozen=True, eq=False)
class Held:
    """A version of the model as sender and receiver have it: ``values`` float32 [size].

    ``before`` are the versions before it, the newest first, as far as predictions need them and
    they are known: not to who was sent a whole model.
    """

    version: int
    values: Values
    before: tuple[Values, ...] = ()

    @cached_property
    def digest(self) -> int:
        """CRC-32 of the values."""
        return digest_of(self.values)

    @cached_property
    def deltas(self) -> tuple[Values, ...]:
        """What was new in the last versions, float32 [size], the newest first."""
        return tuple(new - old for new, old in pairwise((self.values, *self.before)))

    @cached_property
    def packed(self) -> bytes:
        """The values of a chain of deltas, and those before, two bytes each, nothing lost."""
        return b"".join(values.astype("<f2").tobytes() for values in (self.values, *self.before))

    @classmethod
    def unpacked(cls, version: int, packed: bytes, size: int) -> "Held":
        """What ``packed`` gave of versions of so many values."""
        values, *before = np.frombuffer(packed, "<f2").astype(np.float32).reshape(-1, size)
        return cls(version, values, tuple(before))


@dataclass(frozen=True)
class Channel:
    """What both ends of a downlink know.

    Attributes:
        fingerprint: of the manifest.
        parts: every tensor, as codecs take it.
        codec: of whole models, or of deltas.
        deltas: whether deltas are sent.
        predict: whether they, and updates, are predicted from the deltas before.
    """

    fingerprint: str
    parts: Parts
    codec: Codec
    deltas: bool
    predict: bool = False

    @cached_property
    def codecs(self) -> tuple[Codec, Codec]:
        """Of deltas, and of those that leave the generator as it is."""
        return self.codec, without_generator(self.codec, self.parts)

    def codec_for(self, delta: Values) -> Codec:
        """What a delta, float32 [size], is written with.

        A generator that does not change is left out.
        """
        of_generator = np.array([part.group == "generator" for part in self.parts], bool)
        of_values = np.repeat(of_generator, np.array([part.size for part in self.parts], int))
        return self.codecs[0 if delta[of_values].any() else 1]

    @property
    def depth(self) -> int:
        """Of the deltas that led to a version, how many predictions are made of at most."""
        return TAPS if self.predict else 0

    def predicting(self, codec: Codec, held: Held, depth: int = TAPS) -> Codec:
        """What a codec becomes for what builds on a version: its update, or the next delta.

        The last ``depth`` deltas that led to the version are made use of.
        """
        return Predicted(codec, held.deltas[:depth]) if self.predict else codec

    def after(self, held: Held, step: Values) -> Held:
        """The version that a delta, float32 [size], leads to."""
        before = (held.values, *held.before)[: self.depth]
        return Held(held.version + 1, _stepped(held.values, step), before)

    def first(self, model: Values, version: int = 0) -> Held:
        """The first version of the chain, of a model, float32 [size]; 0 is what the seed makes.

        Raises:
            CodecError: if deltas are sent, and a value is NaN, infinite or beyond float16.
        """
        return Held(version, rounded(model) if self.deltas else model)

    @property
    def most_bytes(self) -> int:
        """The most bytes of a message, to which receivers hold them: one frame, or many."""
        codecs = [Predicted(codec) if self.predict else codec for codec in self.codecs]
        whole = max(codec.most_bytes(self.parts) for codec in codecs)
        return HEADER_BYTES + (max(KEY.most_bytes(self.parts), whole) if self.deltas else whole)

    def receive(self, message: Payload, round_: int, held: Held) -> Held:
        """The version that a message of a round leads to, from the one held.

        Frames of versions that are held already are passed over, so that a message may be repeated.
        What a message costs is bounded before it is begun: by its length, the number of its
        frames and their order.

        Raises:
            PayloadError: if the message is not this round's, is damaged, or builds on a version
                that is not held; the sender then has to send a whole model.
        """
        if isinstance(message, Passed):
            values = message.opened(held.values.size, "model", round_)
            return Held(message.version, values.numpy())
        if len(message) > self.most_bytes:
            raise PayloadError(f"model of {len(message):,} bytes; {self.most_bytes:,} are taken")
        if not self.deltas:
            return self._whole(memoryview(message), round_, self.codec)
        frames = self._frames(memoryview(message))
        last = frames[-1][0]
        if last.round != round_:
            raise PayloadError(f"model of round {last.round}; expected round {round_}")
        for header, frame in frames:
            if header.kind == "model":
                held = self._whole(frame, header.round, KEY)
            elif header.version > held.version:
                held = self._next(header, frame, held)
        if (held.version, held.digest) != (last.version, last.digest):
            raise PayloadError(
                f"version {held.version} of the model is held, which is not the sender's version "
                f"{last.version}; a whole model is needed"
            )
        return held

    def _frames(self, message: memoryview) -> list[tuple[Header, memoryview]]:
        """What a message is made of: a whole model, or deltas from version to version."""
        frames: list[tuple[Header, memoryview]] = []
        while len(message) or not frames:
            if len(frames) == MOST_FRAMES:
                raise PayloadError(f"model in more than {MOST_FRAMES} frames")
            header = header_of(message, self.fingerprint)
            if frames and (header.kind, header.version) != ("delta", frames[-1][0].version + 1):
                raise PayloadError(
                    f"{header.kind} of version {header.version} after version "
                    f"{frames[-1][0].version} in one message"
                )
            frames.append((header, message[: header.end]))
            message = message[header.end :]
        return frames

    def _whole(self, frame: memoryview, round_: int, codec: Codec) -> Held:
        header = header_of(frame, self.fingerprint)
        label = self._label("model", round_, header.version, header.digest)
        return _proved(Held(header.version, decode(frame, label, codec)), header.digest)

    def _next(self, header: Header, frame: memoryview, held: Held) -> Held:
        if header.version != held.version + 1:
            raise PayloadError(
                f"delta to version {header.version} of the model, but version {held.version} is "
                "held; a whole model is needed"
            )
        label = self._label("delta", header.round, header.version, header.digest)
        codecs = [self.predicting(codec, held) for codec in self.codecs]
        step = decode(frame, label, codec_of(header, codecs))
        return _proved(self.after(held, step), header.digest)

    def label(self, kind: Kind, round_: int, held: Held) -> Label:
        """What a payload about a version has to be."""
        return self._label(kind, round_, held.version, held.digest)

    def _label(self, kind: Kind, round_: int, version: int, digest: int) -> Label:
        return Label(
            fingerprint=self.fingerprint,
            parts=self.parts,
            round=round_,
            kind=kind,
            version=version,
            digest=digest,
        )


def _stepped(held: Values, step: Values) -> Values:
    """The version that a delta leads to; where a coarse codec goes beyond float16, its largest."""
    stepped: Values = (
        (held + step).clip(-FLOAT16_MAX, FLOAT16_MAX).astype(np.float16).astype(np.float32)
    )
    return stepped


def rounded(values: Values) -> Values:
    """Values as a chain of deltas holds them, float16; raises CodecError if one is beyond that."""
    with np.errstate(over="ignore"):
        rounded: Values = values.astype(np.float16).astype(np.float32)
    require_finite(values, "float16")
    if not np.isfinite(rounded).all():
        largest = float(np.abs(values).max())
        raise CodecError(
            f"it has a value of {largest:g}, beyond float16; send whole models (wire.deltas=false)"
        )
    return rounded


def _proved(held: Held, digest: int) -> Held:
    if held.digest != digest:
        raise PayloadError(
            f"version {held.version} of the model came out different from the sender's; a whole "
            "model is needed"
        )
    return held
