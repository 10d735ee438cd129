"""The clients of a round: who is asked, who still has to answer, and which partition each has."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from federation.messages import RESUMED, TAKEN, ReplyError
from federation.recipe import Recipe
from federation.seeds import derived_numpy_rng
from server.nodes import Node, connected, gather
from server.outcome import RunError

_log = logging.getLogger(__name__)


class Cohort:
    """The nodes that were last ``asked``, of which those ``waiting`` have not answered.

    ``partitions`` tells the partition of nodes, where that is known before they answer.
    """

    def __init__(self, recipe: Recipe, partitions: Mapping[int, int] | None = None) -> None:
        self.asked: list[int] = []
        self.waiting: set[int] = set()
        self._recipe = recipe
        self._nodes: dict[int, Node] = {}  # as they were when last looked for
        self._partitions = dict(partitions or {})
        self._trained: dict[int, int] = {}  # nodes by partition, of this round
        self._taken: dict[int, int] = {}  # the last round whose update was taken, by node
        self._sure: set[int] = set()  # nodes that were not asked for another since
        self._not_last: dict[int, int] = {}  # of those that are asked, where it was not their last
        self._resumed = 0  # the round that a resumed run goes on from
        self._new: list[int] = []  # of those that are asked, those that it does not know
        self._away: set[int] = set()

    def sample(self, round_: int, grid: Grid) -> tuple[list[int], list[int]]:
        """A cohort, drawn from (seed, round); and the nodes that were restarted since the last.

        Raises:
            RunError: if fewer clients than the quorum are there.
        """
        nodes, restarted = self._gather(round_, grid)
        rng = derived_numpy_rng(self._recipe.run.seed, "cohort", round_)
        chosen = rng.choice(len(nodes), size=min(self._recipe.cohort, len(nodes)), replace=False)
        self.asked = [nodes[place] for place in sorted(chosen)]
        known = [node for node in self.asked if node in self._taken and node not in self._sure]
        self._not_last = {node: self._taken[node] for node in known}
        self._sure.difference_update(self.asked)
        if self._resumed:
            self._new = [node for node in self.asked if node not in self._taken]
        else:
            self._taken = dict.fromkeys(self.asked, 0) | self._taken
        self._away = set()
        return self.asked, restarted

    def _gather(self, round_: int, grid: Grid) -> tuple[list[int], list[int]]:
        """Nodes that are connected, in order: in the first round all, given the time to be."""
        quorum, server = self._recipe.quorum, self._recipe.server
        found = gather(
            grid,
            everyone=self._recipe.data.clients,
            quorum=quorum,
            patience=0.0 if self.asked else server.gather_timeout,
            timeout=server.round_timeout,
        )
        if len(found) < quorum:
            raise RunError(
                f"round {round_}: {len(found)} clients are connected after "
                f"{server.round_timeout:g} s and the quorum is {quorum}; "
                "start more, or lower server.min_clients"
            )
        return list(found), self._note(found)

    def _note(self, found: dict[int, Node]) -> list[int]:
        """Take in who is connected; those that were restarted since they were last seen."""
        known = self._nodes
        self._nodes = known | found
        return [n for n, seen in found.items() if n in known and known[n].since != seen.since]

    def still_there(self, grid: Grid) -> tuple[list[int], list[int]]:
        """The nodes that answered and are connected, in order; and those restarted meanwhile."""
        found = connected(grid)
        return [node for node in self.answered if node in found], self._note(found)

    def expect(self, nodes: list[int]) -> None:
        """Wait for one answer of each node."""
        self.waiting, self._trained = set(nodes), {}

    def answers(self, node: int) -> bool:
        """Whether this is the one answer that the node was asked for."""
        if node not in self.waiting:
            _log.warning("a reply of node %d, which was not asked, is left out", node)
            return False
        self.waiting.remove(node)
        return True

    def give_up(self) -> list[int]:
        """The nodes that have not answered; they are no longer waited for."""
        silent, self.waiting = sorted(self.waiting), set()
        self._away.update(silent)
        return silent

    def away(self, node: int) -> None:
        """Flower has answered for the node, which did not."""
        self._away.add(node)

    @property
    def answered(self) -> list[int]:
        """Of the nodes that were last asked those that answered themselves, in order."""
        return [node for node in self.asked if node not in self._away]

    def precedence(self) -> dict[int, int]:
        """Nodes in the order in which they had a partition: the first one's claim counts."""
        return {node: place for place, node in enumerate(self._partitions)}

    def check_partition(self, node: int, partition: int) -> None:
        """Refuse a partition that is another client's, or not the one the node had before.

        Raises:
            ReplyError: saying whose it is.
        """
        known = self._partitions.get(node, partition)
        if known != partition:
            raise ReplyError(f"claims partition {partition}; it has {known}")
        if self._trained.get(partition, node) != node:
            raise ReplyError(
                f"claims partition {partition}, which another client trained; "
                "give each client a partition-id of its own"
            )

    def trained(self, node: int, partition: int, round_: int) -> None:
        """The node's update of a partition, which is its own from now on, was taken."""
        self._partitions[node] = partition
        self._trained[partition] = node
        self._taken[node] = round_
        self._sure.add(node)

    def told(self, node: int) -> dict[str, int]:
        """What a node has to know of its updates: the last round whose one was taken, 0: none was;
        nothing where that was the last that it was asked for.

        A resumed run may not know its nodes, as a simulation's, which have other ids every time.
        """
        if node in self._new:
            return {RESUMED: self._resumed}
        return {TAKEN: self._not_last[node]} if node in self._not_last else {}

    def state(self) -> dict[str, NDArray[Any]]:
        """What a checkpoint has to hold."""
        taken = np.array([*self._taken.items()], np.uint64).reshape(-1, 2)
        return {"taken": taken.view(np.int64)}  # nodes are uint64, which checkpoints cannot hold

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up what ``state`` gave, or nothing, as of older checkpoints."""
        if "taken" in state:
            self._taken = dict(state["taken"].view(np.uint64).tolist())
            self._resumed = max(self._taken.values(), default=0)  # some are taken in each round

    def name(self, node: int) -> str:
        """A node for a reader: by its partition, else the name of its key, else its id."""
        if node in self._partitions:
            return f"client {self._partitions[node]}"
        known = self._nodes.get(node)
        return f"node {known.name}" if known and known.name else f"node {node}"
