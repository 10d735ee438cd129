"""Clients of a round trained at once: their models stacked, their steps batched by torch.func.

Each client takes the batches, in the order and with the augmentation, that it would take alone, and
comes to the same values up to the rounding of floats; dropout draws other masks than it does alone,
the same ones each time that these clients train at once. Batches are of real images only. Padding
them to one size and masking the padding's loss would not do: batch normalisation would take the
padding into its statistics, unless every norm of every network were written anew, with masks. So
clients whose batches have the same size step together, and where shards differ in size, each client
takes its last, smaller batch of an epoch by itself.

Shape letters: C clients, those with most images first, so that the ones that step together are a
slice of the stack, a view; c clients of one step; B images of a batch, H height, W width.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from client.job import Job, Received, Trained
from client.local import LocalClient
from client.stack import Stack, Tensors, own_tensors, stepper
from client.training import CROP_PADDING, Losses, drawing_as, epoch_batches
from csg_core.functional import PureNetwork
from csg_core.images import crop_and_flip, draw_crops
from federation.seeds import derived_rng

Batches = tuple[Tensor, ...]  # rows of images, int64, by step


@dataclass(frozen=True, slots=True)
class _Begun:
    """The job at ``place`` among all, and the model that its client received."""

    place: int
    job: Job
    received: Received
    model: Tensors


class Cohort:
    """Trains clients at once, with the model and the settings of a ``LocalClient``."""

    def __init__(self, client: LocalClient) -> None:
        self._client = client
        self._step = stepper(PureNetwork(client.model), client.precision)

    def train(self, jobs: Sequence[Job]) -> list[Trained | Exception]:
        """What ``LocalClient.train`` gives for each job, or what it raises; all are of one round.

        Each reports an equal part of the seconds that the training of all took.
        """
        answers: list[Trained | Exception | None] = [None] * len(jobs)
        begun = []
        for place, job in enumerate(jobs):
            try:
                received = self._client.receive(job)
            except Exception as error:  # of this client alone
                answers[place] = error
                continue
            own = own_tensors(self._client.model)
            model = {name: tensor.clone() for name, tensor in own.items()}
            begun.append(_Begun(place, job, received, model))
        begun.sort(key=lambda client: len(client.job.shard.train_rows), reverse=True)
        started = time.perf_counter()
        trained = self._fit(begun) if begun else []
        seconds = (time.perf_counter() - started) / max(len(begun), 1)
        for client, (model, losses) in zip(begun, trained, strict=True):
            for name, tensor in own_tensors(self._client.model).items():
                tensor.copy_(model[name])
            try:
                answer = self._client.answer(client.job, client.received, losses, seconds)
                answers[client.place] = answer
            except Exception as error:
                answers[client.place] = error
        return [answer for answer in answers if answer is not None]

    def _fit(self, begun: Sequence[_Begun]) -> list[tuple[Tensors, Losses]]:
        """Local epochs of SGD; each client's tensors, and losses as ``LocalClient`` has them."""
        recipe, jobs = self._client.recipe, [client.job for client in begun]
        stack = self._stack([client.model for client in begun], jobs[0])
        seed = recipe.run.seed
        rngs = [derived_rng(seed, "train", job.round_, job.partition) for job in jobs]
        together = derived_rng(seed, "cohort", jobs[0].round_, *(job.partition for job in jobs))
        with drawing_as(together, self._client.device):
            passes = [self._epoch(stack, jobs, rngs) for _ in range(recipe.train.local_epochs)]
        ends = enumerate(zip(passes[0], passes[-1], strict=True))
        return [
            (stack.model(row), Losses(last.mean, first.first, last.last))
            for row, (first, last) in ends
        ]

    def _stack(self, models: Sequence[Tensors], job: Job) -> Stack:
        client, train = self._client, self._client.recipe.train
        trains = client.recipe.wire.schedule.trains(job.round_)
        still = set() if trains else {id(generator.weight) for generator in client.generators}
        named = dict(client.model.named_parameters())
        tensors = named | dict(client.model.named_buffers())
        return Stack(
            models,
            {name: t.detach() for name, t in tensors.items() if name not in models[0]},
            parameters=[n for n, p in named.items() if p.requires_grad and id(p) not in still],
            step=self._step,
            train=train,
            lr=train.lr * train.factor(job.round_),
            mu=job.proximal_mu,
        )

    def _epoch(
        self, stack: Stack, jobs: Sequence[Job], rngs: Sequence[torch.Generator]
    ) -> list[Losses]:
        """One pass of every client over its shard."""
        train, device = self._client.recipe.train, self._client.device
        data = jobs[0].shard.images
        assert all(job.shard.images is data for job in jobs), "clients of a process share images"
        batches = [
            epoch_batches(job.shard.train_rows, train.batch_size, rng, device)
            for job, rng in zip(jobs, rngs, strict=True)
        ]
        taken: list[tuple[slice, Tensor]] = []  # losses [c] of every step
        for at, chosen_cB in _steps(batches):
            c, B = chosen_cB.shape
            chosen = chosen_cB.flatten()
            images = data.images[chosen]
            if train.augment:
                crops = [draw_crops(B, CROP_PADDING, rng) for rng in rngs[at]]
                images = crop_and_flip(images, torch.cat(crops, dim=1), CROP_PADDING)
            images_cB3HW = data.normalise(images).contiguous().unflatten(0, (c, B))
            taken.append((at, stack.step(at, images_cB3HW, data.labels[chosen_cB])))
        losses: list[list[float]] = [[] for _ in jobs]
        for at, losses_c in taken:
            for own, loss in zip(losses[at], losses_c.tolist(), strict=True):
                own.append(loss)
        return [
            Losses.of(own, [len(batch) for batch in parts])
            for own, parts in zip(losses, batches, strict=True)
        ]


def _steps(batches: Sequence[Batches]) -> Iterator[tuple[slice, Tensor]]:
    """The clients of each step, and the rows of their batches, [c, B].

    With the largest shards first, those that still have a batch are the first ones, and those whose
    batches have the same size are neighbours.
    """
    for step in range(len(batches[0])):
        left = [parts[step] for parts in batches if len(parts) > step]
        first = 0
        for _, alike in itertools.groupby(left, key=len):
            chosen_cB = torch.stack(list(alike))
            yield slice(first, first + len(chosen_cB)), chosen_cB
            first += len(chosen_cB)
