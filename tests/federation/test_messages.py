"""A message holds one record; whatever else comes is refused, by name."""

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from hypothesis import given
from hypothesis import strategies as st

from csg_core.payload import PayloadError
from federation import messages
from federation.interface import Interface
from federation.messages import (
    ReplyError,
    TrainReport,
    instruction,
    interface_in,
    numbers_in,
    partition_claimed_in,
    payload_bytes_in,
    payload_in,
    reply,
    train_report_in,
)

REPORT = TrainReport(
    partition=3, examples=20, train_loss=1.5, loss_before=2.0, loss_after=1.0, seconds=0.5
)
ETH0 = Interface(name="eth0", shared=False, received=10, sent=2**40)


def _carried(content):
    """A content as it comes out of Flower's objects and of its messages."""
    objects = get_all_nested_objects(content)
    assert len(objects) <= 1 + len(content), "the RecordDict, and an object for each record"
    deflated = {name: found.deflate() for name, found in objects.items()}
    return (
        inflate_object_from_contents(content.object_id, deflated),
        recorddict_from_proto(recorddict_to_proto(content)),
    )


@given(payload=st.binary(max_size=300), piece=st.integers(1, 40))
def test_a_payload_of_any_length_comes_back_in_pieces(payload, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "PIECE_BYTES", piece)
        content = reply(payload, REPORT, ETH0)
        assert len(content) == max(1, math.ceil(len(payload) / piece))
        for found in _carried(content):
            assert payload_in(found) == payload
            assert payload_bytes_in(found) == len(payload)
            assert train_report_in(found, most_examples=20) == REPORT
            assert interface_in(found) == ETH0


def test_a_message_of_one_piece_is_one_record():
    content = instruction(bytes(messages.PIECE_BYTES), 7, ConfigRecord({"proximal-mu": 0.5}))
    assert list(content) == ["message"]
    assert dict(numbers_in(content)) == {"server-round": 7, "proximal-mu": 0.5}
    assert [len(record["payload"]) for record in content.config_records.values()] == [5_242_880]


def _with(**values):
    content = reply(b"xy", REPORT, ETH0)
    content["message"].update({key.replace("_", "-"): value for key, value in values.items()})
    return content


def _and(records):
    content = reply(b"", REPORT)
    content.update(records)
    return content


@pytest.mark.parametrize(
    ("content", "message", "size"),
    [
        (RecordDict(), r"without the one record 'message' \(records: \[\]", 0),
        (RecordDict({"message": MetricRecord({"partition": 1})}), "without the one record", 0),
        (RecordDict({"message": ArrayRecord({"x": Array(np.zeros(2))})}), "without the one", 144),
        (_and({"more": ConfigRecord()}), "without the one record", 0),
        (_and({"message-1": ConfigRecord({"payload": b"abc", "x": 1})}), "without", 3),
        (_and({"message-2": ConfigRecord({"payload": b"abcd"})}), "without the one rec", 4),
        (reply(None, REPORT), "without bytes 'payload'", 0),
        (_with(payload="text"), "without bytes 'payload'", 0),
        (_and({"message-1": ConfigRecord({"payload": [b"x"]})}), "without bytes", 0),
    ],
)
def test_another_shape_is_refused(content, message, size):
    with pytest.raises(PayloadError, match=message):
        payload_in(content)
    assert payload_bytes_in(content) == size
    assert partition_claimed_in(content) in (3, math.inf)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"partition": True}, "partition is True; need a number"),
        ({"partition": -1}, "partition -1 cannot be"),
        ({"partition": 1.0}, r"partition 1\.0 cannot be"),
        ({"num_examples": 21}, "num-examples 21 is absurd; 1 to 20"),
        ({"num_examples": 0}, "absurd"),
        ({"train_loss": float("nan")}, "train-loss is nan"),
        ({"loss_after": "0"}, "loss-after is '0'; need a number"),
        ({"seconds": [1.0] * 1000}, r"seconds is \[1.0, .{50,60}\.\.\.; need a number"),
    ],
)
def test_numbers_that_cannot_be_are_named(values, message):
    with pytest.raises(ReplyError, match=message):
        train_report_in(_with(**values), most_examples=20)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interface_name": ""}, "interface-name '' cannot be"),
        ({"interface_name": "e" * 16}, "interface-name 'eeeeeeeeeeeeeeee' cannot be"),
        ({"interface_name": "a\nb"}, "interface-name"),
        ({"interface_name": 5}, "interface-name 5 cannot be"),
        ({"interface_shared": 1}, "interface-shared is 1; need true or false"),
        ({"interface_sent": -1}, "interface-sent -1 cannot be"),
        ({"interface_sent": 1.5}, r"interface-sent 1\.5 cannot be"),
        ({"interface_received": True}, "interface-received True cannot be"),
        ({"interface_received": 2**63}, "interface-received 9223372036854775808 cannot be"),
    ],
)
def test_counters_that_cannot_be_are_named(values, message):
    with pytest.raises(ReplyError, match=message):
        interface_in(_with(**values))


def test_counters_may_be_missing_altogether_but_not_in_part():
    assert interface_in(reply(b"", REPORT)) is None
    content = reply(b"", REPORT, ETH0)
    del content["message"]["interface-sent"]
    with pytest.raises(ReplyError, match="interface-sent None cannot be"):
        interface_in(content)
