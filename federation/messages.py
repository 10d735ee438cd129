"""The messages of a round, as Flower carries them: one array of bytes, and a few numbers.

The payload is one Flower Array of dtype uint8, because Flower sends every array as an object of its
own. Names are Flower's usual ones: ``arrays``, ``config``, ``metrics``, ``num-examples``.
"""

import math
from dataclasses import asdict, dataclass, fields

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from csg_core.payload import PayloadError

_PAYLOAD = "payload"
_STYPE = "csg-fl"  # the bytes as they are, without numpy's header
RECIPE = "recipe"  # key of the run config: the recipe as JSON


class ReplyError(ValueError):
    """A message that is not what the round asks for; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a client says of its training.

    Attributes:
        partition: its shard, from 0 on.
        examples: images trained on.
        train_loss: mean over the last local epoch, nats.
        loss_before, loss_after: of the received and the trained model on a few of its images.
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
    """What a client says of a model on the images it keeps for evaluation."""

    partition: int
    examples: int
    loss: float
    accuracy: float


def instruction(payload: bytes, round_: int, config: ConfigRecord) -> RecordDict:
    """The content of a message to a client; made anew for each, so that none shares another's."""
    record = ConfigRecord({**config, "server-round": round_})
    return RecordDict({"arrays": _array_record(payload), "config": record})


def reply(payload: bytes | None, report: TrainReport | EvaluationReport) -> RecordDict:
    """The content of a client's answer."""
    values = {_key(name): value for name, value in asdict(report).items()}
    content = RecordDict({"metrics": MetricRecord(values)})
    if payload is not None:
        content["arrays"] = _array_record(payload)
    return content


def payload_in(content: RecordDict) -> bytes:
    """The payload of a message.

    Raises:
        PayloadError: if there is not exactly one array of bytes.
    """
    records = list(content.array_records.values())
    arrays = list(records[0].items()) if len(records) == 1 else []
    if len(arrays) != 1 or arrays[0][0] != _PAYLOAD:
        names = [name for record in records for name in record][:3]
        raise PayloadError(f"message without the one array {_PAYLOAD!r} (arrays: {names})")
    array = arrays[0][1]
    if array.stype != _STYPE or array.dtype != "uint8":
        raise PayloadError(f"payload is {array.dtype} in {array.stype}; need uint8 in {_STYPE}")
    return array.data


def payload_bytes_in(content: RecordDict) -> int:
    """Bytes of all arrays of a message, whatever they are."""
    return sum(len(a.data) for record in content.array_records.values() for a in record.values())


def train_report_in(content: RecordDict, *, most_examples: int) -> TrainReport:
    """What a client reports of its training.

    Raises:
        ReplyError: if a number is missing, none, or absurd.
    """
    values = _numbers(content, [_key(field.name) for field in fields(TrainReport)])
    _check_counts(values, most_examples)
    named = {field.name: values[_key(field.name)] for field in fields(TrainReport)}
    partition, examples = int(named.pop("partition")), int(named.pop("examples"))
    return TrainReport(partition=partition, examples=examples, **named)


def evaluation_report_in(content: RecordDict, *, most_examples: int) -> EvaluationReport:
    """What a client reports of an evaluation.

    Raises:
        ReplyError: if a number is missing, none, or absurd.
    """
    values = _numbers(content, [_key(field.name) for field in fields(EvaluationReport)])
    _check_counts(values, most_examples)
    if not 0 <= values["accuracy"] <= 1:
        raise ReplyError(f"accuracy {values['accuracy']} is not within 0 and 1")
    return EvaluationReport(
        partition=int(values["partition"]),
        examples=int(values[_key("examples")]),
        loss=values["loss"],
        accuracy=values["accuracy"],
    )


def _key(name: str) -> str:
    return "num-examples" if name == "examples" else name.replace("_", "-")


def _numbers(content: RecordDict, names: list[str]) -> dict[str, float]:
    records = list(content.metric_records.values())
    if len(records) != 1:
        raise ReplyError(f"{len(records)} records of metrics; need one")
    values = {}
    for name in names:
        value = records[0].get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ReplyError(f"{name} is {value!r}; need a number")
        if not math.isfinite(value):
            raise ReplyError(f"{name} is {value}")
        values[name] = value
    return values


def _check_counts(values: dict[str, float], most_examples: int) -> None:
    examples, partition = values[_key("examples")], values["partition"]
    if not isinstance(examples, int) or not 1 <= examples <= most_examples:
        raise ReplyError(f"num-examples {examples!r} is absurd; 1 to {most_examples:,} are taken")
    if not isinstance(partition, int) or not 0 <= partition < 2**31:
        raise ReplyError(f"partition {partition!r} cannot be")


def _array_record(payload: bytes) -> ArrayRecord:
    array = Array(dtype="uint8", shape=(len(payload),), stype=_STYPE, data=payload)
    return ArrayRecord({_PAYLOAD: array})
