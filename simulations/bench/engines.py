"""What simulating costs: each engine against the same work in a loop without federation.

All are on the CPU. Each arm is a process of its own; the loop and the engine in one process, which
differ by little, take several turns. Seconds of a round are the median of all but the first and the
last, which evaluates; memory is the most that all processes of an arm took.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.bench.measured import measured
from simulations.command import StudyError
from simulations.recipe_names import set_options

NEEDS_IMAGES = True
_ROUNDS = ("train.rounds=4", "run.eval_every=1000", "run.device=cpu")
_LOOP, _ONE_CORE, _WORKERS = "loop", "local, one core", "local, workers"
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
ARMS: dict[str, tuple[str, ...]] = {
    _LOOP: (),
    "local": ("run.engine=local", "run.workers=1"),
    _WORKERS: ("run.engine=local", "run.workers=0"),
    _ONE_CORE: ("run.engine=local", "run.workers=1"),
    "flower": ("run.engine=flower",),
}


@dataclass(frozen=True, slots=True)
class Work:
    """A recipe with settings, its arms, and the turns that the first two of them take."""

    recipe: str
    settings: tuple[str, ...]
    arms: tuple[str, ...] = (_LOOP, "local")
    turns: int = 1


# Clients of two sizes; and clients of so few images and so many
# parameters that what they exchange weighs as much as their training.
WORKS = {
    "10 clients of 600 images": Work(
        "cifar10-resnet20",
        ("data.clients=50", "data.images=30000", "train.clients_per_round=10"),
        tuple(ARMS),
        turns=3,
    ),
    "20 clients of 500 images": Work(
        "cifar10-resnet20", ("data.clients=100", "train.clients_per_round=20")
    ),
    "50 clients of 50 images, 1.6 M parameters": Work("bench-pfl-cifar10", ("train.rounds=12",)),
}


def measure(images: str | None) -> dict[str, list[dict[str, Any]]]:
    """Rows of each work."""
    return {
        name: compare(
            [work.recipe, *set_options((*_ROUNDS, *work.settings, f"data.dir={images}"))],
            work.arms,
            work.turns,
        )
        for name, work in WORKS.items()
    }


def compare(recipe: Sequence[str], arms: Sequence[str], turns: int) -> list[dict[str, Any]]:
    """A row for each arm; ratios are to the loop of the same turn, medians over turns."""
    found: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
    for turn in range(turns):
        for arm in arms if turn == 0 else arms[:2]:
            found[arm].append(_measure(arm, recipe))
    return [_row(arm, rows, found[_LOOP]) for arm, rows in found.items()]


def tables(found: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, str]:
    """Markdown: every arm of every work, and how far workers are from linear."""
    lines = [
        "| work | arm | s per round | of the loop | turn by turn | s in all | peak MB |",
        "| --- | --- | --: | --: | --: | --: | --: |",
    ]
    lines += [
        f"| {work} | {row['arm']} | {row['round']:.2f} | {row['ratio']:.3f} "
        f"| {', '.join(f'{ratio:.3f}' for ratio in row['ratios'])} "
        f"| {row['wall']:.1f} | {row['memory']:.0f} |"
        for work, rows in found.items()
        for row in rows
    ]
    return {"engines": "\n".join(lines), "engines-scaling": "\n".join(_scaling(found))}


def _scaling(found: Mapping[str, Sequence[dict[str, Any]]]) -> Iterator[str]:
    """How many times one core's rounds workers make, where both were measured."""
    for work, rows in found.items():
        seconds = {row["arm"]: row["round"] for row in rows}
        if _WORKERS in seconds and _ONE_CORE in seconds:
            times = seconds[_ONE_CORE] / seconds[_WORKERS]
            yield f"{work}: workers on all cores are {times:.2f} times as fast as one core."


def _row(
    arm: str, rows: Sequence[dict[str, float]], loops: Sequence[dict[str, float]]
) -> dict[str, Any]:
    ratios = [own["round"] / base["round"] for own, base in zip(rows, loops, strict=False)]
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    each, ratio = [row["round"] for row in rows], statistics.median(ratios)
    return {"arm": arm, **middle, "rounds": each, "ratio": ratio, "ratios": ratios}


def _measure(arm: str, recipe: Sequence[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        if arm == _LOOP:
            command = ["-m", "simulations.bench.loop", *recipe]
        else:
            more = set_options((*ARMS[arm], f"run.dir={folder}"))
            command = ["-m", "simulations.cli", "run", *recipe, *more]
        done = measured(command, environment=_ONE_THREAD if arm == _ONE_CORE else None)
        if done.status:
            raise StudyError(f"the arm {arm} failed")
        rows = done.output if arm == _LOOP else (folder / "rounds.jsonl").read_text()
        seconds = [json.loads(line)["seconds"] for line in rows.splitlines()]
        rounds = statistics.median(seconds[1:-1] or seconds)
        return {"round": rounds, "wall": done.seconds, "memory": done.peak_bytes / 1e6}
