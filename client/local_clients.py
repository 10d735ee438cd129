"""Clients of a round trained at once, each on a copy of the model.

Each client takes the batches, in the order and with the augmentation, that it would take alone, and
comes to the same values up to the rounding of floats; dropout draws other masks than it does alone,
the same ones each time that these clients train at once.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from client.job import Job, Received, Trained
from client.local import LocalClient
from client.replicas import Batch, Replicas, values_of
from client.training import CROP_PADDING, Losses, drawing_as, epoch_batches
from csg_core.images import crop_and_flip, draw_crops
from federation.seeds import derived_rng

_GATHERED = 8192  # images, about, that are gathered and augmented in one go


@dataclass(frozen=True, slots=True)
class _Begun:
    """The job at ``place`` among all, and what its client received."""

    place: int
    job: Job
    received: Received


class LocalClients:
    """Trains clients at once, with the model and the settings of a ``LocalClient``."""

    def __init__(self, client: LocalClient) -> None:
        self._client = client
        self._replicas: Replicas | None = None

    def train(self, jobs: Sequence[Job]) -> list[Trained | Exception]:
        """What ``LocalClient.train`` gives for each job, or what it raises; all are of one round.

        Each reports an equal part of the seconds that the training of all took.
        """
        answers: dict[int, Trained | Exception] = {}
        begun: list[_Begun] = []
        replicas, values = self._prepared(jobs), values_of(self._client.model)
        # those with most images first, so that the ones that still have a batch are the first ones
        places = sorted(range(len(jobs)), key=lambda place: -len(jobs[place].shard.train_rows))
        for place in places:
            try:
                received = self._client.receive(jobs[place], untrained=True)
            except Exception as error:  # of this client alone
                answers[place] = error
                continue
            replicas[len(begun)].begin(values)
            begun.append(_Begun(place, jobs[place], received))
        started = time.perf_counter()
        losses = self._fit(begun, replicas) if begun else []
        found = replicas.reached(len(begun)) if begun else []
        seconds = (time.perf_counter() - started) / max(len(begun), 1)
        for client, came_to, own in zip(begun, found, losses, strict=True):
            try:
                answer = self._client.answer(client.job, client.received, came_to, own, seconds)
                answers[client.place] = answer
            except Exception as error:
                answers[client.place] = error
        return [answers[place] for place in range(len(jobs))]

    def _prepared(self, jobs: Sequence[Job]) -> Replicas:
        """Replicas for as many clients, those of the last round if they do."""
        client, train, job = self._client, self._client.recipe.train, jobs[0]
        replicas, images = self._replicas, job.shard.images
        assert all(other.shard.images is images for other in jobs)
        if (
            replicas is None
            or replicas.data is not images
            or replicas.mu != job.proximal_mu
            or len(replicas) < len(jobs)
        ):
            self._replicas = replicas = None  # memory is let go first
            self._replicas = replicas = Replicas(
                client.model, len(jobs), images,
                train=train, mu=job.proximal_mu, precision=client.precision,
            )  # fmt: skip
        trains = client.recipe.wire.schedule.trains(job.round_)
        replicas.hold(generators=not trains)
        replicas.set_lr(train.lr * train.factor(job.round_))
        return replicas

    def _fit(self, begun: Sequence[_Begun], replicas: Replicas) -> list[Losses]:
        """Local epochs of SGD; each client's losses, as ``LocalClient`` has them."""
        recipe, jobs = self._client.recipe, [client.job for client in begun]
        seed = recipe.run.seed
        rngs = [derived_rng(seed, "train", job.round_, job.partition) for job in jobs]
        together = derived_rng(seed, "cohort", jobs[0].round_, *(job.partition for job in jobs))
        with drawing_as(together, self._client.device):
            passes = [self._epoch(replicas, jobs, rngs) for _ in range(recipe.train.local_epochs)]
        return [Losses.over(own) for own in zip(*passes, strict=True)]

    def _epoch(
        self, replicas: Replicas, jobs: Sequence[Job], rngs: Sequence[torch.Generator]
    ) -> list[Losses]:
        """One pass of every client over its shard."""
        batches = [own for few in _few(jobs) for own in self._batches(jobs[few], rngs[few])]
        taken = [(first, replicas.step(first, alike)) for first, alike in _steps(batches)]
        found = iter(torch.cat([losses_c for _, losses_c in taken]).tolist())
        losses: list[list[float]] = [[] for _ in jobs]
        for first, losses_c in taken:
            for own in losses[first : first + len(losses_c)]:
                own.append(next(found))
        return [
            Losses.of(own, [len(labels_B) for _, labels_B in parts])
            for own, parts in zip(losses, batches, strict=True)
        ]

    def _batches(self, jobs: Sequence[Job], rngs: Sequence[torch.Generator]) -> list[list[Batch]]:
        """The batches of a pass of several clients, gathered and augmented in one go."""
        train, data = self._client.recipe.train, jobs[0].shard.images
        rows = [
            epoch_batches(job.shard.train_rows, train.batch_size, rng)
            for job, rng in zip(jobs, rngs, strict=True)
        ]
        chosen = torch.cat([torch.cat(own) for own in rows]).to(data.images.device)
        images, labels = data.images[chosen], data.labels[chosen]
        if train.augment:
            crops = [
                draw_crops(len(batch), CROP_PADDING, rng)
                for own, rng in zip(rows, rngs, strict=True)
                for batch in own
            ]
            images = crop_and_flip(images, torch.cat(crops, dim=1), CROP_PADDING)
        sizes = [len(batch) for own in rows for batch in own]
        batches = zip(images.split(sizes), labels.split(sizes), strict=True)
        return [list(itertools.islice(batches, len(own))) for own in rows]


def _few(jobs: Sequence[Job]) -> Iterator[slice]:
    """Neighbours that have about as many images together as are gathered in one go."""
    ends, first = itertools.accumulate(len(job.shard.train_rows) for job in jobs), 0
    for _, run in itertools.groupby(end // _GATHERED for end in ends):
        last = first + len(list(run))
        yield slice(first, last)
        first = last


def _steps(batches: Sequence[Sequence[Batch]]) -> Iterator[tuple[int, list[Batch]]]:
    """The first replica of each step, and batches of one size, for it and its neighbours.

    With the largest shards first, clients that still have a batch are the first ones, and those
    whose batches have the same size are neighbours.
    """
    for step in range(len(batches[0])):
        left = [parts[step] for parts in batches if len(parts) > step]
        first = 0
        for _, alike in itertools.groupby(left, key=lambda batch: len(batch[1])):
            together = list(alike)
            yield first, together
            first += len(together)
