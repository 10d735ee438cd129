"""What a client does in a round: decode, set the model, train on the shard, encode the update."""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.shard import Shard
from client.training import train_epoch
from csg_core import GROUPS, build, manifest, pack, unpack
from csg_core.codecs import codec_named
from csg_core.evaluation import evaluate
from csg_core.payload import Label, decode, encode
from federation.devices import device_of, precision_of
from federation.messages import EvaluationReport, TrainReport
from federation.recipe import Recipe
from federation.seeds import derived_rng

_PROBE = 128  # images that the loss before and after training is measured on


class TrainingError(RuntimeError):
    """Local training that came to nothing; the message says why."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A client's answer, and the tensors that it keeps for its next round."""

    payload: bytes
    report: TrainReport
    kept: NDArray[np.float32]


class LocalClient:
    """Trains one client after another, on one model that is set anew for each."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.device = device_of(recipe)
        self._precision = precision_of(recipe)
        self._model = build(recipe.model, seed=recipe.run.seed).to(self.device)
        self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._sent = recipe.train.travelling()
        self._kept = tuple(group for group in GROUPS if group not in self._sent)
        sent = manifest(self._model, self._sent)
        self._fingerprint, self._size = sent.fingerprint, sent.size
        self._first = pack(self._model, self._kept)
        self._parameters = [p for p in self._model.parameters() if p.requires_grad]

    def train(
        self,
        payload: bytes,
        shard: Shard,
        *,
        round_: int,
        partition: int,
        kept: NDArray[np.float32] | None = None,
        proximal_mu: float = 0.0,
    ) -> Trained:
        """One round of one client. ``kept`` is what it kept from its last round.

        Raises:
            PayloadError: if the payload is not this round's, or not of this model.
            TrainingError: if the loss is no number, or the shard is empty.
        """
        recipe, rows = self.recipe, shard.train_rows
        if not len(rows):
            raise TrainingError(f"client {partition} has no images to train on")
        started = time.perf_counter()
        received = self._receive(payload, round_, kept)
        probe = rows[:_PROBE]
        before = evaluate(self._model, shard.images, rows=probe, precision=self._precision)
        loss = self._fit(shard, round_, partition, proximal_mu)
        after = evaluate(self._model, shard.images, rows=probe, precision=self._precision)
        trained = pack(self._model, self._sent)
        if not math.isfinite(loss) or not np.isfinite(trained).all():
            raise TrainingError(
                f"client {partition}: the loss is {loss} in round {round_}; "
                f"lower train.lr {recipe.train.lr}"
            )
        report = TrainReport(
            partition=partition,
            examples=len(rows),
            train_loss=loss,
            loss_before=before.loss,
            loss_after=after.loss,
            seconds=time.perf_counter() - started,
        )
        update = encode(
            trained - received, self._label(round_, "update"), codec_named(recipe.wire.uplink)
        )
        return Trained(update, report, pack(self._model, self._kept))

    def evaluate(
        self,
        payload: bytes,
        shard: Shard,
        *,
        round_: int,
        partition: int,
        kept: NDArray[np.float32] | None = None,
    ) -> EvaluationReport:
        """A received model, with what this client kept, on the images held out.

        Raises:
            PayloadError: if the payload is not this round's, or not of this model.
            TrainingError: if no images are held out.
        """
        if not len(shard.holdout_rows):
            raise TrainingError(f"client {partition} holds no images out; set data.holdout")
        self._receive(payload, round_, kept)
        result = evaluate(
            self._model, shard.images, rows=shard.holdout_rows, precision=self._precision
        )
        return EvaluationReport(
            partition=partition,
            examples=result.examples,
            loss=result.loss,
            accuracy=result.accuracy,
        )

    def _receive(
        self, payload: bytes, round_: int, kept: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        downlink = codec_named(self.recipe.wire.downlink)
        received = decode(payload, self._label(round_, "model"), downlink)
        unpack(self._model, received, self._sent)
        unpack(self._model, self._first if kept is None else kept, self._kept)
        return received

    def _label(self, round_: int, kind: str) -> Label:
        return Label(
            fingerprint=self._fingerprint,
            size=self._size,
            round=round_,
            kind="model" if kind == "model" else "update",
        )

    def _fit(self, shard: Shard, round_: int, partition: int, proximal_mu: float) -> float:
        """Local epochs of SGD; the mean loss of the last one, without the proximal term."""
        train = self.recipe.train
        optimizer = torch.optim.SGD(
            self._parameters,
            lr=train.lr * train.factor(round_),
            momentum=train.momentum,
            weight_decay=train.weight_decay,
        )
        anchors = [p.detach().clone() for p in self._parameters] if proximal_mu else []
        rng = derived_rng(self.recipe.run.seed, "train", round_, partition)

        def before_step() -> None:
            if proximal_mu:
                _pull(self._parameters, anchors, proximal_mu)
            if train.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self._parameters, train.clip_norm)

        self._model.train()
        loss = 0.0
        for _ in range(train.local_epochs):
            loss = train_epoch(
                self._model,
                shard.images,
                optimizer,
                rows=shard.train_rows,
                batch_size=train.batch_size,
                rng=rng,
                precision=self._precision,
                augment=train.augment,
                before_step=before_step,
            )
        return loss


def _pull(parameters: list[torch.nn.Parameter], anchors: list[Tensor], mu: float) -> None:
    """Add the gradient of mu/2 |w - w_t|^2 (FedProx, Li et al., 2020, equation 2)."""
    for parameter, anchor in zip(parameters, anchors, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - anchor, alpha=mu)
