"""Replies are made of a client's objects: any of them can be wrong, and only that client fails."""

import hashlib
import json
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Error, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, ObjectTree, PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import MetricRecord as ProtoMetricRecord
from flwr.proto.recorddict_pb2 import MetricRecordValue
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.task_identity import TaskIdentity

from federation.messages import TrainReport, payload_in, reply
from server.grid import GuardedGrid, read
from server.nodes import refusal

MOST = 10_000
REPORT = TrainReport(
    partition=1, examples=9, train_loss=2.0, loss_before=2.5, loss_after=1.5, seconds=3.0
)


def _metadata(**changes):
    values = {"run_id": 1, "message_id": "", "src_node_id": 11, "dst_node_id": 1, "group_id": "1",
              "reply_to_message_id": "asked", "created_at": 1.0, "ttl": 9.0,
              "message_type": "train"}  # fmt: skip
    return Metadata(**{**values, **changes})


class _SuperLink:
    """Flower's own object store behind the three calls that the Grid makes."""

    def __init__(self):
        self.store, self.replies, self.forgotten = InMemoryObjectStore(), [], []

    def PullMessages(self, _request):  # noqa: N802
        found, self.replies = self.replies, []
        return PullAppMessagesResponse(
            messages_list=[message for message, _ in found],
            message_object_trees=[tree for _, tree in found],
        )

    def PullObject(self, request):  # noqa: N802
        content = self.store.get(request.object_id)
        return PullObjectResponse(object_found=content is not None, object_available=bool(content),
                                  object_content=content or b"")  # fmt: skip

    def ConfirmMessageReceived(self, request):  # noqa: N802
        self.forgotten.append(request.message_object_id)
        self.store.delete(request.message_object_id)
        return ConfirmMessageReceivedResponse()

    def push(self, root, tree, objects, claimed=None):
        """What PushMessages and PushObject do for a client; claimed: checked metadata."""
        self.store.preregister(1, tree)
        for object_id, content in objects.items():
            self.store.put(object_id, content)  # Flower's validation with it
        about = make_message(claimed or _metadata(message_id=root), content=RecordDict())
        self.replies.append((message_to_proto(about), tree))


@pytest.fixture
def link():
    return _SuperLink()


@pytest.fixture
def grid(link):
    http = SimpleNamespace(_runtime_client=link, node=Node(node_id=1),
                           run=SimpleNamespace(run_id=1))  # fmt: skip
    return GuardedGrid(http, MOST)


def _object(kind, children, body):
    content = f"{kind} {','.join(children)} {len(body)}".encode() + HEAD_BODY_DIVIDER + body
    validate_object_content(content)  # so the SuperLink takes it
    return hashlib.sha256(content).hexdigest(), content


def _push_honest(link, payload=b"payload", **metadata):
    message = make_message(_metadata(**metadata), content=reply(payload, REPORT))
    objects = {name: found.deflate() for name, found in get_all_nested_objects(message).items()}
    link.push(message.object_id, get_object_tree(message), objects)
    return message.object_id


def _push_around(link, name, content, children=()):
    """A message whose content is the object given."""
    about = make_message(_metadata(), content=RecordDict())
    body = message_to_proto(about).SerializeToString()
    root, message = _object("Message", [name], body)
    nodes = [ObjectTree(object_id=child) for child, _ in children]
    tree = ObjectTree(object_id=root, children=[ObjectTree(object_id=name, children=nodes)])
    link.push(root, tree, {**dict(children), name: content, root: message})


def test_an_honest_reply_comes_through_and_is_forgotten(grid, link):
    root = _push_honest(link)
    (found,) = grid.pull_messages(["asked"])
    assert payload_in(found.content) == b"payload"
    assert found.metadata.src_node_id == 11
    assert link.forgotten == [root]
    assert len(link.store) == 0


def test_the_sender_is_who_the_superlink_says_not_who_the_message_says(grid, link):
    inner = make_message(_metadata(src_node_id=99, reply_to_message_id="other"),
                         content=reply(b"x", REPORT))  # fmt: skip
    objects = {name: found.deflate() for name, found in get_all_nested_objects(inner).items()}
    link.push(inner.object_id, get_object_tree(inner), objects)
    (found,) = grid.pull_messages(["asked"])
    assert found.metadata.src_node_id == 11
    assert found.metadata.reply_to_message_id == "asked"


def test_an_upload_that_stops_holds_nobody_up(grid, link):
    inner = make_message(_metadata(src_node_id=12), content=reply(b"x", REPORT))
    objects = {name: found.deflate() for name, found in get_all_nested_objects(inner).items()}
    late = dict([objects.popitem()])
    checked = _metadata(message_id=inner.object_id, src_node_id=12, reply_to_message_id="b")
    link.push(inner.object_id, get_object_tree(inner), objects, checked)
    _push_honest(link)
    (found,) = grid.pull_messages(["asked", "b"])
    assert found.metadata.src_node_id == 11
    assert list(grid.pull_messages(["b"])) == []
    link.store.put(*late.popitem())
    (found,) = grid.pull_messages(["b"])
    assert found.metadata.src_node_id == 12


def test_an_upload_that_is_too_late_is_dropped(grid, link, monkeypatch):
    monkeypatch.setattr("server.nodes._PULL_S", 0.01)
    for name in ("_run_id", "_task_id", "_node_id"):  # whoever is silent is asked
        monkeypatch.setattr(TaskIdentity, name, 1)
    grid._grid.push_messages = lambda messages: ["asked" for _ in messages]
    grid._grid.get_nodes = list
    asked = [make_message(_metadata(src_node_id=1, dst_node_id=11), content=RecordDict())]
    inner = make_message(_metadata(), content=reply(b"x", REPORT))
    objects = {name: found.deflate() for name, found in get_all_nested_objects(inner).items()}
    objects.popitem()
    link.push(inner.object_id, get_object_tree(inner), objects)
    assert grid.send_and_receive(asked, timeout=1.0) == []
    assert link.forgotten == [inner.object_id]
    _push_honest(link)
    (found,) = grid.send_and_receive(asked, timeout=5)
    assert payload_in(found.content) == b"payload"


def test_what_answers_nothing_is_dropped_unread(grid, link):
    for number in range(3):
        inner = make_message(_metadata(), content=reply(bytes([number]), REPORT))
        objects = {name: found.deflate() for name, found in get_all_nested_objects(inner).items()}
        unasked = _metadata(message_id=inner.object_id, src_node_id=1, reply_to_message_id="")
        link.push(inner.object_id, get_object_tree(inner), objects, unasked)
    assert list(grid.pull_messages(["asked"])) == []
    assert len(link.forgotten) == 3
    assert len(link.store) == 0


def _bomb():
    chunk = _object("ArrayChunk", [], bytes(5_000))
    body = {"dtype": "uint8", "shape": [1], "stype": "csg-fl", "arraychunk_ids": [0] * 100_000}
    return _object("Array", [chunk[0]], json.dumps(body).encode()), [chunk]


def test_one_chunk_named_many_times_allocates_nothing(link):
    http = SimpleNamespace(_runtime_client=link, node=Node(node_id=1),
                           run=SimpleNamespace(run_id=1))  # fmt: skip
    grid = GuardedGrid(http, 2_000_000)
    (name, content), chunks = _bomb()
    _push_around(link, name, content, chunks)
    tracemalloc.start()
    (found,) = grid.pull_messages(["asked"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "arrays of 501,700,000 bytes; 2,065,536 are taken" in found.error.reason
    assert peak < 20_000_000


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("Array", b"{}", "KeyError"),
        ("Array", b"nope", "JSONDecodeError"),
        ("Array", b"[" * 9_000, "Error"),
        ("Array", b'{"dtype": 1, "shape": 2, "stype": 3, "arraychunk_ids": []}', "TypeError"),
        ("Array", b'{"arraychunk_ids": [7]}', "IndexError"),
        ("Array", b'{"arraychunk_ids": "ab"}', "TypeError"),
        ("MetricRecord", b"\xff\xff", "DecodeError"),
        ("MetricRecord", ProtoMetricRecord(items=[ProtoMetricRecord.Item(
            key="partition", value=MetricRecordValue())]).SerializeToString(), "AttributeError"),
        ("MetricRecord", b"", "MessageInitializationError"),
        ("ConfigRecord", b"", "MessageInitializationError"),
        ("RecordDict", b"nope", "Error"),
        ("ArrayRecord", b"nope", "Error"),
        ("CustomDataClass", b"", "KeyError"),
    ],
)  # fmt: skip
def test_objects_that_flower_cannot_read_are_that_clients_failure(grid, link, kind, body, said):
    _push_around(link, *_object(kind, [], body))
    _push_honest(link)
    bad, good = sorted(grid.pull_messages(["asked"]), key=lambda message: not message.has_error())
    assert said in bad.error.reason
    assert len(bad.error.reason) < 300
    assert bad.metadata.src_node_id == 11
    assert payload_in(good.content) == b"payload"


def test_too_large_and_too_many_are_refused_before_all_is_fetched(grid, link):
    _push_honest(link, np.random.default_rng(0).bytes(80_000))
    (found,) = grid.pull_messages(["asked"])
    assert refusal(found.error, 9.0) == "its reply cannot be read: more than 75,536 bytes"
    chunks = [_object("ArrayChunk", [], bytes([number])) for number in range(30)]
    _push_around(link, *_object("RecordDict", [], b"{}"), chunks)
    (found,) = grid.pull_messages(["asked"])
    assert "32 objects; 16 are taken" in found.error.reason


def test_what_is_no_message_is_none():
    name, content = _object("ArrayChunk", [], b"x")
    with pytest.raises(ValueError, match="ArrayChunk in place of a message"):
        read(_metadata(message_id=name), {name: content}, MOST)


def test_an_error_reply_comes_through(grid, link):
    inner = make_message(_metadata(), error=Error(2, "no data here"))
    link.push(inner.object_id, get_object_tree(inner), {inner.object_id: inner.deflate()})
    (found,) = grid.pull_messages(["asked"])
    assert found.error.reason == "no data here"
