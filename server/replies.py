"""What clients answer: in which order it is read, and what of it can be taken."""

from collections.abc import Iterable, Iterator

import torch
from flwr.app import Message
from torch import Tensor

from csg_core import Manifest
from csg_core.codecs.base import FLOAT16_MAX, Values
from csg_core.payload import Passed, PayloadError, decode
from federation.messages import (
    ReplyError,
    TrainReport,
    interface_in,
    partition_claimed_in,
    payload_bytes_in,
    payload_in,
    train_report_in,
)
from federation.recipe import Recipe
from server.aggregation import Update
from server.cohort import Cohort
from server.downlink import Downlink
from server.nodes import UNANSWERED, refusal
from server.outcome import RoundOutcome
from server.wire import ClientCounters


class Replies:
    """Reads the replies of rounds; ``passes`` says that arrays may come in place of bytes."""

    def __init__(
        self,
        recipe: Recipe,
        manifest: Manifest,
        downlink: Downlink,
        cohort: Cohort,
        *,
        passes: bool,
    ) -> None:
        self._recipe, self._manifest, self._passes = recipe, manifest, passes
        self._downlink, self._cohort = downlink, cohort
        self._counters = ClientCounters()
        self._model: Tensor | None = None  # what updates are added to, where they are

    def updates(
        self, round_: int, replies: Iterable[Message], model: Values, outcome: RoundOutcome
    ) -> Iterator[Update]:
        """Decoded and checked updates, one at a time; whatever is wrong with a reply is noted.

        ``model`` is what would come of a round without updates: what was sent, and left out.
        """
        self._cohort.expect(self._cohort.asked)
        self._model = torch.from_numpy(model)
        for reply in self._in_order(replies):
            node = reply.metadata.src_node_id
            if not self._cohort.answers(node):
                continue
            try:
                update, report = self._read(round_, reply, outcome)
                self._cohort.check_partition(node, report.partition)
                self._counters.note(node, interface_in(reply.content), outcome.bytes[node])
            except (ReplyError, PayloadError) as error:
                if reply.has_error() and reply.error.code in UNANSWERED:
                    self._cohort.away(node)
                self._downlink.failed(node)
                outcome.fail(self._cohort.name(node), str(error))
                continue
            self._cohort.trained(node, report.partition, round_)
            self._downlink.answered(node)
            outcome.reports[node] = report
            yield update

    def check_error(self, reply: Message) -> None:
        """Raise ReplyError if a reply is an error, in words for a reader."""
        if reply.has_error():
            raise ReplyError(refusal(reply.error, self._recipe.server.round_timeout))

    def _read(
        self, round_: int, reply: Message, outcome: RoundOutcome
    ) -> tuple[Update, TrainReport]:
        self.check_error(reply)
        size = payload_bytes_in(reply.content)
        outcome.bytes[reply.metadata.src_node_id].payload_bytes_up = size
        outcome.bytes_up += size
        outcome.updates += 1
        report = train_report_in(reply.content, most_examples=self._recipe.most_examples)
        payload = payload_in(reply.content)
        if isinstance(payload, Passed):
            if not self._passes:
                raise PayloadError("an array in place of bytes")
            version = self._downlink.version
            values = payload.opened(self._manifest.size, "update", round_, version)
        else:
            label = self._downlink.update_label(round_)
            codec = self._recipe.wire.update_codec(self._manifest.parts, round_)
            values = torch.tensor(decode(payload, label, self._downlink.predicting(codec)))
        largest = self._largest(values)
        if not largest <= FLOAT16_MAX:
            raise ReplyError(
                f"its model has a value of {largest:g}; {FLOAT16_MAX:,.0f} is the largest; "
                f"lower train.lr {self._recipe.train.lr}"
            )
        return Update(report.partition, report.examples, values), report

    def _in_order(self, replies: Iterable[Message]) -> Iterable[Message]:
        """Replies in the order of partitions; an iterator is taken as it comes.

        A Grid that gives an iterator hands replies over one at a time, in the order of the
        messages; it is one of this process, which knows the partitions.
        """
        if isinstance(replies, Iterator):
            return replies

        known = self._cohort.precedence()

        def place(reply: Message) -> tuple[float, int, int]:
            node = reply.metadata.src_node_id
            claimed = float("inf") if reply.has_error() else partition_claimed_in(reply.content)
            return claimed, known.get(node, len(known)), node

        return sorted(replies, key=place)

    def _largest(self, update: Tensor) -> float:
        """Of the model that would be sent next, were this the only update."""
        assert self._model is not None
        self._model = self._model.to(update.device)
        low, high = torch.stack((self._model + update).aminmax()).tolist()  # NaN is both
        return float(max(high, -low))
