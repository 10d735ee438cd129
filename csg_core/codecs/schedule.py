"""In which rounds the generator travels."""

from dataclasses import dataclass

from csg_core.codecs.base import Codec
from csg_core.codecs.grouped import Grouped
from csg_core.codecs.plain import Nothing
from csg_core.entries import Parts


@dataclass(frozen=True, slots=True)
class GeneratorSchedule:
    """The generator trains in round 1, and then in every ``every``-th round, and never after
    ``until``, not even once if that is 0; its update travels in the same round, what came of it
    with the next round's model.

    In between it is to the server what clients have. Codes and the rest always train.

    Attributes:
        every: rounds, from 1 on.
        until: the last round that may train it, from 0 on; None: all may.

    Raises:
        ValueError: if they are less.
    """

    every: int = 1
    until: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every={self.every}: give a number of rounds from 1 on")
        if self.until is not None and self.until < 0:
            raise ValueError(f"until={self.until}: give a round from 0 on, or none")

    def trains(self, round_: int) -> bool:
        """Whether the generator trains in a round, from 1 on."""
        return (round_ - 1) % self.every == 0 and (self.until is None or round_ <= self.until)

    def codec(self, codec: Codec, parts: Parts, round_: int) -> Codec:
        """What an update's ``codec`` becomes in a round: without a generator that did not train."""
        return codec if self.trains(round_) else without_generator(codec, parts)


def without_generator(codec: Codec, parts: Parts) -> Codec:
    """The same codec, but that nothing of a generator is sent; ``parts`` may hold none."""
    if all(part.group != "generator" for part in parts):
        return codec
    if not isinstance(codec, Grouped):
        return Grouped(codec, (("generator", Nothing()),))
    others = tuple((group, of) for group, of in codec.others if group != "generator")
    return Grouped(codec.default, (*others, ("generator", Nothing())))
