"""The SuperLink's Grid, whose replies are bounded and checked while they arrive.

Flower puts a reply together from objects that a client made. What is wrong with one of them is
raised out of its Grid and ends the run; one array can name one chunk a million times; a client that
stops in mid-upload is waited for, all others behind it; and the sender's name is read from the
client's own object (docs/strangers.md). Here, each of these is that client's failure.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Array, Error, Message, Metadata
from flwr.app.message import make_message
from flwr.common.constant import ErrorCode
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
)
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.superlink.grid.http_grid import HttpGrid

from federation.messages import PIECE_BYTES, ReplyError
from server.nodes import Exchanges

_OBJECTS = 16  # of a reply, besides the pieces of its payload
_REST = 65_536  # bytes of a reply besides its payload: the records, or the reason of an error


def guarded(grid: Grid, most_bytes: int) -> Grid:
    """A deployed run's Grid with a guard around it; a simulation's as it is."""
    return GuardedGrid(grid, most_bytes) if isinstance(grid, HttpGrid) else grid


class GuardedGrid(Grid):
    """A Grid over Flower's, of a run whose replies hold ``most_bytes`` of payload."""

    def __init__(self, grid: HttpGrid, most_bytes: int) -> None:
        self._grid = grid
        self._most = most_bytes + _REST
        self._arriving: list[_Arriving] = []
        self._exchanges = Exchanges(self)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages; the replies that are whole when all are there, or time is up.

        What is lost on its way is sent again, and nothing more is expected of who has gone.
        """
        limit = float("inf") if timeout is None else timeout
        replies = self._exchanges.exchange(list(messages), timeout=limit)
        self._drop_all_but(set())
        return replies

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to messages that are whole by now; others that were begun are dropped."""
        message_ids = set(message_ids)
        self._drop_all_but(message_ids)
        begun = {reply.metadata.reply_to_message_id for reply in self._arriving}
        asked = [sent for sent in message_ids if sent not in begun]
        if asked:
            found = self._grid._runtime_client.PullMessages(
                PullAppMessagesRequest(message_ids=asked)
            )
            for message, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                reply = _Arriving(metadata_from_proto(message.metadata), tree, self._most)
                if reply.metadata.reply_to_message_id in asked:
                    self._arriving.append(reply)
                else:  # a client can send any number that answer nothing
                    self._forget(reply)
        whole = [(reply, message) for reply in self._arriving if (message := self._pull(reply))]
        for reply, _ in whole:
            self._arriving.remove(reply)
        return [message for _, message in whole]

    def _drop_all_but(self, asked: set[str]) -> None:
        """Give up what is still arriving for messages that are no longer waited for."""
        for reply in [r for r in self._arriving if r.metadata.reply_to_message_id not in asked]:
            self._arriving.remove(reply)
            self._forget(reply)

    def _pull(self, reply: "_Arriving") -> Message | None:
        try:
            if not reply.pull(self._grid):
                return None
        except ReplyError as error:
            message = _unreadable(reply.metadata, error)
        else:
            try:
                message = read(reply.metadata, reply.contents, self._most)
            except Exception as error:  # whatever else a stranger's objects may bring about
                message = _unreadable(reply.metadata, error)
        self._forget(reply)
        return message

    def _forget(self, reply: "_Arriving") -> None:
        """Have the SuperLink drop the objects of a reply."""
        self._grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._grid.node,
                run_id=self.run.run_id,
                message_object_id=reply.metadata.message_id,
            )
        )

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Flower's deprecated way to make a message; nothing here uses it."""
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are connected."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The same, with what is known of them."""
        return self._grid.get_nodes()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; their ids."""
        return self._grid.push_messages(messages)


@dataclass(eq=False, slots=True)
class _Arriving:
    """A reply whose objects the client may still be sending."""

    metadata: Metadata  # as the SuperLink checked it
    tree: ObjectTree
    most_bytes: int
    contents: dict[str, bytes] = field(default_factory=dict)

    def pull(self, grid: HttpGrid) -> bool:
        """Fetch the objects that are there; whether all are.

        Raises:
            ReplyError: if they are too many or too large, or the SuperLink has given one up.
        """
        wanted = list(dict.fromkeys(node.object_id for node in iterate_object_tree(self.tree)))
        most = _OBJECTS + self.most_bytes // PIECE_BYTES
        if len(wanted) > most:
            raise ReplyError(f"{len(wanted):,} objects; {most} are taken")
        for object_id in wanted:
            if object_id in self.contents:
                continue
            request = PullObjectRequest(node=grid.node, run_id=grid.run.run_id, object_id=object_id)
            found = grid._runtime_client.PullObject(request)
            if not found.object_found:
                raise ReplyError("it was not sent to its end")
            if not found.object_available:
                return False
            self.contents[object_id] = found.object_content
            if sum(map(len, self.contents.values())) > self.most_bytes:
                raise ReplyError(f"more than {self.most_bytes:,} bytes")
        return True


def read(metadata: Metadata, contents: dict[str, bytes], most_bytes: int) -> Message:
    """The message made of objects, under the metadata that the SuperLink checked.

    Raises:
        ReplyError: if it is no message of records, or arrays grow beyond ``most_bytes``.
        Exception: of any kind that Flower's reading raises.
    """
    grown = sum(_array_bytes(content, contents) for content in contents.values())
    if grown > most_bytes:
        raise ReplyError(f"arrays of {grown:,} bytes; {most_bytes:,} are taken")
    found = inflate_object_from_contents(metadata.message_id, dict(contents))
    if not isinstance(found, Message):
        raise ReplyError(f"a {type(found).__name__} in place of a message")
    if found.has_error():
        return make_message(metadata=metadata, error=found.error)
    return make_message(metadata=metadata, content=found.content)


def _array_bytes(content: bytes, contents: dict[str, bytes]) -> int:
    """Bytes that an object will hold if it is an array; one chunk may be named many times."""
    kind, chunks, _ = get_object_head_values_from_object_content(content)
    if kind != Array.__qualname__:
        return 0
    places = json.loads(get_object_body(content, Array))["arraychunk_ids"]
    return sum(len(contents[chunks[place]]) for place in places)


def _unreadable(metadata: Metadata, error: Exception) -> Message:
    reason = str(error) if isinstance(error, ReplyError) else repr(error)[:200]
    failure = Error(ErrorCode.UNKNOWN, f"its reply cannot be read: {reason}")
    return make_message(metadata=metadata, error=failure)
