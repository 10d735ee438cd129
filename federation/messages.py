"""The messages of a round, as Flower carries them: one record, of the payload and a few numbers.

Flower sends every record, array and chunk of an array as an object of its own, by a request of its
own, which costs more than a kilobyte. Hence bytes in the one ConfigRecord, and no ArrayRecord; a
payload of more than ``PIECE_BYTES`` goes on in further records, since Flower gives up on an object
that takes longer than 180 s. Names are Flower's usual ones: ``num-examples``, ``server-round``.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from flwr.app import ConfigRecord, RecordDict

from csg_core.payload import Passed, Payload, PayloadError
from federation.interface import Interface

PIECE_BYTES = 5 << 20  # as Flower cuts arrays
_RECORD, _PAYLOAD = "message", "payload"
_INTERFACE = "interface-"  # before the names of what a client's interface counted
_NAME_BYTES = 15  # of an interface, in Linux
_COUNTER = 2**63  # what Flower's integers hold
_SHOWN = 60  # characters
_MOST = 1e9  # of losses and seconds
# keys of the run config: the recipe as JSON, and when the run began, by which clients tell it from
# one that was in its folder before
RECIPE, STARTED = "recipe", "started"
# key of a message to train: the last round whose update of this client was taken, 0: none was; not
# there where that was the last one that it was asked for
TAKEN = "taken"
# key of one to a node that a resumed run does not know: the round that it goes on from, after which
# no update of this client was taken
RESUMED = "resumed"


class ReplyError(ValueError):
    """A message that is not what the round asks for; the message says why."""


class _Passing(RecordDict):
    """The content of a message within this process, beside whose records the payload stays.

    Over a wire, and in a copy, it is content without a payload.
    """

    payload: Passed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a client says of its training.

    Attributes:
        partition: its shard, from 0 on.
        examples: images trained on.
        train_loss: mean over the last local epoch, nats.
        loss_before, loss_after: training losses of the first and the last batch, nats.
        seconds: of training.
    """

    partition: int
    examples: int
    train_loss: float
    loss_before: float
    loss_after: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationReport:
    """What a client says of a model on the images it keeps for evaluation, if it keeps any."""

    partition: int
    examples: int
    loss: float
    accuracy: float


_Report = TypeVar("_Report", TrainReport, EvaluationReport)


def instruction(payload: Payload, round_: int, config: ConfigRecord) -> RecordDict:
    """The content of a message to a client; made anew for each, so that none shares another's."""
    return _content({**config, "server-round": round_}, payload)


def reply(
    payload: Payload | None,
    report: TrainReport | EvaluationReport,
    interface: Interface | None = None,
) -> RecordDict:
    """The content of a client's answer, with what its network interface has counted."""
    values = {_key(field.name): getattr(report, field.name) for field in fields(report)}
    if interface is not None:
        values |= {_INTERFACE + name: value for name, value in asdict(interface).items()}
    return _content(values, payload)


def numbers_in(content: RecordDict) -> dict[str, Any]:
    """Everything of a message but the payload.

    Raises:
        ReplyError: if the message is of another shape.
    """
    if not _well_formed(content):
        raise ReplyError(_shape(content))
    return {key: value for key, value in content[_RECORD].items() if key != _PAYLOAD}


def payload_in(content: RecordDict) -> Payload:
    """The payload of a message.

    Raises:
        PayloadError: if the message is of another shape, or has none.
    """
    if not _well_formed(content):
        raise PayloadError(_shape(content))
    if isinstance(content, _Passing) and content.payload is not None:
        return content.payload
    pieces = [content[name].get(_PAYLOAD) for name in _names(content)]
    if not all(isinstance(piece, bytes) for piece in pieces):
        raise PayloadError(f"message without bytes {_PAYLOAD!r}")
    return b"".join(pieces)  # type: ignore[arg-type]


def payload_bytes_in(content: RecordDict) -> int:
    """Bytes of a message that could be a payload, whatever its shape."""
    if isinstance(content, _Passing) and content.payload is not None:
        return len(content.payload)
    values = [v for record in content.config_records.values() for v in record.values()]
    arrays = [a for record in content.array_records.values() for a in record.values()]
    return sum(len(v) for v in values if isinstance(v, bytes)) + sum(len(a.data) for a in arrays)


def partition_claimed_in(content: RecordDict) -> float:
    """The partition that a reply says it is of, infinity if it says none that can be."""
    record = content.config_records.get(_RECORD, ConfigRecord())
    value = record.get("partition")
    return value if isinstance(value, int) and 0 <= value < 2**31 else math.inf


def train_report_in(content: RecordDict, *, most_examples: int) -> TrainReport:
    """What a client reports of its training.

    Raises:
        ReplyError: if a number is missing, none, or absurd.
    """
    return _report_in(TrainReport, content, 1, most_examples)


def evaluation_report_in(content: RecordDict, *, most_examples: int) -> EvaluationReport:
    """What a client reports of an evaluation; raises ReplyError as ``train_report_in`` does."""
    report = _report_in(EvaluationReport, content, 0, most_examples)
    if not 0 <= report.accuracy <= 1:
        raise ReplyError(f"accuracy {report.accuracy} is not within 0 and 1")
    return report


def _report_in(
    kind: type[_Report], content: RecordDict, least_examples: int, most_examples: int
) -> _Report:
    keys = {field.name: _key(field.name) for field in fields(kind)}
    values = _numbers(content, list(keys.values()))
    _check_counts(values, least_examples, most_examples)
    return kind(**{name: values[key] for name, key in keys.items()})


def interface_in(content: RecordDict) -> Interface | None:
    """What a client says that its network interface has counted, if it says anything.

    Raises:
        ReplyError: if it cannot be.
    """
    record = numbers_in(content)
    values = [record.get(_INTERFACE + field.name) for field in fields(Interface)]
    if all(value is None for value in values):
        return None
    name, shared, received, sent = values
    if not isinstance(name, str) or not 1 <= len(name) <= _NAME_BYTES or not name.isprintable():
        raise ReplyError(f"interface-name {_short(name)} cannot be")
    if not isinstance(shared, bool):
        raise ReplyError(f"interface-shared is {_short(shared)}; need true or false")
    for what, count in (("received", received), ("sent", sent)):
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count < _COUNTER:
            raise ReplyError(f"interface-{what} {_short(count)} cannot be")
    return Interface(name=name, shared=shared, received=received, sent=sent)  # type: ignore[arg-type]


def _key(name: str) -> str:
    return "num-examples" if name == "examples" else name.replace("_", "-")


def _numbers(content: RecordDict, names: list[str]) -> dict[str, Any]:
    record = numbers_in(content)
    values = {}
    for name in names:
        value = record.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ReplyError(f"{name} is {_short(value)}; need a number")
        counted = isinstance(value, int) and name in (_key("examples"), "partition")
        if not counted and not 0 <= value <= _MOST:  # _check_counts has other bounds
            raise ReplyError(f"{name} is {_short(value)}; 0 to {_MOST:g} are taken")
        values[name] = value
    return values


def _check_counts(values: dict[str, Any], least: int, most: int) -> None:
    examples, partition = values[_key("examples")], values["partition"]
    if not isinstance(examples, int) or not least <= examples <= most:
        raise ReplyError(
            f"num-examples {_short(examples)} is absurd; {least} to {most:,} are taken"
        )
    if not isinstance(partition, int) or not 0 <= partition < 2**31:
        raise ReplyError(f"partition {_short(partition)} cannot be")


def _content(values: Mapping[str, Any], payload: Payload | None) -> RecordDict:
    if isinstance(payload, Passed):
        passing = _Passing({_RECORD: ConfigRecord({**values})})
        passing.payload = payload
        return passing
    first, *rest = _pieces(payload)
    content = RecordDict({_RECORD: ConfigRecord({**values, **first})})
    for number, piece in enumerate(rest, start=1):
        content[f"{_RECORD}-{number}"] = ConfigRecord({**piece})
    return content


def _pieces(payload: bytes | None) -> list[dict[str, bytes]]:
    if payload is None:
        return [{}]
    places = range(0, max(len(payload), 1), PIECE_BYTES)
    return [{_PAYLOAD: payload[place : place + PIECE_BYTES]} for place in places]


def _names(content: RecordDict) -> list[str]:
    return [_RECORD, *(f"{_RECORD}-{number}" for number in range(1, len(content)))]


def _well_formed(content: RecordDict) -> bool:
    """Whether there is the one record, with the further pieces of a payload, and nothing else."""
    names = _names(content)
    if set(content) != set(names):
        return False
    first, *rest = (content[name] for name in names)  # RecordDict's views of its kinds are slow
    whole = all(isinstance(record, ConfigRecord) for record in (first, *rest))
    return whole and all(list(record) == [_PAYLOAD] for record in rest)


def _shape(content: RecordDict) -> str:
    return f"message without the one record {_RECORD!r} (records: {_short(list(content)[:3])})"


def _short(value: object) -> str:
    """What a stranger sent, short enough for a line."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
