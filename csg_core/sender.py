"""The server's end of the downlink: it makes each version of the model once, for all clients."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from csg_core.broadcast import KEY, MOST_FRAMES, Channel, Held, rounded
from csg_core.codecs import Codec, CodecError, Parts, Predicted
from csg_core.codecs.base import FLOAT16_MAX, Values
from csg_core.codecs.predicted import TAPS
from csg_core.payload import (
    HEADER_BYTES,
    Kind,
    Passed,
    PayloadError,
    body_of,
    codec_of,
    header_of,
    seal,
)


class Sender:
    """Makes each version once, and to each client the frames that it lacks.

    A chain that begins with version 1 has no frame that leads there: it is sent whole.

    Attributes:
        held: the newest version, as receivers have it.

    Args:
        channel: what both ends know.
        model: of that first version, float32 [size].
        version: its number.

    Raises:
        CodecError: if deltas are sent, and a value of the model is NaN or beyond float16.
    """

    def __init__(self, channel: Channel, model: Values, version: int = 0) -> None:
        self.channel = channel
        self.held = channel.first(model, version)
        # of the last versions, the newest last, with how many deltas before it each builds on
        self._frames: deque[tuple[bytes, int]] = deque()
        self._whole = b""
        self._round = 0

    def advance(
        self, model: Values, round_: int, rng: np.random.Generator, depth: int = TAPS
    ) -> None:
        """Make the next version, for a model, float32 [size].

        It is predicted from the last ``depth`` deltas, which receivers have to hold.

        Raises:
            ValueError: if the codec cannot hold a value.
        """
        channel, held = self.channel, self.held
        if channel.deltas:
            rounded(model)  # refused if it cannot be held
            wanted = (model - held.values).clip(-FLOAT16_MAX, FLOAT16_MAX)  # the rest goes next
            codec = channel.predicting(channel.codec_for(wanted), held, depth)
            body = codec.encode(wanted, channel.parts, rng)
            self.held = channel.after(held, codec.decode(body, channel.parts))
        else:
            codec = channel.codec
            body = codec.encode(model, channel.parts, rng)
            self.held = Held(held.version + 1, codec.decode(body, channel.parts))
        kind: Kind = "delta" if channel.deltas else "model"
        frame = seal(body, channel.label(kind, round_, self.held), codec)
        self._round, self._whole = round_, b""
        self._frames.append((frame, _reach(body, channel.parts, codec)))
        most = HEADER_BYTES + KEY.most_bytes(channel.parts) if channel.deltas else 0
        least = 0 if channel.deltas else 1
        while len(self._frames) > least and (  # a whole model takes fewer bytes than these
            sum(len(frame) for frame, _ in self._frames) > most or len(self._frames) > MOST_FRAMES
        ):
            self._frames.popleft()

    def pass_on(self, model: Values, round_: int) -> Passed:
        """Make the next version, a whole model, float32 [size], for clients of this process.

        Nothing is encoded: they are handed its memory.
        """
        self.held, self._round = Held(self.held.version + 1, model), round_
        self._frames.clear()
        return Passed(values=torch.from_numpy(model), kind="model", round=round_,
                      version=self.held.version)  # fmt: skip

    def depth_after(self, version: int, depth: int = 0) -> int | None:
        """How many of the last deltas a client holds that was sent those it lacks.

        It holds ``version``, and the last ``depth`` deltas that led there. None: it cannot make use
        of those that it lacks, or they are gone, so that it is sent a whole model.
        """
        missing = self.held.version - version
        if not 0 <= missing <= len(self._frames):
            return None
        for _, reach in list(self._frames)[len(self._frames) - missing :]:
            if reach > depth:
                return None
            depth = min(depth + 1, self.channel.depth)
        return depth

    def message(self, version: int | None, depth: int = 0) -> bytes:
        """The newest version for a client that holds ``version``, or none of which is known.

        ``depth`` is how many of the last deltas that led to its version it holds as well.

        Raises:
            ValueError: if whole models are sent by the codec, and none was made since the start.
        """
        if not self.channel.deltas:
            if not self._frames:
                raise ValueError("no version was made yet; advance first")
            return self._frames[-1][0]
        missing = 0 if version is None else self.held.version - version
        if version is not None and missing and self.depth_after(version, depth) is not None:
            return b"".join(frame for frame, _ in list(self._frames)[-missing:])
        if not self._whole:
            body = KEY.encode(self.held.values, self.channel.parts, np.random.default_rng(0))
            self._whole = seal(body, self.channel.label("model", self._round, self.held), KEY)
        return self._whole

    def state(self) -> dict[str, NDArray[Any]]:
        """What a checkpoint has to hold: ``numbers``, int64 [2], version and round; with deltas,
        ``reference`` and ``frames``, too, uint8, the packed version and its last frames.
        """
        numbers = {"numbers": np.array([self.held.version, self._round], np.int64)}
        if not self.channel.deltas:
            return numbers
        return numbers | {
            "reference": np.frombuffer(self.held.packed, np.uint8),
            "frames": np.frombuffer(b"".join(frame for frame, _ in self._frames), np.uint8),
        }

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up what ``state`` gave; frames of another format are left out.

        Receivers are then sent the version whole.
        """
        version, self._round = state["numbers"].tolist()
        self._whole = b""
        self._frames.clear()
        if not self.channel.deltas:
            self.held = Held(version, self.held.values)
            return
        self.held = Held.unpacked(version, state["reference"].tobytes(), self.held.values.size)
        rest = memoryview(state["frames"].tobytes())
        try:
            while len(rest):
                header = header_of(rest, self.channel.fingerprint)
                frame, rest = bytes(rest[: header.end]), rest[header.end :]
                codecs = [self.channel.predicting(c, self.held) for c in self.channel.codecs]
                codec = codec_of(header, codecs)
                self._frames.append((frame, _reach(body_of(frame), self.channel.parts, codec)))
        except (PayloadError, CodecError):  # of another format: clients are sent whole models
            self._frames.clear()


def _reach(body: bytes | memoryview, parts: Parts, codec: Codec) -> int:
    """How many of the deltas before it a delta builds on."""
    return codec.reach(body, parts) if isinstance(codec, Predicted) else 0
