"""What a client is to do in a round, and what comes of it."""

from dataclasses import dataclass

from torch import Tensor

from client.memory import NOTHING, Memory
from client.shard import Shard
from csg_core.broadcast import Held
from csg_core.payload import Payload
from federation.messages import TrainReport


class TrainingError(RuntimeError):
    """Local training that came to nothing; the message says why."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A client's answer, and what it keeps for its next round."""

    payload: Payload
    report: TrainReport
    memory: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What a client is to do in a round; ``memory`` is what it kept from its last one."""

    payload: Payload
    shard: Shard
    round_: int
    partition: int
    memory: Memory = NOTHING
    proximal_mu: float = 0.0


@dataclass(frozen=True, slots=True)
class Received:
    """The version of the model that a client trains from, and the seconds to come to it.

    ``values`` are the version's, float32 [size], where the model is.
    """

    held: Held
    values: Tensor
    seconds: float
