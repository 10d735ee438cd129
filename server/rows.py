"""A line of a run's ``rounds.jsonl``: what came of a round, and of each of its clients."""

import json
from dataclasses import dataclass, field, fields
from typing import NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # as pydantic needs it up to Python 3.11


class Contribution(TypedDict):
    """What a client reports of its training in a round, and its bytes: see ``TrainReport`` and
    ``server.wire.ClientBytes``.
    """

    partition: int
    examples: int
    train_loss: NotRequired[float]
    loss_before: float
    loss_after: float
    seconds: float
    payload_bytes_up: NotRequired[int]
    payload_bytes_down: NotRequired[int]
    wire_bytes_up: NotRequired[int | None]
    wire_bytes_down: NotRequired[int | None]
    interface: NotRequired[str | None]
    interface_shared: NotRequired[bool | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRow:
    """A line of ``rounds.jsonl``. Bytes are sums over the round's clients, accuracies fractions.

    Attributes:
        round: from 1 on.
        clients: good updates, ``failures`` those that came to nothing.
        train_loss: mean over the clients by examples, nats.
        test_loss, test_accuracy: of the averaged model on the test images, or, where norms stay
            with the clients, on the images that those hold out; None in rounds without evaluation,
            and of a loss that is no number.
        payload_bytes_up, payload_bytes_down: of payloads, header included.
        wire_bytes_up, wire_bytes_down: all that the server's interface received and sent since the
            row before, whoever caused it; None where not measured.
        interface: of the server, None where not measured.
        interface_shared: whether traffic of others than the server may be in these figures.
        seconds: from the first message to the evaluation, without record and checkpoint.
        contributions: by client.
        failed: by client, the reason.
        models, updates: payloads that the server sent, and that came back.
    """

    round: int
    clients: int
    failures: int
    train_loss: float
    test_loss: float | None
    test_accuracy: float | None
    payload_bytes_up: int
    payload_bytes_down: int
    wire_bytes_up: int | None = None
    wire_bytes_down: int | None = None
    interface: str | None = None
    interface_shared: bool | None = None
    seconds: float
    contributions: list[Contribution] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    models: int = 0
    updates: int = 0


_ROW = TypeAdapter(RoundRow)


def line_of(row: RoundRow) -> str:
    """A row as a line of JSON."""
    # asdict would copy what every client reported
    return json.dumps({field.name: getattr(row, field.name) for field in fields(row)}) + "\n"


def read_row(line: str) -> RoundRow:
    """The row that a line holds.

    Raises:
        ValueError: if it holds none; the message says what is amiss.
    """
    try:
        return _ROW.validate_json(line, strict=True)
    except ValidationError as error:
        found = error.errors()[0]
        place = ".".join(str(part) for part in found["loc"])
        raise ValueError(f"{place}: {found['msg']}" if place else found["msg"]) from error
