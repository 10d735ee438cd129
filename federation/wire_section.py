"""The table ``wire`` of a recipe: codecs by direction, and what they make of a model."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from csg_core import Manifest
from csg_core.broadcast import KEY, Channel
from csg_core.codecs import (
    Codec,
    GeneratorSchedule,
    Parts,
    Predicted,
    codec_named,
    without_generator,
)
from csg_core.payload import most_payload_bytes, payload_bytes
from federation.sections import Count, Section


class WireConfig(Section):
    """Codecs by direction."""

    uplink: str = Field("fp32", description="of updates")
    downlink: str = Field("fp32", description="of the model, or of its deltas")
    feedback: bool = Field(
        True, description="clients add what the uplink's codec left out to their next update"
    )
    deltas: bool = Field(
        False, description="send clients what is new since the version they hold, where possible"
    )
    predict: bool = Field(
        False,
        description="write deltas and updates as what the last two deltas do not foretell; where "
        "all clients train in every round; needs deltas",
    )
    generator_every: Count = Field(
        1,
        description="rounds from one in which a learned generator trains and travels to the next; "
        "codes always do; needs deltas",
    )
    generator_until: Annotated[int, Field(ge=0, le=10_000_000, strict=True)] | None = Field(
        None,
        description="the last round in which a learned generator trains, 0: it never does; needs "
        "deltas",
    )

    @field_validator("uplink", "downlink")
    @classmethod
    def _known(cls, line: str) -> str:
        codec_named(line)
        return line

    @model_validator(mode="after")
    def _meaningful(self) -> "WireConfig":
        if self.predict and not self.deltas:
            raise ValueError(
                "predict: whole models are not predicted; set wire.deltas=true, or "
                "wire.predict=false"
            )
        if self.schedule != GeneratorSchedule() and not self.deltas:
            raise ValueError(
                f"generator_every {self.generator_every}, generator_until {self.generator_until}: "
                "whole models always hold the generator; set wire.deltas=true"
            )
        for way, line, again, remedy in (
            ("uplink", self.uplink, "feedback" if self.feedback else "", "wire.feedback=false"),
            ("downlink", self.downlink, "deltas" if self.deltas else "", "bits=3"),
        ):
            if again and not codec_named(line).bears_feedback:
                raise ValueError(
                    f"{way} {line!r}: with {again} what it leaves out grows to many updates; "
                    f"add nearest=true, or set {remedy}"
                )
        return self

    def channel(self, manifest: Manifest) -> Channel:
        """What both ends know of the exchange of a model whose tensors are these."""
        codec = codec_named(self.downlink)
        return Channel(manifest.fingerprint, manifest.parts, codec, self.deltas, self.predict)

    def update_codec(self, parts: Parts, round_: int) -> Codec:
        """What updates are written with in a round, from 1 on, before any prediction."""
        return self.schedule.codec(codec_named(self.uplink), parts, round_)

    def payload_bytes(self, parts: Parts, *, generator: bool = True) -> tuple[int, int]:
        """Bytes to expect of an update, and of a model or its delta.

        ``generator`` says whether a learned one travels in that round.
        """
        codecs = [codec_named(line) for line in (self.uplink, self.downlink)]
        if not generator:
            codecs = [without_generator(codec, parts) for codec in codecs]
        up, down = (payload_bytes(parts, self._written(codec)) for codec in codecs)
        return up, min(down, payload_bytes(parts, KEY)) if self.deltas else down

    def most_update_bytes(self, parts: Parts) -> int:
        """The most bytes of an update, to which the server holds clients."""
        return most_payload_bytes(parts, self._written(codec_named(self.uplink)))

    def _written(self, codec: Codec) -> Codec:
        """What a codec becomes in payloads: for how long they are."""
        return Predicted(codec) if self.predict else codec

    @property
    def feeds_back(self) -> bool:
        """Whether clients keep what the uplink's codec leaves out."""
        return self.feedback and not codec_named(self.uplink).exact

    @property
    def schedule(self) -> GeneratorSchedule:
        """The rounds in which a learned generator trains and travels."""
        return GeneratorSchedule(self.generator_every, self.generator_until)
