"""Whatever one client answers, it alone fails, by name, and the others' updates count."""

import io

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Metadata, MetricRecord
from flwr.app.message import make_message
from flwr.supercore.task_identity import TaskIdentity

from csg_core import build, manifest, pack
from csg_core.codecs import codec_named
from csg_core.payload import encode
from federation.messages import TrainReport, reply
from server.strategy import CsgStrategy, model_record

NODES = (11, 12, 13)


class _Nodes:
    """All that the strategy asks of a Grid."""

    def get_node_ids(self):
        return NODES


@pytest.fixture
def strategy(tiny, monkeypatch):
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    recipe = tiny(data={"clients": 3}, server={"min_clients": 2})
    model, groups = build(recipe.model, seed=0), recipe.train.travelling()
    made = CsgStrategy(recipe, manifest(model, groups), pack(model, groups))
    made.configure_train(1, model_record(made.downlink.first), ConfigRecord(), _Nodes())
    return made


def _message(node, content=None, error=None):
    about = Metadata(
        run_id=1,
        message_id="",
        src_node_id=node,
        dst_node_id=1,
        group_id="1",
        reply_to_message_id="x",
        created_at=1.0,
        ttl=9.0,
        message_type="train",
    )
    return make_message(about, content=content, error=error)


def _honest(strategy, partition):
    codec = codec_named(strategy.recipe.wire.uplink)
    update = np.full(strategy.manifest.size, 0.5, np.float32)
    payload = encode(update, strategy.downlink.update_label(1), codec, np.random.default_rng(0))
    return reply(payload, TrainReport(partition=partition, examples=10, train_loss=1.0,
                                      loss_before=1.0, loss_after=1.0, seconds=1.0))  # fmt: skip


def _metric(name, value):
    def change(content):
        content["metrics"][name] = value

    return change


def _array(**fields):
    def change(content):
        given = {"dtype": "uint8", "shape": (1,), "stype": "csg-fl", "data": b"x", **fields}
        content["arrays"] = ArrayRecord({"payload": Array(**given)})

    return change


def _without(name):
    return lambda content: content.pop(name)


def _more(name, record):
    def change(content):
        content[name] = record

    return change


def _npy_of_objects():
    stream = io.BytesIO()
    np.save(stream, np.array([{}], dtype=object), allow_pickle=True)
    return stream.getvalue()


CHANGES = {
    "a list for a number": (_metric("train-loss", [1.0, 2.0]), "train-loss is"),
    "a list for the partition": (_metric("partition", [0, 1]), "partition is"),
    "no partition": (lambda content: content["metrics"].pop("partition"), "partition is None"),
    "NaN for the partition": (_metric("partition", float("nan")), "partition is nan"),
    "NaN": (_metric("train-loss", float("nan")), "train-loss is nan"),
    "infinity": (_metric("seconds", float("inf")), "seconds is inf"),
    "the largest integer": (_metric("partition", 2**64 - 1), "cannot be"),
    "a fraction of an example": (_metric("num-examples", 1.5), "num-examples 1.5"),
    "more examples than there are": (_metric("num-examples", 2**62), "is absurd"),
    "no metrics": (_without("metrics"), "0 records of metrics"),
    "two records of metrics": (_more("b", MetricRecord({"partition": 0})), "2 records of metrics"),
    "no arrays": (_without("arrays"), "without the one array"),
    "two records of arrays": (_more("b", ArrayRecord({"payload": Array(np.ones(1))})), "without"),
    "two arrays": (_more("arrays", ArrayRecord({name: Array(np.ones(1)) for name in "ab"})), "wit"),
    "an array of another name": (_more("arrays", ArrayRecord({"x": Array(np.ones(1))})), "without"),
    "numbers": (_array(dtype="float32"), "need uint8"),
    "a pickle": (_array(data=b"\x80\x04cos\nsystem\n"), "payload of"),
    "objects": (_array(data=_npy_of_objects(), stype="numpy.ndarray"), "need uint8"),
    "nothing": (_array(data=b""), "payload of 0 bytes"),
    "too much": (_array(data=bytes(10_000_000)), "this round takes"),
    "another's partition": (_metric("partition", 1), "claims partition 1"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_wrong_with_a_reply_is_that_clients_failure(strategy, name):
    change, said = CHANGES[name]
    bad = _honest(strategy, 0)
    change(bad)
    replies = [_message(13, bad), *(_message(node, _honest(strategy, place + 1))
               for place, node in enumerate(NODES[:2]))]  # fmt: skip
    arrays, _ = strategy.aggregate_train(1, replies)
    assert sorted(report.partition for report in strategy.outcome.reports) == [1, 2]
    ((who, why),) = strategy.outcome.failures.items()
    assert who == "node 13"
    assert said in why
    moved = arrays["model"].numpy() - strategy.downlink.first
    assert np.allclose(moved, 0.5, atol=0.01)


@pytest.mark.parametrize("reason", [None, "", "\n\n", "Traceback\n  line\nValueError: no data"])
def test_an_error_in_place_of_an_answer(strategy, reason):
    replies = [_message(13, error=Error(2, reason)), *(_message(node, _honest(strategy, place + 1))
               for place, node in enumerate(NODES[:2]))]  # fmt: skip
    strategy.aggregate_train(1, replies)
    (why,) = strategy.outcome.failures.values()
    assert why == ("ValueError: no data" if reason and reason.strip() else
                   "an error without a reason")  # fmt: skip


def test_replies_that_nobody_asked_for_are_left_out(strategy):
    replies = [_message(node, _honest(strategy, place)) for place, node in enumerate(NODES)]
    twice, stranger = _message(12, _honest(strategy, 5)), _message(99, _honest(strategy, 6))
    strategy.aggregate_train(1, [*replies, twice, stranger])
    assert [report.partition for report in strategy.outcome.reports] == [0, 1, 2]
    assert not strategy.outcome.failures
