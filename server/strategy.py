"""The server's half of a round: sample, encode, and then decode, check and average."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from csg_core import Manifest
from csg_core.codecs import CodecError, Float32, codec_named
from csg_core.codecs.base import FLOAT16_MAX, Values
from csg_core.payload import Payload
from federation.messages import (
    EvaluationReport,
    ReplyError,
    evaluation_report_in,
    instruction,
)
from federation.recipe import Recipe
from server.aggregation import Aggregation, AggregationError, model_in, model_record
from server.cohort import Cohort
from server.downlink import Downlink
from server.outcome import RoundOutcome, RunError
from server.owed import Owed
from server.replies import Replies

_log = logging.getLogger(__name__)
_MANIFEST = "manifest"


class CsgStrategy(Strategy):
    """FedAvg, or another of Flower's strategies, over payloads of one byte array.

    Works under any Grid, by ``strategy.start`` or round by round. ``outcome`` tells of the last
    round. The model is an ArrayRecord with one float32 array, as ``pack`` makes it: what clients
    were sent, plus the mean of their updates, or what another strategy makes of them. The former is
    the mean of their trained models, to which their running statistics belong. What a lossy
    downlink has left out so far is owed, and is added to the model that clients are next sent to
    train (error feedback: Tang et al., "DoubleSqueeze", 2019). So is FedAvgM's momentum, where
    statistics travel; clients come to the same. What is owed is of the arrays that
    ``aggregate_train`` last gave, and goes with no others.
    ``first`` is the model that the recipe's seed makes; ``partitions`` tells the partition of
    nodes, where that is known before they answer. Clients that are ``in_process`` are handed
    arrays as they are, if they would be sent as they are.
    """

    def __init__(
        self,
        recipe: Recipe,
        manifest: Manifest,
        first: Values,
        partitions: Mapping[int, int] | None = None,
        start: Values | None = None,
        *,
        in_process: bool = False,
    ) -> None:
        self.recipe = recipe
        self.manifest = manifest
        self.aggregation = Aggregation(
            recipe.server.strategy,
            recipe.server.options,
            trained=manifest.trained,
            cohort=recipe.cohort,
        )
        self.outcome = RoundOutcome(0)
        self.downlink = Downlink(recipe, manifest, first, start)
        self._passes = in_process and _sends_plain(recipe)
        self.owed = Owed(manifest, recipe.wire.schedule)
        self.cohort = Cohort(recipe, partitions)
        self._replies = Replies(recipe, manifest, self.downlink, self.cohort, passes=self._passes)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Messages to a cohort, drawn from (seed, round), in the order of node ids.

        Raises:
            RunError: if fewer clients than the quorum are there.
        """
        nodes, restarted = self.cohort.sample(server_round, grid)
        for node in restarted:  # another process, which holds nothing
            self.downlink.failed(node)
        target = self.owed.added_to(model_in(arrays))
        payloads = self._payloads(target, server_round, MessageType.TRAIN, nodes)
        self.owed.note(target, self.downlink.held)
        wanted = self.aggregation.configure(server_round, self.downlink.held, grid)
        self.outcome = RoundOutcome(len(nodes))
        configs = {node: ConfigRecord({**config, **wanted, **self._told(node)}) for node in nodes}
        return self._messages(MessageType.TRAIN, server_round, payloads, configs)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord, MetricRecord]:
        """The next model from all good replies, in the order of partitions.

        Raises:
            RunError: if fewer good updates than the quorum came back.
        """
        sent, momentum = self.downlink.held, self._momentum
        come_to = sent + self.owed.left_out
        updates = self._replies.updates(server_round, replies, come_to, self.outcome)
        try:
            new = self.aggregation(server_round, sent, updates, still=self.owed.still(server_round))
        except AggregationError as error:
            self._check_quorum(server_round)
            raise RunError(f"round {server_round}: {error}") from error
        self._check_quorum(server_round)
        self.owed.settle(server_round, new, sent, momentum)
        if not np.isfinite(new).all():
            raise RunError(f"round {server_round}: the averaged model is no longer finite")
        reports = list(self.outcome.reports.values())
        weights = [report.examples for report in reports]
        loss = float(np.average([report.train_loss for report in reports], weights=weights))
        return model_record(new), MetricRecord({"train-loss": loss})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Messages to those of the cohort that answered, where clients keep what a model needs."""
        if not self.recipe.clients_evaluate:
            return []
        nodes, restarted = self.cohort.still_there(grid)
        for node in restarted:
            self.downlink.failed(node)
        # it may be beyond what a coarse codec of the downlink left out, which is taken back next
        model = model_in(arrays).clip(-FLOAT16_MAX, FLOAT16_MAX)
        payloads = self._payloads(model, server_round, MessageType.EVALUATE, nodes)
        self.cohort.expect(nodes)
        configs = dict.fromkeys(nodes, config)
        return self._messages(MessageType.EVALUATE, server_round, payloads, configs)

    def aggregate_evaluate(
        self,
        server_round: int,  # noqa: ARG002
        replies: Iterable[Message],
    ) -> MetricRecord | None:
        """Loss and accuracy over the clients' held-out images, weighted by their number."""
        reports: list[EvaluationReport] = []
        for reply in replies:
            node = reply.metadata.src_node_id
            if not self.cohort.answers(node):
                continue
            try:
                self._replies.check_error(reply)
                most = self.recipe.most_examples
                report = evaluation_report_in(reply.content, most_examples=most)
                self.cohort.check_partition(node, report.partition)
            except ReplyError as error:
                self.downlink.failed(node)
                self.outcome.fail(self.cohort.name(node), f"evaluation: {error}")
                continue
            self.downlink.answered(node)
            if report.examples:  # else it holds no images out
                reports.append(report)
        self._fail_silent("evaluation: ")
        if not reports:
            return None
        weights = [report.examples for report in reports]
        loss = float(np.average([report.loss for report in reports], weights=weights))
        accuracy = float(np.average([report.accuracy for report in reports], weights=weights))
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    def summary(self) -> None:
        """Log what this strategy is."""
        _log.info("strategy %s, quorum %d", self.recipe.server.strategy, self.recipe.quorum)

    def _payloads(
        self, model: Values, round_: int, kind: str, nodes: list[int]
    ) -> dict[int, Payload]:
        """What brings the nodes to the next version, which follows a model."""
        payloads: Sequence[Payload]
        try:
            if self._passes:
                payloads = [self.downlink.pass_on(model, round_)] * len(nodes)
            else:
                payloads = self.downlink.payloads(model, round_, kind, nodes)
        except CodecError as error:
            raise RunError(f"round {round_}: the model cannot be sent: {error}") from error
        return dict(zip(nodes, payloads, strict=True))

    def _messages(
        self,
        kind: str,
        round_: int,
        payloads: Mapping[int, Payload],
        configs: Mapping[int, ConfigRecord],
    ) -> list[Message]:
        self.outcome.sent({node: len(payload) for node, payload in payloads.items()})
        return [
            Message(
                instruction(payload, round_, configs[node]),
                dst_node_id=node,
                message_type=kind,
                ttl=self.recipe.server.round_timeout,
                group_id=str(round_),
            )
            for node, payload in payloads.items()
        ]

    def _told(self, node: int) -> dict[str, int]:
        """What a node has to know of the updates it sent, where a codec left something out."""
        return self.cohort.told(node) if self.recipe.wire.feeds_back else {}

    @property
    def _momentum(self) -> Values:
        """What the next model will have of earlier rounds, float32 [trained]: where it is owed."""
        trained = self.manifest.trained
        statistics = trained < self.manifest.size
        return self.aggregation.momentum if statistics else np.zeros(trained, np.float32)

    def _check_quorum(self, round_: int) -> None:
        self._fail_silent()
        self.outcome.check_quorum(round_, self.recipe.quorum)

    def _fail_silent(self, stage: str = "") -> None:
        for node in self.cohort.give_up():
            reason = f"{stage}did not answer within {self.recipe.server.round_timeout:g} s"
            self.outcome.fail(self.cohort.name(node), reason)

    @property
    def _fingerprint(self) -> NDArray[np.uint8]:
        return np.frombuffer(bytes.fromhex(self.manifest.fingerprint), np.uint8)

    def state(self) -> dict[str, NDArray[Any]]:
        """What is carried from round to round besides the model, for a checkpoint."""
        found = {f"strategy/{name}": array for name, array in self.aggregation.state().items()}
        found |= self.owed.state() | {_MANIFEST: self._fingerprint}
        found |= {f"cohort/{name}": array for name, array in self.cohort.state().items()}
        return found | {f"downlink/{name}": a for name, a in self.downlink.state().items()}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up what ``state`` gave.

        Raises:
            ValueError: if it is of a recipe whose models or messages were others.
        """
        if not np.array_equal(state.get(_MANIFEST, self._fingerprint), self._fingerprint):
            raise ValueError(
                f"train.batch_norm = {self.recipe.train.batch_norm!r}: the run began with another, "
                "and other tensors travelled; set it back in config.toml, or start the run anew"
            )
        if self.recipe.wire.deltas and "downlink/reference" not in state:
            raise ValueError(
                "wire.deltas = true: the run began without, and no version that deltas could build "
                "on is in its checkpoint; set it back in config.toml, or start the run anew"
            )

        def under(prefix: str) -> dict[str, NDArray[Any]]:
            return {
                name.removeprefix(prefix): array
                for name, array in state.items()
                if name.startswith(prefix)
            }

        self.owed.restore(state)
        self.aggregation.restore(under("strategy/"))
        self.downlink.restore(under("downlink/"))
        self.cohort.restore(under("cohort/"))


def _sends_plain(recipe: Recipe) -> bool:
    """Whether what travels is float32 as it is, in both directions, and nothing builds on it."""
    wire = recipe.wire
    return not wire.deltas and all(
        codec_named(line) == Float32() for line in (wire.uplink, wire.downlink)
    )
