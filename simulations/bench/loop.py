"""Federated averaging by hand: the training of a recipe without messages, payloads or Flower.

Codecs, server momentum and other strategies are left out: the loop averages what clients trained.
It is what the local engine is measured against.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from client.training import train_epoch
from csg_core import build, pack, unpack
from csg_core.averaging import WeightedMean
from csg_core.evaluation import evaluate
from federation.devices import device_of, precision_of
from federation.recipe import Recipe
from federation.shards import shard_rows
from federation.sources import load_images


@dataclass(frozen=True, slots=True)
class Round:
    """Its seconds, and the accuracy where the recipe evaluates."""

    seconds: float
    test_accuracy: float | None


def loop(recipe: Recipe) -> Iterator[Round]:
    """The rounds of a recipe; in each, the first clients train, as many as a cohort has.

    Raises:
        ValueError: if clients would train in another way than here, or on a GPU.
    """
    if (device := device_of(recipe)).type != "cpu":
        raise ValueError(f"run.device {device}: the loop is of the CPU; use run.device=cpu")
    usual = Recipe()
    for name, value, default in (
        ("train.generator_lr", recipe.train.generator_lr, usual.train.generator_lr),
        ("train.batch_norm", recipe.train.batch_norm, usual.train.batch_norm),
        ("data.holdout", recipe.data.holdout, usual.data.holdout),
    ):
        if value != default:
            raise ValueError(f"{name} {value}: the loop does without it; leave it out")
    train = load_images(recipe.data.name, recipe.data.dir, "train")
    test = load_images(recipe.data.name, recipe.data.dir, "test")
    shards = shard_rows(recipe.data, train.labels.numpy(), recipe.run.seed)
    model = build(recipe.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = [p for p in model.parameters() if p.requires_grad]
    settings, precision = recipe.train, precision_of(recipe)

    def clip() -> None:
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, settings.clip_norm)

    state = pack(model)
    for round_ in range(1, settings.rounds + 1):
        began = time.perf_counter()
        mean = WeightedMean(state.size)
        for partition, rows in list(enumerate(shards))[: recipe.cohort]:
            unpack(model, state)
            model.train()
            optimizer = torch.optim.SGD(
                parameters,
                lr=settings.lr * settings.factor(round_),
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
            )
            rng = torch.Generator().manual_seed(1000 * round_ + partition)
            for _ in range(settings.local_epochs):
                train_epoch(
                    model,
                    train,
                    optimizer,
                    rows=torch.from_numpy(rows),
                    batch_size=settings.batch_size,
                    rng=rng,
                    precision=precision,
                    augment=settings.augment,
                    before_step=clip,
                )
            mean.add(pack(model), len(rows))
        state = mean.mean()
        accuracy = None
        if round_ % recipe.run.eval_every == 0 or round_ == settings.rounds:
            unpack(model, state)
            accuracy = evaluate(model, test, precision=precision).accuracy
        yield Round(time.perf_counter() - began, accuracy)
