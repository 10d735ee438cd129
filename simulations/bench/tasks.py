"""The benchmark tasks: seconds of a run, and its images a second beside a bare training step.

Each task is a recipe, run by ``csg run`` as a process of its own. After it, the same network takes
bare steps on the same device: forward, backward and SGD on one random batch that lies on the device
already, once of the recipe's batch size and once of a large one, which shows what the device could
do. Images a second of a run are those that its cohorts trained on, over the seconds of its rounds,
evaluation included; of several rounds the first, in which images are loaded, does not count.
Example:

    python -m simulations.bench.tasks --data cifar10/ --set run.device=cuda
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from csg_core import build
from federation.data_sets import source_of
from federation.devices import device_of, precision_of
from federation.recipe import Recipe
from simulations import command
from simulations.bench.part import RESULTS, SPEED, batch, training_step
from simulations.bench.runs import measured_run
from simulations.command import StudyError, several
from simulations.machine import commit, device_name, machine
from simulations.pages import fill, keep_json
from simulations.recipe_names import recipe_from

FILE = RESULTS / "tasks.json"
TASKS = ("bench-pfl-cifar10", "bench-blazefl-cnn", "bench-blazefl-resnet18", "cifar10-resnet56")
LARGE_BATCH = 1024
_SECONDS = 2.0  # that bare steps are timed for, at least
_FEWEST = 5  # timings of bare steps
_AHEAD = 10  # steps of a timing on a GPU, which works behind Python


def measure(task: str, settings: Sequence[str]) -> dict[str, Any]:
    """A run of a recipe, and bare steps of its network.

    Returns:
        ``seconds`` of the whole command, ``round_seconds`` (median), ``images_per_second`` of the
        rounds, ``step_images_per_second`` and ``large_images_per_second`` of bare steps, and what
        they were measured on.
    """
    run, recipe = measured_run(task, settings), _recipe(task, settings)
    counted, seconds = run.rows[1:] or run.rows, run.seconds[1:] or run.seconds
    examples = sum(part["examples"] for row in counted for part in row.contributions)
    images = examples * recipe.train.local_epochs
    return {
        "network": recipe.model.name,
        "kind": recipe.model.kind,
        "settings": [value for value in settings if not value.startswith("data.dir=")],
        "rounds": len(run.rows),
        "rounds_of_task": _recipe(task, ()).train.rounds,
        "seconds": run.wall,
        "round_seconds": statistics.median(seconds),
        "images_per_second": images / sum(seconds),
        "batch_size": recipe.train.batch_size,
        "step_images_per_second": bare_step(recipe, recipe.train.batch_size),
        "large_images_per_second": bare_step(recipe, LARGE_BATCH),
        "precision": precision_of(recipe),
        "device": _device_name(recipe),
        "machine": machine(),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _recipe(task: str, settings: Sequence[str]) -> Recipe:
    return recipe_from(argparse.Namespace(recipe=task, set=settings))[1]


def bare_step(recipe: Recipe, batch_size: int) -> float:
    """Images a second of training steps alone, by the median step."""
    device, train = device_of(recipe), recipe.train
    model = build(recipe.model).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = batch(batch_size, device=device)
    step = training_step(model, images, labels, precision_of(recipe), momentum=train.momentum,
                         weight_decay=train.weight_decay)  # fmt: skip
    steps = _AHEAD if device.type == "cuda" else 1
    found: list[float] = []
    _timed(step, steps, device)  # to warm up
    until = time.perf_counter() + _SECONDS
    while len(found) < _FEWEST or time.perf_counter() < until:
        found.append(_timed(step, steps, device))
    return batch_size / statistics.median(found)


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown: every task that was measured."""
    lines = [
        "| task | network | precision | rounds | s in all | s a round | images/s | of a bare step "
        f"| of bare steps of {LARGE_BATCH:,} | device, date |",
        "| --- | --- | --- | --: | --: | --: | --: | --: | --: | --- |",
    ]
    for task, row in found.items():
        speed = row["images_per_second"]
        own, large = row["step_images_per_second"], row["large_images_per_second"]
        cells = [task, f"{row['network']}, {row['kind']}", row["precision"]]
        cells += [f"{row['rounds']:,} of {row['rounds_of_task']:,}", f"{row['seconds']:.1f}"]
        cells += [f"{row['round_seconds']:.3f}", f"{speed:,.0f}"]
        cells += [f"{speed / bare:.2g} x {bare:,.0f}" for bare in (own, large)]
        lines.append(f"| {' | '.join(cells)} | {row['device']}, {row['date']} |")
    return "\n".join(lines)


def main() -> None:
    options = _options()
    kept = json.loads(FILE.read_text())["tasks"] if FILE.exists() else {}
    if options.data is not None:
        name, folder = source_of(options.data)
        settings = [f"data.name={name}"] if folder is None else [f"data.dir={folder}"]
        settings += options.set
        settings += [f"train.rounds={options.rounds}"] if options.rounds else []
        for task in options.tasks:
            kept[task] = {**measure(task, settings), "data": options.copy}
            print(f"{task}: {kept[task]}", file=sys.stderr)
            keep_json(FILE, {"tasks": kept})
    if not kept:
        raise StudyError("no results yet; name the images with --data")
    found = table({task: kept[task] for task in (*TASKS, *kept) if task in kept})
    print(found)
    fill({"tasks": found}, SPEED)


def _timed(step: Callable[[], None], steps: int, device: torch.device) -> float:
    """Seconds of one of several steps, all of them done on the device."""
    _wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    return (time.perf_counter() - started) / steps


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(recipe: Recipe) -> str:
    device = device_of(recipe)
    if device.type == "cpu":
        return f"{torch.get_num_threads()} threads of {machine()['cpu']}"
    return device_name(device)


def _options() -> argparse.Namespace:
    parser = command.parser("simulations.bench.tasks", __doc__)
    parser.add_argument("--data", metavar="DIR", help="CIFAR-10, or digits; none: only the table")
    parser.add_argument("--copy", default="CIFAR-10", help="which copy of the data this is")
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="RECIPE",
                        help=", ".join(TASKS))  # fmt: skip
    parser.add_argument("--rounds", type=several, help="in place of the task's own; 2 or more")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="change a value of every recipe, as run.device=cuda")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    command.run(main)
