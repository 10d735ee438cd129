"""What simulating costs in memory and start, by engine, and what further cores give.

All are on the CPU, on the same work, each arm in a process of its own; one core and workers, of
which the ratio is taken, twice, in turns. Seconds of a round are the second's of three, as the last
evaluates; memory is the most that all processes of an arm took. How the loop and the engine
compare, in turns in one process, is in ``overhead``.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from simulations.bench.runs import measured_run

NEEDS_IMAGES = True
_ROUNDS = ("train.rounds=3", "run.eval_every=1000", "run.device=cpu")
_ONE_CORE, _WORKERS = "local, one core", "local, workers"
_SCALING = (_WORKERS, _ONE_CORE)  # in a second turn as well
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
ARMS: dict[str, tuple[str, ...]] = {
    "local": ("run.engine=local", "run.workers=1"),
    _WORKERS: ("run.engine=local", "run.workers=0"),
    _ONE_CORE: ("run.engine=local", "run.workers=1"),
    "flower": ("run.engine=flower",),
}
_RECIPE = "cifar10-resnet20"
# ten clients of 300 images
_WORK = ("data.clients=50", "data.images=15000", "train.clients_per_round=10")


def measure(images: str | None) -> list[dict[str, Any]]:
    """A row for each arm and turn."""
    return compare(_RECIPE, (*_ROUNDS, *_WORK, f"data.dir={images}"), (tuple(ARMS), _SCALING))


def compare(
    recipe: str, settings: Sequence[str], turns: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    """Seconds of a round and in all, and memory, of the arms of each turn."""
    return [
        {"turn": turn, "arm": arm, **_measure(arm, recipe, settings)}
        for turn, arms in enumerate(turns, 1)
        for arm in arms
    ]


def tables(found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Markdown: medians of every arm, and how far workers are from linear."""
    lines = ["| arm | s per round | s in all | peak MB |", "| --- | --: | --: | --: |"]
    by_arm: dict[str, list[Mapping[str, Any]]] = {}
    for row in found:
        by_arm.setdefault(row["arm"], []).append(row)
    for arm, rows in by_arm.items():
        seconds, wall, memory = (
            statistics.median(row[key] for row in rows) for key in ("round", "wall", "memory")
        )
        lines.append(f"| {arm} | {seconds:.2f} | {wall:.1f} | {memory:.0f} |")
    times = [
        f"{one['round'] / many['round']:.2f}"
        for one, many in zip(by_arm.get(_ONE_CORE, []), by_arm.get(_WORKERS, []), strict=False)
    ]
    told = (
        f"Workers on all cores are {', '.join(times)} times as fast as one core." if times else ""
    )
    return {"engines": "\n".join(lines), "engines-scaling": told}


def _measure(arm: str, recipe: str, settings: Sequence[str]) -> dict[str, float]:
    environment = _ONE_THREAD if arm == _ONE_CORE else None
    run = measured_run(recipe, (*settings, *ARMS[arm]), environment=environment)
    seconds = statistics.median(run.seconds[1:-1] or run.seconds)
    return {"round": seconds, "wall": run.wall, "memory": run.peak_mb}
