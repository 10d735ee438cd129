"""Who is waited for, and what errors of Flower's own are put down to."""

import time

import pytest
from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from federation.messages import instruction
from server import nodes
from server.nodes import Exchanges, gather, refusal


class Nodes(Grid):
    """Nodes that connect at their times; ``since`` is as SuperLink tells it."""

    def __init__(self, *joining: float) -> None:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
        self.since = dict.fromkeys(range(10, 10 + len(joining)), "once")
        self.restarting: int | None = None
        self.losing: set[int] = set()  # nodes that a first message does not reach
        self.working: set[int] = set()  # nodes that do not answer in time
        self.revoked: set[int] = set()  # nodes whose messages are not taken
        self.deaf = False  # whether all answer questions and no messages
        self.takes = 0.0  # seconds from a message to its reply
        self.coming: list[tuple[float, Message]] = []  # replies to be pulled, and when
        self.pushed: list[tuple[int, str]] = []
        self._joins = [time.monotonic() + seconds for seconds in joining]

    run = Run.create_empty(1)

    def set_run(self, run):
        pass

    def create_message(self, *_, **__):
        pytest.fail("a message is made by hand")

    def get_node_ids(self):
        return [number for number, at in enumerate(self._joins, start=10) if time.monotonic() >= at]

    def get_nodes(self):
        return [
            NodeInfo(node_id=n, name=f"n{n}", last_activated_at=self.since[n])
            for n in self.get_node_ids()
        ]

    def push_messages(self, messages):
        names = []
        for message in messages:
            of = message.metadata
            if of.dst_node_id in self.revoked:
                names.append("")
                continue
            names.append(f"m{len(self.pushed)}")
            of.__dict__["_message_id"] = names[-1]
            self.pushed.append((of.dst_node_id, of.message_type))
            if of.message_type == "train" and of.dst_node_id in self.losing:
                self.losing.remove(of.dst_node_id)
            elif of.dst_node_id not in self.working and not (
                self.deaf and of.message_type == "train"
            ):
                ready = time.monotonic() + self.takes
                self.coming.append((ready, Message(message.content, reply_to=message)))
        return names

    def pull_messages(self, message_ids):
        if self.restarting is not None:
            self.since[self.restarting] = "again"
        now, asked = time.monotonic(), set(message_ids)
        found = [
            (ready, reply)
            for ready, reply in self.coming
            if ready <= now and reply.metadata.reply_to_message_id in asked
        ]
        self.coming = [pair for pair in self.coming if pair not in found]
        return [reply for _, reply in found]

    def send_and_receive(self, *_, **__):
        raise AssertionError("its replies are pulled")


class Clock:
    """Time that passes where it is slept, and nowhere else: no machine is too busy for it."""

    def __init__(self) -> None:
        self._now = 0.0
        self.time = time.time

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(nodes, "time", clock)
    monkeypatch.setitem(globals(), "time", clock)
    monkeypatch.setattr(nodes, "_PULL_S", 0.02)
    monkeypatch.setattr(nodes, "_LOOK_S", 0.1)
    monkeypatch.setattr(nodes, "PROBE_S", 0.2)


def _gathered(grid, **limits) -> tuple[list[int], float]:
    began = time.monotonic()
    found = gather(grid, everyone=3, quorum=2, **limits)
    return list(found), time.monotonic() - began


def test_all_are_waited_for_and_no_longer():
    found, took = _gathered(Nodes(0, 0, 0.2), patience=20, timeout=20)
    assert found == [10, 11, 12]
    assert took < 5


def test_after_its_patience_the_quorum_is_enough():
    found, took = _gathered(Nodes(0, 0, 60), patience=0.3, timeout=20)
    assert found == [10, 11]
    assert 0.3 <= took < 5


def test_the_round_timeout_ends_the_waiting_for_a_quorum():
    found, took = _gathered(Nodes(0, 60, 60), patience=0.1, timeout=0.4)
    assert found == [10]
    assert 0.4 <= took < 5


def _messages(count: int) -> list[Message]:
    content = instruction(b"x", 1, {})
    return [
        Message(content, dst_node_id=n, message_type="train", ttl=60) for n in range(10, 10 + count)
    ]


def test_a_node_that_connects_anew_in_a_round_is_answered_for():
    """Flower itself would wait for its answer until the message expires."""
    grid = Nodes(0, 0)
    grid.working, grid.restarting = {10, 11}, 11
    began = time.monotonic()
    (reply,) = Exchanges(grid).exchange(_messages(2), timeout=1.0)
    assert time.monotonic() - began >= 1.0, "the other is waited for"
    assert reply.metadata.src_node_id == 11
    assert refusal(reply.error, 1.0) == "was restarted in this round"


@pytest.mark.parametrize("revoked", [{11}, {10, 11}], ids=["one", "the last ones"])
def test_a_client_whose_message_is_not_taken_is_told_from_a_slow_one(revoked, monkeypatch):
    grid = Nodes(0, 0)
    grid.revoked = revoked
    if revoked == {10, 11}:  # as when the whole request is refused
        monkeypatch.setattr(grid, "push_messages", lambda _messages: [])
    began = time.monotonic()
    replies = Exchanges(grid).exchange(_messages(2), timeout=20)
    assert time.monotonic() - began < 1.0, "it is not waited for"
    failed = {r.metadata.src_node_id: refusal(r.error, 20.0) for r in replies if r.has_error()}
    reason = nodes.NOT_TAKEN if len(revoked) == 1 else nodes.NONE_TAKEN
    assert failed == dict.fromkeys(revoked, reason)


def test_a_message_that_was_lost_is_sent_again_and_one_at_work_is_let_alone():
    grid = Nodes(0, 0, 0)
    grid.losing, grid.working = {11}, {12}
    replies = Exchanges(grid).exchange(_messages(3), timeout=1.5)
    assert [reply.metadata.src_node_id for reply in replies] == [10, 11]
    assert all(reply.content["message"] for reply in replies)
    sent = [node for node, kind in grid.pushed if kind == "train"]
    assert sent == [10, 11, 12, 11]


def test_a_message_is_sent_again_three_times_at_most():
    grid = Nodes(0)
    grid.deaf = True
    assert not Exchanges(grid).exchange(_messages(1), timeout=3)
    assert [kind for _, kind in grid.pushed].count("train") == 4


def test_clients_that_take_as_long_as_before_are_not_asked():
    grid = Nodes(0, 0)
    grid.takes = 0.7
    exchanges = Exchanges(grid)
    asked = []
    for _ in range(2):
        assert len(list(exchanges.exchange(_messages(2), timeout=20))) == 2
        asked.append(sum(kind == "query" for _, kind in grid.pushed))
    assert asked[0] > 0, "nothing is known of them at first"
    assert asked[1] == asked[0]
    grid.working = {11}
    list(exchanges.exchange(_messages(2), timeout=3))
    assert sum(kind == "query" for _, kind in grid.pushed) > asked[1]


def test_losses_round_after_round_are_found_as_fast():
    grid = Nodes(0, 0)
    exchanges = Exchanges(grid)
    for _ in range(4):
        grid.losing = {11}
        began = time.monotonic()
        assert len(list(exchanges.exchange(_messages(2), timeout=20))) == 2
        assert time.monotonic() - began < 1.0


def test_an_error_of_flowers_is_no_answer_by_which_others_are_measured(monkeypatch):
    grid = Nodes(0, 0)
    exchanges = Exchanges(grid)
    monkeypatch.setattr(nodes, "_LOOK_S", 1.5)
    grid.working, grid.restarting = {11}, 11  # given up then
    began = time.monotonic()
    list(exchanges.exchange(_messages(2), timeout=20))
    assert time.monotonic() - began > 1.5
    grid.working, grid.restarting, grid.losing = set(), None, {10}
    began = time.monotonic()
    assert len(list(exchanges.exchange(_messages(2), timeout=20))) == 2
    assert time.monotonic() - began < 1.0


def test_half_the_time_there_is_is_long_whatever_was_before():
    grid = Nodes(0, 0)
    exchanges = Exchanges(grid)
    grid.takes = 1.0
    list(exchanges.exchange(_messages(2), timeout=20))
    grid.takes, grid.losing = 0.0, {11}
    assert len(list(exchanges.exchange(_messages(2), timeout=1.2))) == 2


@pytest.mark.parametrize(
    ("code", "reason", "line"),
    [
        (ErrorCode.NODE_UNAVAILABLE, "Error: Node ...", "lost its connection (no heartbeat)"),
        (ErrorCode.CLIENT_APP_CRASHED, "", "its ClientApp died; see the log of its SuperNode"),
        (ErrorCode.MESSAGE_UNAVAILABLE, "", "did not answer within 9 s, or was revoked"),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
         "\n<class 'csg_core.payload.PayloadError'>:<'payload of another model'>",
         "raised PayloadError: payload of another model"),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
         "<class 'TypeError'>:<'got <class 'int'>\nfor argument 1'>",
         "raised TypeError: got <class 'int'> for argument 1"),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
         "<class 'ray.RayTaskError'>:<'ray::Actor\n  File \"a.py\", line 3\nOSError: gone\n'>",
         "raised RayTaskError: OSError: gone"),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "raised OSError: gone", "raised OSError: gone"),
        (ErrorCode.UNKNOWN, "", "an error without a reason"),
    ],
)  # fmt: skip
def test_errors_of_flower_in_one_line(code, reason, line):
    assert refusal(Error(code, reason), 9.0) == line
