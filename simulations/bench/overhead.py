"""What a simulated round takes beyond its steps: bare steps, a plain loop and the local engine.

They take turns in one process, on the CPU, so that all see the same load of the machine; ratios are
of the same turn, and the first turn is left out. Bare steps are those of one client's batches, on
images that lie there, times the clients. The loop also sets models, draws batches and averages; the
engine has messages, checks, codecs and record besides, and a checkpoint where the recipe has any.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from csg_core import build
from csg_core.evaluation import evaluate
from csg_core.images import ImageSet
from federation.devices import precision_of
from federation.recipe import Recipe, recipe_of
from federation.shards import shard_rows
from federation.sources import load_images
from server.record import RunFolder
from server.rows import RoundRow
from simulations.bench.loop import loop
from simulations.bench.part import batch, training_step
from simulations.command import StudyError
from simulations.local_engine import run_local
from simulations.recipe_names import recipe_from

NEEDS_IMAGES = True
_NEVER = 1_000_000


@dataclass(frozen=True, slots=True)
class Work:
    """A recipe with settings, and the turns that are timed; clients have shards of one size."""

    recipe: str
    settings: tuple[str, ...]
    turns: int


WORKS = {
    "10 clients of 300 images": Work(
        "cifar10-resnet20", ("data.clients=10", "data.images=3000"), turns=5
    ),
    "20 clients of 500 images": Work(
        "cifar10-resnet20", ("data.clients=100", "train.clients_per_round=20"), turns=2
    ),
    "50 clients of 50 images, two convolutions, 1.6 M parameters": Work(
        "bench-pfl-cifar10", (), turns=5
    ),
    "10 clients of 300 images, ResNet-56, lossy codecs": Work(
        "cifar10-compressed",
        ("data.clients=10", "data.images=3000"),
        turns=3,
    ),
}


def measure(images: str | None) -> dict[str, dict[str, Any]]:
    """What each work came to."""
    return {name: compare(_recipe(work, images), work.turns) for name, work in WORKS.items()}


def _recipe(work: Work, images: str | None) -> Recipe:
    settings = [*work.settings, f"data.dir={images}"]
    return recipe_from(argparse.Namespace(recipe=work.recipe, set=settings))[1]


def compare(recipe: Recipe, turns: int) -> dict[str, Any]:
    """Seconds of every turn: of a round's bare steps, of a round each, of evaluating a model.

    The engine's round is what lies between two reports of it; others take their turns meanwhile.
    """
    seconds: dict[str, list[float]] = {kind: [] for kind in ("bare", "loop", "engine")}
    with tempfile.TemporaryDirectory() as scratch:
        run = {
            "dir": str(Path(scratch) / "run"),
            "eval_every": _NEVER,
            "device": "cpu",
            "workers": 1,
        }
        rounds = {"rounds": turns + 2}  # the last evaluates, and is not reached
        recipe = recipe_of(_with(recipe, run=run, train=rounds), "bench")
        RunFolder(Path(str(recipe.run.dir))).create(recipe, {}, [])
        others: dict[str, Callable[[], object]] = {
            "bare": _bare(recipe),
            "loop": partial(next, loop(recipe)),
        }
        went_on = time.perf_counter()

        def report(row: RoundRow) -> None:
            nonlocal went_on
            if row.failures:
                raise StudyError(f"{row.failures} clients failed in round {row.round}")
            seconds["engine"].append(time.perf_counter() - went_on)
            for kind, call in others.items():
                began = time.perf_counter()
                call()
                seconds[kind].append(time.perf_counter() - began)
            if row.round > turns:
                raise _EnoughError
            went_on = time.perf_counter()

        logging.getLogger("flwr").setLevel(logging.WARNING)  # it tells of every round
        with suppress(_EnoughError):
            run_local(recipe, report)
    test = load_images(recipe.data.name, recipe.data.dir, "test")
    clients = recipe.cohort * recipe.train.local_epochs
    return {
        "images": clients * len(_shard(recipe)),
        "bare": [clients * s for s in seconds["bare"][1:]],
        "loop": seconds["loop"][1:],
        "engine": seconds["engine"][1:],
        "evaluation": _evaluation(recipe, test),
        "test_images": len(test),
    }


class _EnoughError(Exception):
    """All turns were taken."""


def _with(recipe: Recipe, **sections: dict[str, Any]) -> dict[str, Any]:
    content = recipe.model_dump(exclude_none=True)
    return content | {name: content[name] | values for name, values in sections.items()}


def _shard(recipe: Recipe) -> NDArray[np.int64]:
    """The first client's rows."""
    labels = load_images(recipe.data.name, recipe.data.dir, "train").labels.numpy()
    return shard_rows(recipe.data, labels, recipe.run.seed)[0]


def _bare(recipe: Recipe) -> Callable[[], None]:
    """A client's epoch in steps on random images that lie there."""
    model, precision, train = _model(recipe), precision_of(recipe), recipe.train
    full, rest = divmod(len(_shard(recipe)), train.batch_size)
    steps = [
        training_step(model, *batch(size), precision,
                      momentum=train.momentum, weight_decay=train.weight_decay)
        for size in [train.batch_size] * bool(full) + [rest] * bool(rest)
    ]  # fmt: skip

    def epoch() -> None:
        for step in steps[:1] * full + steps[-1:] * bool(rest):
            step()

    return epoch


def _evaluation(recipe: Recipe, test: ImageSet) -> float:
    """Seconds, the less of two."""
    model, precision = _model(recipe), precision_of(recipe)
    took = []
    for _ in range(2):
        began = time.perf_counter()
        evaluate(model, test, precision=precision)
        took.append(time.perf_counter() - began)
    return min(took)


def _model(recipe: Recipe) -> nn.Module:
    model = build(recipe.model)
    return model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload,no-any-return]


def tables(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Markdown: a round of the loop, as a ratio to bare steps; the engine, as one to the loop."""
    lines = [
        "| work | images a round | loop, s a round | of bare steps | engine, of the loop "
        "| turn by turn | of bare steps | evaluation of 10,000 images, s |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for work, of in found.items():
        ratios = {
            (kind, base): [a / b for a, b in zip(of[kind], of[base], strict=True)]
            for kind, base in (("loop", "bare"), ("engine", "loop"), ("engine", "bare"))
        }
        loop_bare, engine_loop, engine_bare = (statistics.median(of) for of in ratios.values())
        each = ", ".join(f"{ratio:.2f}" for ratio in ratios["engine", "loop"])
        evaluation = of["evaluation"] / of["test_images"] * 10_000
        lines.append(
            f"| {work} | {of['images']:,} | {statistics.median(of['loop']):.2f} | {loop_bare:.3f} "
            f"| {engine_loop:.3f} | {each} | {engine_bare:.3f} | {evaluation:.2f} |"
        )
    return {"overhead": "\n".join(lines)}
