"""Who is connected, and the exchange of a round's messages with them."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

RESTARTED = "was restarted in this round"
_PULL_S = 1.0
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


def exchange(grid: Grid, messages: list[Message], *, timeout: float) -> Iterable[Message]:
    """Send messages and collect the replies that come within ``timeout`` seconds.

    What a node was sent dies with its process, and Flower waits for the answer of one that is back
    soon. It is answered for here, with an error, as soon as that is seen.
    """
    before = connected(grid)
    if not any(node.since for node in before.values()):  # this Grid does not know
        return grid.send_and_receive(messages, timeout=timeout)
    until = time.monotonic() + timeout
    pushed = grid.push_messages(messages)  # without a name: not taken
    waiting = {name: message for name, message in zip(pushed, messages, strict=False) if name}
    replies: list[Message] = []
    looked = time.monotonic()
    while waiting and time.monotonic() < until:
        for reply in grid.pull_messages(list(waiting)):
            waiting.pop(reply.metadata.reply_to_message_id, None)
            replies.append(reply)
        if time.monotonic() - looked > _LOOK_S:
            looked = time.monotonic()
            for name, message in _lost(waiting, before, connected(grid)).items():
                del waiting[name]
                error = Error(ErrorCode.NODE_UNAVAILABLE, RESTARTED)
                replies.append(Message(error, reply_to=message))
        if waiting:
            time.sleep(_PULL_S)
    return replies


def _lost(
    waiting: Mapping[str, Message], before: Mapping[int, Node], now: Mapping[int, Node]
) -> dict[str, Message]:
    """The messages to nodes that have connected anew since ``before``."""

    def restarted(node: int) -> bool:
        return node in before and node in now and before[node].since != now[node].since

    return {n: m for n, m in waiting.items() if restarted(m.metadata.dst_node_id)}


def refusal(error: Error, timeout: float) -> str:
    """What a reply's error means, in one line."""
    if error.code == ErrorCode.NODE_UNAVAILABLE:
        return RESTARTED if error.reason == RESTARTED else "lost its connection (no heartbeat)"
    if error.code in (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE):
        return f"did not answer within {timeout:g} s, or was revoked"
    if error.code == ErrorCode.CLIENT_APP_CRASHED:
        return "its ClientApp died; see the log of its SuperNode"
    if error.code == ErrorCode.LOAD_CLIENT_APP_EXCEPTION:
        return "its ClientApp cannot be loaded; install csg-fl there (log of its SuperNode)"
    return _raised(error.reason)


def _raised(reason: str | None) -> str:
    """Flower's ``<class 'module.Name'>:<'message'>`` as ``raised Name: message``."""
    lines = [line.strip() for line in (reason or "").splitlines() if line.strip()]
    line = lines[-1] if lines else "an error without a reason"
    kind, middle, message = line.removeprefix("<class '").partition("'>:<'")
    return f"raised {kind.rpartition('.')[2]}: {message[:-2]}" if middle else line
