"""What simulating costs in memory and start, by engine, and what further cores give.

All are on the CPU, on the same work, each arm in a process of its own. Seconds of a round are the
median of all but the first and the last, which evaluates; memory is the most that all processes of
an arm took. How the loop and the engine compare, in turns in one process, is in ``overhead``.
"""

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.record import RunFolder
from simulations.bench.measured import measured
from simulations.command import StudyError
from simulations.recipe_names import set_options

NEEDS_IMAGES = True
_ROUNDS = ("train.rounds=4", "run.eval_every=1000", "run.device=cpu")
_ONE_CORE, _WORKERS = "local, one core", "local, workers"
_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
ARMS: dict[str, tuple[str, ...]] = {
    "local": ("run.engine=local", "run.workers=1"),
    _WORKERS: ("run.engine=local", "run.workers=0"),
    _ONE_CORE: ("run.engine=local", "run.workers=1"),
    "flower": ("run.engine=flower",),
}
# ten clients of 600 images
_RECIPE = ("cifar10-resnet20", "data.clients=50", "data.images=30000", "train.clients_per_round=10")


def measure(images: str | None) -> list[dict[str, Any]]:
    """A row for each arm."""
    recipe, *settings = _RECIPE
    return compare([recipe, *set_options((*_ROUNDS, *settings, f"data.dir={images}"))], tuple(ARMS))


def compare(recipe: Sequence[str], arms: Sequence[str]) -> list[dict[str, Any]]:
    """Seconds of a round and in all, and memory, of each arm."""
    return [{"arm": arm, **_measure(arm, recipe)} for arm in arms]


def tables(found: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Markdown: every arm, and how far workers are from linear."""
    lines = ["| arm | s per round | s in all | peak MB |", "| --- | --: | --: | --: |"]
    lines += [
        f"| {row['arm']} | {row['round']:.2f} | {row['wall']:.1f} | {row['memory']:.0f} |"
        for row in found
    ]
    seconds = {row["arm"]: row["round"] for row in found}
    told = ""
    if _WORKERS in seconds and _ONE_CORE in seconds:
        times = seconds[_ONE_CORE] / seconds[_WORKERS]
        told = f"Workers on all cores are {times:.2f} times as fast as one core."
    return {"engines": "\n".join(lines), "engines-scaling": told}


def _measure(arm: str, recipe: Sequence[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        more = set_options((*ARMS[arm], f"run.dir={folder}"))
        done = measured(["-m", "simulations.cli", "run", *recipe, *more],
                        environment=_ONE_THREAD if arm == _ONE_CORE else None)  # fmt: skip
        if done.status:
            raise StudyError(f"the arm {arm} failed")
        seconds = [row.seconds for row in RunFolder(folder).rows()]
    rounds = statistics.median(seconds[1:-1] or seconds)
    return {"round": rounds, "wall": done.seconds, "memory": done.peak_bytes / 1e6}
