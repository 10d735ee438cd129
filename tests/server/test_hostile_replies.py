"""Whatever one client answers, it alone fails, by name, and the others' updates count."""

import io

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, MetricRecord
from flwr.common.constant import ErrorCode

from csg_core.payload import Passed
from federation.messages import payload_bytes_in, payload_in
from server.aggregation import model_record
from tests.server.replies import NODES, Nodes, honest, message_of, reply_of


@pytest.fixture
def strategy(made):
    return made()


def _passed(strategy, value, *, version=1, shape=None):
    """An update of a client of this process, handed over as it is."""
    update = torch.full(shape or (strategy.manifest.size,), value)
    return reply_of(Passed(values=update, kind="update", round=1, version=version), 0)


def _value(name, value):
    def change(content):
        content["message"][name] = value

    return change


def _without(name):
    return lambda content: content["message"].pop(name)


def _more(name, record):
    def change(content):
        content[name] = record

    return change


def _npy_of_objects():
    stream = io.BytesIO()
    np.save(stream, np.array([{}], dtype=object), allow_pickle=True)
    return stream.getvalue()


CHANGES = {
    "a list for a number": (_value("train-loss", [1.0, 2.0]), "train-loss is"),
    "a list for the partition": (_value("partition", [0, 1]), "partition is"),
    "no partition": (lambda content: content["message"].pop("partition"), "partition is None"),
    "NaN for the partition": (_value("partition", float("nan")), "partition is nan"),
    "NaN": (_value("train-loss", float("nan")), "train-loss is nan"),
    "infinity": (_value("seconds", float("inf")), "seconds is inf"),
    "the largest integer": (_value("partition", 2**64 - 1), "cannot be"),
    "a fraction of an example": (_value("num-examples", 1.5), "num-examples 1.5"),
    "more examples than there are": (_value("num-examples", 2**62), "is absurd"),
    "more than a loss can be": (_value("train-loss", 1e300), "train-loss is 1e+300"),
    "less than a loss can be": (_value("train-loss", -1.0), "train-loss is -1"),
    "an integer for a loss": (_value("train-loss", -(2**62)), "train-loss is -4611"),
    "seconds before it began": (_value("seconds", -5), "seconds is -5"),
    "no record": (lambda content: content.pop("message"), "without the one record"),
    "a second record": (_more("b", MetricRecord({"partition": 0})), "without the one record"),
    "an array": (_more("arrays", ArrayRecord({"payload": Array(np.ones(1))})), "without the one"),
    "a second payload": (_more("message-1", ConfigRecord({"payload": b"x"})), "payload of"),
    "a piece with more": (_more("message-1", ConfigRecord({"payload": b"", "x": 1})), "without"),
    "no payload": (_without("payload"), "without bytes 'payload'"),
    "text for the payload": (_value("payload", "x"), "without bytes 'payload'"),
    "a pickle": (_value("payload", b"\x80\x04cos\nsystem\n"), "payload of"),
    "objects": (_value("payload", _npy_of_objects()), "payload"),
    "nothing": (_value("payload", b""), "payload of 0 bytes"),
    "too much": (_value("payload", bytes(10_000_000)), "this round takes"),
    "an interface of no name": (_value("interface-name", "\x1b]0;"), "interface-name"),
    "another's partition": (_value("partition", 1), "claims partition 1"),
}


def _among_honest(strategy, content=None, error=None):
    """What node 13 replies, and two honest updates."""
    others = enumerate(NODES[:2], start=1)
    return [
        message_of(13, content, error),
        *(message_of(node, honest(strategy, partition)) for partition, node in others),
    ]


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_wrong_with_a_reply_is_that_clients_failure(strategy, name):
    change, said = CHANGES[name]
    bad = honest(strategy, 0)
    change(bad)
    replies = _among_honest(strategy, bad)
    arrays, _ = strategy.aggregate_train(1, replies)
    assert sorted(report.partition for report in strategy.outcome.reports.values()) == [1, 2]
    ((who, why),) = strategy.outcome.failures.items()
    assert who == "node 13"
    assert said in why
    moved = arrays["model"].numpy() - strategy.downlink.held
    assert np.allclose(moved, 0.5, atol=0.01)
    sizes = [payload_bytes_in(reply.content) for reply in replies]
    assert strategy.outcome.bytes_up == sum(sizes), "what is refused has come too"
    assert strategy.outcome.updates == 3


@pytest.mark.parametrize("reason", [None, "", "\n\n", "Traceback\n  line\nValueError: no data"])
def test_an_error_in_place_of_an_answer(strategy, reason):
    replies = _among_honest(strategy, error=Error(2, reason))
    strategy.aggregate_train(1, replies)
    (why,) = strategy.outcome.failures.values()
    assert why == ("ValueError: no data" if reason and reason.strip() else
                   "an error without a reason")  # fmt: skip


def test_a_reason_is_cut_and_steers_no_terminal(strategy):
    reason = "\x1b]0;mine\x07\x1b[2J" + "x" * 3_000_000
    replies = _among_honest(strategy, error=Error(2, reason))
    strategy.aggregate_train(1, replies)
    (why,) = strategy.outcome.failures.values()
    assert why.isprintable()
    assert len(why) == 300


def _fails_alone(strategy, bad):
    """Why the reply of node 13 failed, the two others being honest; and the next model."""
    replies = _among_honest(strategy, bad)
    arrays, _ = strategy.aggregate_train(1, replies)
    ((who, why),) = strategy.outcome.failures.items()
    assert who == "node 13"
    return why, arrays


@pytest.mark.parametrize("value", [1e6, -3e38])
def test_a_model_that_could_not_be_sent_on_is_refused(strategy, value):
    """As a float16 key frame, or at all: the next round would end the run."""
    why, arrays = _fails_alone(strategy, honest(strategy, 0, value))
    assert "65,504 is the largest" in why
    strategy.configure_train(2, arrays, ConfigRecord(), Nodes())


@pytest.mark.parametrize("downlink", ["fp32", "uniform:bits=4"])
def test_the_bound_is_of_what_would_be_sent_next(made, downlink):
    """Which is the update, what clients were sent, and what that left out."""
    strategy = made(wire={"downlink": downlink, "deltas": True}, far=60_000)
    why, arrays = _fails_alone(strategy, honest(strategy, 0, 6_000.0))
    assert "its model has a value of 66" in why
    strategy.configure_train(2, arrays, ConfigRecord(), Nodes())


def test_a_coarse_downlink_near_the_bound_ends_no_run(made):
    """Clients may have been sent more than the model, and evaluate what is beyond the bound."""
    wire = {"downlink": "uniform:bits=1,rotate=true", "deltas": True}
    strategy = made(wire=wire, far=30_000, holdout=0.1)
    assert strategy.downlink.held.max() == 65_504
    arrays, _ = strategy.aggregate_train(
        1, [message_of(node, honest(strategy, place, 9.0)) for place, node in enumerate(NODES)]
    )
    assert arrays["model"].numpy().max() > 65_504
    assert len(strategy.configure_evaluate(1, arrays, ConfigRecord(), Nodes())) == len(NODES)
    strategy.configure_train(2, arrays, ConfigRecord(), Nodes())


@pytest.mark.parametrize("deltas", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.1], ids=["statistics travel", "statistics stay"])
def test_momentum_beyond_the_bound_ends_no_run(made, deltas, kept):
    """Updates that are within it one by one add up."""
    momentum = {"strategy": "fedavgm", "options": {"server_momentum": 0.9}}
    strategy = made(wire={"deltas": deltas}, server=momentum, holdout=kept)
    largest = 0.0
    for round_ in range(1, 6):
        value = 65_400 - strategy.downlink.held.max()
        replies = [
            message_of(node, honest(strategy, place, value, round_))
            for place, node in enumerate(NODES)
        ]
        arrays, _ = strategy.aggregate_train(round_, replies)
        assert not strategy.outcome.failures
        strategy.configure_train(round_ + 1, arrays, ConfigRecord(), Nodes())
        largest = max(largest, strategy.downlink.held.max())
    assert largest == 65_504


def test_a_partition_is_of_the_first_who_had_it(made):
    """A newcomer that claims it fails, and not the client, however their node ids are ordered."""
    strategy = made()
    first = [message_of(12, honest(strategy, 0)), message_of(13, honest(strategy, 1))]
    arrays, _ = strategy.aggregate_train(1, first)
    for round_ in (2, 3):
        strategy.configure_train(round_, arrays, ConfigRecord(), Nodes())
        replies = [message_of(node, honest(strategy, partition, round_=round_))
                   for node, partition in ((11, 0), (12, 0), (13, 1))]  # fmt: skip
        arrays, _ = strategy.aggregate_train(round_, replies)
        assert list(strategy.outcome.reports) == [12, 13]
        ((who, why),) = strategy.outcome.failures.items()
        assert who == "node 11"
        assert "claims partition 0, which another client trained" in why


def test_a_partition_is_a_newcomers_while_its_owner_does_not_answer(made):
    """As when a client comes back under a new key, and Flower still lists the old one."""
    strategy = made()
    first = [message_of(11, honest(strategy, 0)), message_of(12, honest(strategy, 1))]
    arrays, _ = strategy.aggregate_train(1, first)
    strategy.configure_train(2, arrays, ConfigRecord(), Nodes())
    replies = [message_of(11, error=Error(ErrorCode.NODE_UNAVAILABLE, "")),
               message_of(12, honest(strategy, 1, round_=2)),
               message_of(13, honest(strategy, 0, round_=2))]  # fmt: skip
    strategy.aggregate_train(2, replies)
    assert list(strategy.outcome.reports) == [13, 12]


def test_a_partition_goes_to_a_newcomer_where_its_first_owner_is_gone(made):
    strategy = made()
    first = [message_of(11, honest(strategy, 0)), message_of(12, honest(strategy, 1))]
    arrays, _ = strategy.aggregate_train(1, first)
    for there, trained in (((12, 13), [12, 13]), (NODES, [11, 12])):
        round_ = there[0] - 9
        strategy.configure_train(round_, arrays, ConfigRecord(), Nodes(there))
        replies = [message_of(node, honest(strategy, int(node == 12), round_=round_))
                   for node in there]  # fmt: skip
        strategy.aggregate_train(round_, replies)
        assert sorted(strategy.outcome.reports) == trained


@pytest.mark.parametrize("code", [None, ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE])
def test_who_was_silent_in_a_round_is_not_asked_to_evaluate_in_it(made, code):
    strategy = made(holdout=0.1)
    replies = [message_of(node, honest(strategy, place)) for place, node in enumerate(NODES[:2])]
    if code is not None:  # Flower says so itself
        replies.append(message_of(13, error=Error(code, "")))
    arrays, _ = strategy.aggregate_train(1, replies)
    messages = strategy.configure_evaluate(1, arrays, ConfigRecord(), Nodes())
    assert [message.metadata.dst_node_id for message in messages] == list(NODES[:2])


@pytest.mark.parametrize(
    ("value", "other", "said"),
    [
        (1e6, {}, "65,504 is the largest"),
        (float("nan"), {}, "65,504 is the largest"),
        (-float("inf"), {}, "65,504 is the largest"),
        (0.5, {"version": 7}, "update of round 1, version 7; expected update of round 1, version"),
        (0.5, {"shape": (1,)}, r"float32 (1,); expected float32 ("),
        (1, {}, "torch.int64"),
    ],
)
def test_an_array_that_cannot_be_is_that_clients_failure(made, value, other, said):
    strategy = made(in_process=True)
    assert said in _fails_alone(strategy, _passed(strategy, value, **other))[0]


def test_arrays_are_taken_only_where_they_are_passed(made, strategy):
    why, _ = _fails_alone(strategy, _passed(strategy, 0.5))
    assert why == "an array in place of bytes"
    passing = made(in_process=True)
    passing.aggregate_train(1, [message_of(11, _passed(passing, 0.5)),
                                message_of(12, honest(passing, 1))])  # fmt: skip
    assert [report.partition for report in passing.outcome.reports.values()] == [0, 1]


@pytest.mark.parametrize(
    ("wire", "kind"),
    [
        ({}, Passed),
        ({"uplink": "fp16"}, bytes),
        ({"downlink": "uniform:bits=4"}, bytes),
        ({"downlink": "fp32z"}, bytes),
        ({"deltas": True}, bytes),
    ],
    ids=["fp32", "lossy up", "lossy down", "of another length", "deltas"],
)
def test_arrays_are_sent_where_their_bytes_would_hold_the_same_alone(made, wire, kind):
    strategy = made(wire=wire, in_process=True)
    arrays = model_record(strategy.downlink.held)
    messages = strategy.configure_train(1, arrays, ConfigRecord(), Nodes())
    assert {type(payload_in(message.content)) for message in messages} == {kind}


def test_replies_that_nobody_asked_for_are_left_out(strategy):
    replies = [message_of(node, honest(strategy, place)) for place, node in enumerate(NODES)]
    twice, stranger = message_of(12, honest(strategy, 5)), message_of(99, honest(strategy, 6))
    strategy.aggregate_train(1, [*replies, twice, stranger])
    assert [report.partition for report in strategy.outcome.reports.values()] == [0, 1, 2]
    assert not strategy.outcome.failures
    assert strategy.outcome.bytes_up == sum(payload_bytes_in(r.content) for r in replies)
