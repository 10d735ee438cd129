"""The engine ``local``: a Grid whose clients run here, in this process or in workers."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from numpy.typing import NDArray

from federation.code import CODE, code_identity
from federation.messages import RECIPE
from federation.recipe import Recipe
from federation.sections import CLIENT_APP
from server.app import serve
from server.rows import RoundRow
from simulations.clients import RUN_ID, Clients, Task, Workers, client_app, take_part
from simulations.clients_together import ClientsTogether, at_once


def run_local(
    recipe: Recipe,
    on_round: Callable[[RoundRow], None],
    on_client: Callable[[int, int], None] | None = None,
) -> None:
    """Run a recipe on this machine; ``on_client`` is told how many of a cohort are done."""
    app = client_app(recipe.run.client_app)
    config, count = run_config(recipe), worker_count(recipe)
    if count == 1:
        one_by_one = at_once(recipe) == 1
        clients = (
            Clients(app, config, recipe.data.clients)
            if one_by_one
            else ClientsTogether(recipe, config)
        )
        own = recipe.run.client_app == CLIENT_APP  # which takes arrays
        serve(recipe, LocalGrid(recipe, clients, on_client, in_process=own), on_round)
        return
    with Workers(count, recipe.run.client_app, config, recipe.data.clients) as workers:
        serve(recipe, LocalGrid(recipe, workers, on_client), on_round)


def run_config(recipe: Recipe) -> dict[str, Any]:
    """What a ClientApp is told of the run."""
    return {RECIPE: recipe.model_dump_json(), CODE: code_identity()}


def worker_count(recipe: Recipe) -> int:
    """``run.workers``, or as many as torch has threads, and no more than clients of a round."""
    return min(recipe.run.workers or torch.get_num_threads(), recipe.cohort)


def clients_at_once(recipe: Recipe) -> int:
    """How many clients train at the same time, in workers or in one process."""
    workers = worker_count(recipe)
    return workers if workers > 1 else min(at_once(recipe), recipe.cohort)


class LocalGrid(Grid):
    """Hands each message to a client; replies come in the messages' order.

    Nodes are called by their partitions. ``in_process`` says that clients are, and take arrays.
    """

    def __init__(
        self,
        recipe: Recipe,
        clients: Clients | Workers,
        on_client: Callable[[int, int], None] | None = None,
        *,
        in_process: bool = False,
    ) -> None:
        take_part()
        self.in_process = in_process
        self.partitions: Mapping[int, int] = {n: n for n in range(recipe.data.clients)}
        self._nodes = [NodeInfo(node_id=node) for node in self.partitions]
        self._clients = clients
        self._kept: dict[int, NDArray[np.uint8]] = {}  # of clients that keep something
        self._on_client = on_client or (lambda _done, _of: None)
        self._pushed: dict[str, Message] = {}
        self._names = itertools.count()

    def set_run(self, run: Run) -> None:
        """There is one run only."""

    @property
    def run(self) -> Run:
        """The one run."""
        return Run.create_empty(RUN_ID)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a client."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """All clients, always."""
        return list(self.partitions)

    def get_nodes(self) -> list[NodeInfo]:
        """The same, as Flower describes them."""
        return self._nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Keep messages until their replies are pulled."""
        names = []
        for message in messages:
            names.append(f"message-{next(self._names)}")
            self._pushed[names[-1]] = message
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies to pushed messages."""
        return self.send_and_receive([self._pushed.pop(name) for name in message_ids])

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Replies one at a time, in the messages' order; none of a client that times out."""
        waiting = list(messages)
        tasks = (
            Task(message, self._state(message.metadata.dst_node_id), timeout) for message in waiting
        )
        answers = self._clients.answers(tasks)
        for done, message in enumerate(waiting):
            self._on_client(done, len(waiting))
            reply, state = next(answers)
            node = message.metadata.dst_node_id
            if state or node in self._kept:
                written = recorddict_to_proto(state).SerializeToString(deterministic=True)
                self._kept[node] = np.frombuffer(written, np.uint8)
            if reply is not None:
                yield reply

    def _state(self, node: int) -> RecordDict:
        kept = self._kept.get(node)
        if kept is None:
            return RecordDict()
        return recorddict_from_proto(ProtoRecordDict.FromString(kept.tobytes()))

    def kept(self) -> dict[int, NDArray[np.uint8]]:
        """The state of every client that keeps any, serialised as Flower does."""
        return dict(sorted(self._kept.items()))

    def restore(self, kept: Mapping[int, NDArray[np.uint8]]) -> None:
        """Take up what ``kept`` gave."""
        self._kept = dict(kept)
