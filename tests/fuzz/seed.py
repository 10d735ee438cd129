"""Write the corpus that fuzzing begins with: ``python -m tests.fuzz.seed``.

Small inputs of every kind that a door tells apart; the same bytes on every machine. Files of other
names, as of what a fuzzer found, stay.
"""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from csg_core.codecs import Float16, Predicted
from csg_core.codecs.base import Values
from csg_core.payload import seal
from federation.messages import EvaluationReport, TrainReport, reply
from tests.fuzz.__main__ import HERE
from tests.fuzz.doors import FIT, LINES, PARTS, PREDICTED, RAW, SIZE, WHOLE, codec, held, label


def main() -> None:
    """Write every seed."""
    for door, seeds in (("server", _server()), ("client", _client()), ("messages", _messages())):
        folder = HERE / "corpus" / door
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in seeds.items():
            (folder / f"seed-{name}").write_bytes(content)


def _values(scale: float = 0.01) -> Values:
    return (np.random.default_rng(1).laplace(size=SIZE) * scale).astype(np.float32)


def _body(number: int, scale: float = 0.01) -> bytes:
    return codec(number).encode(_values(scale), PARTS, np.random.default_rng(2))


def _server() -> dict[str, bytes]:
    seeds = {}
    for number in range(len(LINES)):
        body = _body(number)
        zeros = codec(number).encode(np.zeros(SIZE, np.float32), PARTS, np.random.default_rng(2))
        seeds[f"{number:02d}-good"] = bytes([number, 0]) + body
        seeds[f"{number:02d}-zeros"] = bytes([number, 0]) + zeros
        seeds[f"{number:02d}-cut"] = bytes([number, 0]) + body[: len(body) // 2]
        seeds[f"{number:02d}-whole"] = bytes([number, RAW]) + seal(body, label(), codec(number))
        seeds[f"{number:02d}-fit"] = bytes([number, FIT]) + body[:40]
        seeds[f"{number:02d}-large"] = bytes([number, 0]) + b"\xff" * len(body)
        predicted = Predicted(codec(number), held().deltas)
        values = _values() + 0.5 * held().deltas[1]
        for name, own in (("predicted", predicted), ("predicted-less", Predicted(codec(number)))):
            body = own.encode(values, PARTS, np.random.default_rng(2))
            seeds[f"{number:02d}-{name}"] = bytes([number, PREDICTED]) + body
    return seeds


def _client() -> dict[str, bytes]:
    seeds = {}
    key = Float16().encode(held().values, PARTS, np.random.default_rng(2))
    for number in range(len(LINES)):
        delta, start = _body(number), bytes([number, 0])
        seeds[f"{number:02d}-delta"] = start + _frame(0, 0, delta)
        seeds[f"{number:02d}-chain"] = start + _frame(0, 0, delta) * 3
        like = Predicted(codec(number), held().deltas).encode(
            held().deltas[0] + _values(), PARTS, np.random.default_rng(2)
        )
        seeds[f"{number:02d}-predicted"] = bytes([number, PREDICTED]) + _frame(0, 0, like) * 2
        seeds[f"{number:02d}-model"] = bytes([number, WHOLE]) + _frame(1, 0, delta)
        seeds[f"{number:02d}-fit"] = start + _frame(FIT, 0, delta[:40])
    seeds["key"] = bytes([0, 0]) + _frame(1, 0, key)
    seeds["key-and-delta"] = bytes([5, 0]) + _frame(1, 0, key) + _frame(0, 0, _body(5))
    seeds["key-twice"] = bytes([5, 0]) + _frame(1, 0, key) * 2
    seeds["old"] = bytes([5, 0]) + _frame(0, 255, b"") + _frame(0, 0, _body(5))
    nothing = LINES.index("none")
    for count in (2, 64, 65):
        seeds[f"empty-{count}"] = bytes([nothing, 0]) + _frame(0, 0, b"") * count
    return seeds


def _frame(what: int, step: int, body: bytes) -> bytes:
    return bytes([what, step]) + len(body).to_bytes(2, "little") + body


def _messages() -> dict[str, bytes]:
    train = TrainReport(
        partition=1, examples=100, train_loss=2.0, loss_before=2.5, loss_after=1.5, seconds=3.0
    )
    evaluation = EvaluationReport(partition=1, examples=100, loss=2.0, accuracy=0.5)
    good = reply(b"payload", train)
    two = RecordDict({**good, "more": MetricRecord({"partition": 1})})
    array = RecordDict({**good, "arrays": ArrayRecord({"payload": Array(np.zeros(3))})})
    pieces = RecordDict({**good, "message-1": ConfigRecord({"payload": b"more"})})
    odd = RecordDict({"message": ConfigRecord({**good["message"], "partition": [1, 2],
        "num-examples": 2**63, "train-loss": float("nan"), "interface-name": "eth0"})})  # fmt: skip
    contents = {"train": good, "evaluation": reply(None, evaluation), "two": two, "array": array,
                "pieces": pieces,
                "odd": odd, "empty": RecordDict()}  # fmt: skip
    return {
        name: recorddict_to_proto(content).SerializeToString(deterministic=True)
        for name, content in contents.items()
    }


if __name__ == "__main__":
    main()
