"""Who is connected, and the exchange of a round's messages with them."""

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

from flwr.app import Error, Message, MessageType, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid

_log = logging.getLogger(__name__)
PROBE_S = 30.0  # of silence, at least
_LONG = 1.5  # of the slowest reply
RESTARTED = "was restarted in this round"
NOT_TAKEN = "the SuperLink did not take its message; was it revoked?"
NONE_TAKEN = "the SuperLink took none of the messages; its log says why"
UNANSWERED = (  # codes of errors by which Flower answers for a client
    ErrorCode.NODE_UNAVAILABLE,
    ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
)
_MOST_AGAIN = 3
_RAISED = re.compile(r"<class '([^']+)'>:<'(.*)'>", re.DOTALL)
_PULL_S = 0.5  # with Flower's 3 s, a client often looks for its message in vain first
_LOOK_S = 5.0


@dataclass(frozen=True, slots=True)
class Node:
    """A connected client: its registered ``name`` and the time that it connected, if known."""

    name: str = ""
    since: str = ""


def connected(grid: Grid) -> dict[int, Node]:
    """Every connected node, in the order of ids."""
    found = {info.node_id: Node(info.name, info.last_activated_at) for info in grid.get_nodes()}
    return dict(sorted(found.items()))


def gather(
    grid: Grid, *, everyone: int, quorum: int, patience: float, timeout: float
) -> dict[int, Node]:
    """Connected nodes: ``everyone`` if that comes about within ``patience`` seconds, else at least
    ``quorum``, else whoever is there after ``timeout`` seconds.
    """
    began = time.monotonic()
    while True:
        found, waited = connected(grid), time.monotonic() - began
        wanted = quorum if waited >= patience else everyone
        if len(found) >= wanted or waited >= timeout:
            return found
        time.sleep(_PULL_S)


class Exchanges:
    """Messages to clients and their replies, exchange after exchange.

    Flower delivers a message once: one that was under way when a connection or the SuperLink broke,
    or that a killed client had, is lost, and its answer would be waited for until the end. So
    clients that are silent for long are asked whether they are idle, and if so, sent it again;
    of those that have connected anew nothing more is expected. It is sent again three times at
    most, and not counted in a round's payload. Long is half as much again as the slowest answer to
    a message of the type took when it was last sent, at least half a minute, at most half the time
    that there is: a question that is answered costs 5 kB.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._slowest: dict[str, float] = {}  # seconds, by type of message

    def exchange(self, messages: list[Message], *, timeout: float) -> list[Message]:
        """Send messages and collect the replies that come within ``timeout`` seconds.

        Errors that Flower makes are put down to the node that was asked.
        """
        if not messages:
            return []
        before = connected(self._grid)
        kind = messages[0].metadata.message_type
        silence = min(max(PROBE_S, _LONG * self._slowest.get(kind, 0.0)), timeout / 2)
        began = looked = time.monotonic()
        ask = began + silence
        pending = _Pending(self._grid, before, messages)
        while pending.waiting and (now := time.monotonic()) < began + timeout:
            pending.pull()
            if now - looked > _LOOK_S:
                looked = now
                pending.give_up_restarted()
            if now > ask:
                ask = now + PROBE_S
                pending.probe()
            if pending.waiting:
                time.sleep(_PULL_S)
        if pending.last_answer is not None:
            self._slowest[kind] = pending.last_answer - began
        return pending.replies


class _Pending:
    """Messages that are to be answered, ``waiting`` by their ids, and the ``replies`` so far.

    ``last_answer`` is when the last client answered of those that were sent a message once.
    """

    def __init__(self, grid: Grid, before: Mapping[int, Node], messages: list[Message]) -> None:
        self._grid, self._before = grid, before
        self.replies: list[Message] = []
        self.waiting = self._send(messages)
        self.last_answer: float | None = None
        self._probes: dict[str, str] = {}  # and the message that each is about
        self._again: dict[str, int] = {}  # how often, of messages that were sent again

    def _send(self, messages: list[Message]) -> dict[str, Message]:
        """Messages by their ids; those that are not taken are answered with an error."""
        taken, names = {}, list(self._grid.push_messages(messages))
        for name, message in zip_longest(names, messages):
            if name:
                taken[name] = message
            else:
                reason = NOT_TAKEN if names else NONE_TAKEN  # as where the whole is too large
                error = Error(ErrorCode.NODE_UNAVAILABLE, reason)
                self.replies.append(Message(error, reply_to=message))
        return taken

    def pull(self) -> None:
        """Take what has come in; answers first, since a probe is answered after them."""
        found = list(self._grid.pull_messages([*self.waiting, *self._probes]))
        probes = []
        for reply in found:
            name = reply.metadata.reply_to_message_id
            if name in self._probes:
                probes.append((self._probes.pop(name), reply))
            elif name in self.waiting:
                message = self.waiting.pop(name)
                flowers = reply.metadata.src_node_id != message.metadata.dst_node_id
                known = Message(reply.error, reply_to=message) if flowers else reply
                self.replies.append(known)
                if not known.has_error() and name not in self._again:
                    self.last_answer = time.monotonic()
        for name, reply in probes:
            answered = reply.metadata.src_node_id != SUPERLINK_NODE_ID
            if answered and name in self.waiting and self._again.get(name, 0) < _MOST_AGAIN:
                self._send_again(name)

    def _send_again(self, name: str) -> None:
        lost = self.waiting.pop(name)
        of = lost.metadata
        _log.warning("node %d is idle and has not answered; it is sent it again", of.dst_node_id)
        ttl = max(1.0, of.created_at + of.ttl - time.time())
        more = Message(lost.content, of.dst_node_id, of.message_type, ttl=ttl, group_id=of.group_id)
        pushed = self._send([more])
        self._again |= dict.fromkeys(pushed, self._again.get(name, 0) + 1)
        self.waiting |= pushed

    def probe(self) -> None:
        """Ask the silent ones; while a client works, it does not see this, and it expires."""
        about = {m.metadata.dst_node_id: name for name, m in self.waiting.items()}
        messages = [
            Message(RecordDict(), node, MessageType.QUERY, ttl=PROBE_S, group_id="")
            for node in about
        ]
        for name, message in zip(self._grid.push_messages(messages), messages, strict=False):
            if name:  # else it is not taken
                self._probes[name] = about[message.metadata.dst_node_id]

    def give_up_restarted(self) -> None:
        """Answer with an error for nodes that have connected anew since the messages were sent."""
        now = connected(self._grid)
        for name, message in list(self.waiting.items()):
            node = message.metadata.dst_node_id
            if node in now and node in self._before and now[node].since != self._before[node].since:
                error = Error(ErrorCode.NODE_UNAVAILABLE, RESTARTED)
                self.replies.append(Message(error, reply_to=self.waiting.pop(name)))


def refusal(error: Error, timeout: float) -> str:
    """What a reply's error means, in one line."""
    if error.code == ErrorCode.NODE_UNAVAILABLE:
        known = error.reason in (RESTARTED, NOT_TAKEN, NONE_TAKEN)
        return str(error.reason) if known else "lost its connection (no heartbeat)"
    if error.code in (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE):
        return f"did not answer within {timeout:g} s, or was revoked"
    if error.code == ErrorCode.CLIENT_APP_CRASHED:
        return "its ClientApp died; see the log of its SuperNode"
    if error.code == ErrorCode.LOAD_CLIENT_APP_EXCEPTION:
        return "its ClientApp cannot be loaded; install csg-fl there (log of its SuperNode)"
    return _raised(error.reason)


def _raised(reason: str | None) -> str:
    """Flower's ``<class 'module.Name'>:<'message'>`` as ``raised Name: message``, on one line; of a
    traceback, and of another text, its last line.
    """
    found = _RAISED.search(reason or "")
    kind, text = found.groups() if found else ("", reason or "")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not found or any(line.startswith('File "') for line in lines):  # as Ray's
        lines = lines[-1:]
    line = " ".join(lines) or "an error without a reason"
    return f"raised {kind.rpartition('.')[2]}: {line}" if found else line
