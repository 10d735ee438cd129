"""What a client does in a round: decode, set the model, train on the shard, encode the update."""

import math
import time
from typing import Any

import torch
from torch import Tensor

from client.job import Job, Received, Trained, TrainingError
from client.memory import NOTHING, Memory
from client.shard import Shard
from client.tensors import ClientTensors, Reached, reached
from client.training import Losses, train_epoch
from csg_core import build, generators, manifest
from csg_core.broadcast import Held
from csg_core.codecs.base import Values
from csg_core.evaluation import evaluate
from csg_core.payload import Passed, Payload, decode, encode
from federation.devices import device_of, precision_of
from federation.messages import EvaluationReport, TrainReport
from federation.recipe import Recipe
from federation.seeds import derived_numpy_rng, derived_rng


class LocalClient:
    """Trains one client after another, on one model that is set anew for each."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.device = device_of(recipe)
        self.precision = precision_of(recipe)
        self.model = build(recipe.model, seed=recipe.run.seed).to(self.device)
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._tensors = ClientTensors(self.model, recipe.train)
        sent = manifest(self.model, recipe.train.travelling())
        self._trained = sent.trained
        self._still = sent.count("generator")  # the first values
        self._channel = recipe.wire.channel(sent)
        self._feedback = recipe.wire.feeds_back
        self._first = self._channel.first(self._tensors.sent.flat().cpu().numpy())
        self._first_kept = self._tensors.kept.flat()
        self._set_to: Held | None = None  # what the model holds, beside what is kept at first
        self._received: tuple[tuple[int, int, int, Payload], Held, Tensor] | None = None
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._generators = list(generators(self.model).values())

    def train(self, job: Job) -> Trained:
        """One round of one client.

        Raises:
            PayloadError: if the payload is not this round's, or not of this model.
            TrainingError: if the shard is empty, or the loss or a value of the model is no number.
        """
        received = self.receive(job)
        started = time.perf_counter()
        losses = self.fit(job)
        (found,) = reached([self._tensors])
        return self.answer(job, received, found, losses, time.perf_counter() - started)

    def receive(self, job: Job, *, untrained: bool = False) -> Received:
        """Set the model to what a client received and kept.

        ``untrained`` says that nothing changes the model until it is set again, so that what the
        clients of a round have alike is written once.

        Raises:
            PayloadError: if the payload is not this round's, or not of this model.
            TrainingError: if the shard is empty.
        """
        if not len(job.shard.train_rows):
            raise TrainingError(f"client {job.partition} has no images to train on")
        started = time.perf_counter()
        held, values = self._receive(job.payload, job.round_, job.memory, untrained=untrained)
        return Received(held, values, time.perf_counter() - started)

    def answer(
        self, job: Job, received: Received, found: Reached, losses: Losses, seconds: float
    ) -> Trained:
        """The answer of a client whose training came to what is ``found``, in ``seconds``.

        Raises:
            TrainingError: if the loss, or a value of the model, is no number.
        """
        recipe, held, started = self.recipe, received.held, time.perf_counter()
        sound = math.isfinite(losses.mean)
        if not sound or not found.finite:
            more = ", and a value of the model is no number" if sound else ""
            raise TrainingError(
                f"client {job.partition}: the loss is {losses.mean} in round {job.round_}{more}; "
                f"lower train.lr {recipe.train.lr}"
            )
        report = TrainReport(
            partition=job.partition,
            examples=len(job.shard.train_rows),
            train_loss=losses.mean,
            loss_before=losses.first,
            loss_after=losses.last,
            seconds=received.seconds + seconds + time.perf_counter() - started,
        )
        kept = found.kept.cpu().numpy() if found.kept.numel() else None
        if isinstance(job.payload, Passed):
            update = found.sent.sub_(received.values)
            passed = Passed(values=update, kind="update", round=job.round_, version=held.version)
            return Trained(passed, report, Memory(kept=kept))
        payload, residual = self._encode(found.sent.cpu().numpy() - held.values, held, job)
        held_next = held if recipe.wire.deltas else None
        return Trained(payload, report, Memory(kept=kept, residual=residual, held=held_next))

    def evaluate(
        self,
        payload: Payload,
        shard: Shard,
        *,
        round_: int,
        partition: int,
        memory: Memory = NOTHING,
    ) -> tuple[EvaluationReport, Memory]:
        """A received model, with what this client kept, on the images held out.

        What there is to keep is the version that was received, where deltas build on it. A client
        of one image holds none out, and says so.

        Raises:
            PayloadError: if the payload is not this round's, or not of this model.
        """
        held, _ = self._receive(payload, round_, memory)
        after = Memory(held=held if self.recipe.wire.deltas else None)
        if not len(shard.holdout_rows):
            none = EvaluationReport(partition=partition, examples=0, loss=0.0, accuracy=0.0)
            return none, after
        result = evaluate(
            self.model, shard.images, rows=shard.holdout_rows, precision=self.precision
        )
        report = EvaluationReport(
            partition=partition,
            examples=result.examples,
            loss=result.loss,
            accuracy=result.accuracy,
        )
        return report, after

    def _receive(
        self, payload: Payload, round_: int, memory: Memory, *, untrained: bool = False
    ) -> tuple[Held, Tensor]:
        """Set the model to a payload's version; that version, and its values where the model is."""
        tensors, before, kept = self._tensors, memory.held or self._first, memory.kept
        key = (round_, before.digest, len(before.before), payload)
        # the clients of a round are often sent the same
        if self._received is None or self._received[0] != key:
            held = self._channel.receive(payload, round_, before)
            self._received = key, held, tensors.sent.checked(held.values)
        _, held, values = self._received
        if not untrained or kept is not None or self._set_to is not held:
            self._set_to = None
            tensors.sent.write(values)
            tensors.kept.write(self._first_kept if kept is None else tensors.kept.checked(kept))
            self._set_to = held if untrained and kept is None else None
        return held, values

    def _encode(self, update: Values, held: Held, job: Job) -> tuple[bytes, Values | None]:
        """The payload of an update, and what the codec left out of it (error feedback).

        Seide et al., 2014, section 3; Karimireddy et al., 2019, algorithm 1.
        """
        wire, round_, residual = self.recipe.wire, job.round_, job.memory.residual
        rng = derived_numpy_rng(self.recipe.run.seed, "uplink", round_, job.partition)
        label = self._channel.label("update", round_, held)
        if self._feedback and residual is not None:
            update = update + residual
        codec = wire.update_codec(self._channel.parts, round_)
        codec = self._channel.predicting(codec, held)
        payload = encode(update, label, codec, rng)
        if not self._feedback:
            return payload, None
        left = update - decode(payload, label, codec)
        left[self._trained :] = 0  # of statistics, the next update holds what is missing again
        if not wire.schedule.trains(round_):  # whatever a fit of one's own did to it
            left[: self._still] = 0 if residual is None else residual[: self._still]
        return payload, left

    def fit(self, job: Job) -> Losses:
        """Train ``model``, which holds what the client received, on ``job.shard``; where clients
        train in another way, this is overridden.

        Here: local epochs of SGD; losses without the proximal term, the mean of the last one.
        """
        train, shard, mu = self.recipe.train, job.shard, job.proximal_mu
        lr = train.lr * train.factor(job.round_)
        makers = [generator.weight for generator in self._generators]
        others = [p for p in self._parameters if all(p is not weight for weight in makers)]
        groups: list[dict[str, Any]] = [
            {"params": others},
            {"params": makers, "lr": lr * train.generator_lr},
        ]
        optimizer = torch.optim.SGD(
            groups,
            lr=lr,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
        )
        anchors = [p.detach().clone() for p in self._parameters] if mu else []
        rng = derived_rng(self.recipe.run.seed, "train", job.round_, job.partition)

        still = [] if self.recipe.wire.schedule.trains(job.round_) else self._generators

        def before_step() -> None:
            for generator in still:
                generator.weight.grad = None
            if mu:
                _pull(self._parameters, anchors, mu)
            if train.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(self._parameters, train.clip_norm)

        self.model.train()
        passes = [
            train_epoch(
                self.model,
                shard.images,
                optimizer,
                rows=shard.train_rows,
                batch_size=train.batch_size,
                rng=rng,
                precision=self.precision,
                augment=train.augment,
                before_step=before_step,
            )
            for _ in range(train.local_epochs)
        ]
        return Losses.over(passes)


def _pull(parameters: list[torch.nn.Parameter], anchors: list[Tensor], mu: float) -> None:
    """Add the gradient of mu/2 |w - w_t|^2 (FedProx, Li et al., 2020, equation 2)."""
    for parameter, anchor in zip(parameters, anchors, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - anchor, alpha=mu)
