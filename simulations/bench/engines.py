"""What simulating costs: each engine against the same work in a loop without federation.

Each arm is a process of its own, and the arms take turns. Seconds of a round are the median of all
but the first and the last, which evaluates; memory is the largest sum of proportional set sizes of
all processes of an arm.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simulations.bench.measured import measured
from simulations.recipe_names import set_options

NEEDS_IMAGES = True
_ROUNDS = ("train.rounds=4", "run.eval_every=1000")
_LOOP = "loop"
ARMS: dict[str, tuple[str, ...]] = {
    _LOOP: (),
    "local": ("run.engine=local",),
    "local, workers": ("run.engine=local", "run.workers=0"),
    "flower": ("run.engine=flower",),
}
# Recipe, settings and arms: 10,000 images a round, in clients of two sizes; and clients of so few
# images and so many parameters that what they exchange weighs as much as their training.
WORKS: dict[str, tuple[str, tuple[str, ...], Sequence[str]]] = {
    "10 clients of 1,000 images": (
        "cifar10-resnet20",
        ("data.clients=50", "train.clients_per_round=10"),
        list(ARMS),
    ),
    "20 clients of 500 images": (
        "cifar10-resnet20",
        ("data.clients=100", "train.clients_per_round=20"),
        (_LOOP, "local"),
    ),
    "50 clients of 50 images, 1.6 M parameters": (
        "bench-pfl-cifar10",
        ("train.rounds=12", "run.workers=1"),
        (_LOOP, "local"),
    ),
}


def measure(images: str | None, *, turns: int = 1) -> dict[str, list[dict[str, Any]]]:
    """Rows of each work."""
    return {
        name: compare(
            [recipe, *set_options((*_ROUNDS, *settings, f"data.dir={images}"))], arms, turns
        )
        for name, (recipe, settings, arms) in WORKS.items()
    }


def compare(recipe: Sequence[str], arms: Sequence[str], turns: int) -> list[dict[str, Any]]:
    """A row for each arm; ratios are to the loop of the same turn, medians over turns."""
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for _ in range(turns):
        for arm in arms:
            found[arm].append(_measure(arm, recipe))
    return [_row(arm, rows, found[_LOOP]) for arm, rows in found.items()]


def tables(found: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, str]:
    """Markdown: every arm of every work."""
    lines = [
        "| work | arm | s per round | of the loop | s in all | peak MB |",
        "| --- | --- | --: | --: | --: | --: |",
    ]
    lines += [
        f"| {work} | {row['arm']} | {row['round']:.2f} | {row['ratio']:.3f} | {row['wall']:.1f} "
        f"| {row['memory']:.0f} |"
        for work, rows in found.items()
        for row in rows
    ]
    return {"engines": "\n".join(lines)}


def _row(
    arm: str, rows: Sequence[dict[str, float]], loops: Sequence[dict[str, float]]
) -> dict[str, Any]:
    ratios = [own["round"] / base["round"] for own, base in zip(rows, loops, strict=True)]
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    return {"arm": arm, **middle, "ratio": statistics.median(ratios)}


def _measure(arm: str, recipe: Sequence[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        if arm == _LOOP:
            command = ["-m", "simulations.bench.loop", *recipe]
        else:
            more = set_options((*ARMS[arm], f"run.dir={folder}"))
            command = ["-m", "simulations.cli", "run", *recipe, *more]
        done = measured(command)
        if done.status:
            sys.exit(f"engines: the arm {arm} failed")
        rows = done.output if arm == _LOOP else (folder / "rounds.jsonl").read_text()
        seconds = [json.loads(line)["seconds"] for line in rows.splitlines()]
        rounds = statistics.median(seconds[1:-1] or seconds)
        return {"round": rounds, "wall": done.seconds, "memory": done.peak_bytes / 1e6}
