"""What simulating costs: the local engine against Flower's, and against a loop without federation.

Each arm is a process of its own, and the arms take turns. Seconds of a round are the median over
all rounds but the first of every turn; memory is the largest sum of proportional set sizes of all
processes of an arm. Example:

    python -m simulations.studies.engines cifar10-resnet20 --set train.rounds=3
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from client.training import train_epoch
from csg_core import build, pack, unpack
from csg_core.averaging import WeightedMean
from csg_core.evaluation import evaluate
from federation.devices import precision_of
from federation.recipe import Recipe
from federation.shards import shard_rows
from federation.sources import load_images
from simulations.machine import machine
from simulations.recipe_names import add_recipe_options, recipe_from
from simulations.studies.measured import measured

ENGINES = {
    "local": ("run.engine=local",),
    "local, workers": ("run.engine=local", "run.workers=0"),
    "flower": ("run.engine=flower",),
}


def main() -> None:
    options = _options()
    _, recipe = recipe_from(options)
    if options.loop:
        loop(recipe)
        return
    settings = [part for setting in options.set for part in ("--set", setting)]
    arms: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ("loop", *ENGINES)}
    for turn in range(options.turns):
        for arm, found in arms.items():
            found.append(_measure(arm, [options.recipe, *settings]))
            print(f"turn {turn + 1}, {arm}: {found[-1]}", flush=True)
    rows = [_row(arm, measured, arms["loop"]) for arm, measured in arms.items()]
    asked = {"recipe": options.recipe, "settings": options.set}
    content = {"machine": machine(), **asked, "rows": rows}
    if options.out:
        options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(rows))


def loop(recipe: Recipe) -> None:
    """Federated averaging by hand: the same work, no messages, no payloads, no Flower."""
    train = load_images(recipe.data.name, recipe.data.dir, "train")
    test = load_images(recipe.data.name, recipe.data.dir, "test")
    shards = shard_rows(recipe.data, train.labels.numpy(), recipe.run.seed)
    model = build(recipe.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = [p for p in model.parameters() if p.requires_grad]
    settings, precision = recipe.train, precision_of(recipe)
    state = pack(model)
    for round_ in range(1, settings.rounds + 1):
        started = time.perf_counter()
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
                )
            mean.add(pack(model), len(rows))
        state = mean.mean()
        unpack(model, state)
        accuracy = evaluate(model, test, precision=precision).accuracy
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "test_accuracy": accuracy}), flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: ratios are to the loop of the same turn, medians over turns."""
    lines = [
        "| arm | s per round | of the loop | s in all | peak MB |",
        "| --- | --: | --: | --: | --: |",
    ]
    lines += [
        f"| {row['arm']} | {row['round']:.2f} | {row['ratio']:.3f} | {row['wall']:.1f} "
        f"| {row['memory']:.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


def _row(arm: str, measured: list[dict[str, Any]], loops: list[dict[str, Any]]) -> dict[str, Any]:
    ratios = [own["round"] / base["round"] for own, base in zip(measured, loops, strict=True)]
    middle = {key: statistics.median(m[key] for m in measured) for key in measured[0]}
    return {"arm": arm, **middle, "ratio": statistics.median(ratios)}


def _measure(arm: str, recipe: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        if arm == "loop":
            command = ["-m", "simulations.studies.engines", *recipe, "--loop"]
        else:
            settings = (*ENGINES[arm], f"run.dir={folder}")
            more = [part for setting in settings for part in ("--set", setting)]
            command = ["-m", "simulations.cli", "run", *recipe, *more]
        done = measured(command)
        if done.status:
            sys.exit(f"engines: the arm {arm} failed")
        lines = done.output.splitlines() if arm == "loop" else _lines(folder / "rounds.jsonl")
        seconds = [json.loads(line)["seconds"] for line in lines if line.startswith("{")]
        rounds = statistics.median(seconds[1:] or seconds)
        return {"round": rounds, "wall": done.seconds, "memory": done.peak_bytes / 1e6}


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.studies.engines",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_recipe_options(parser)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON to write")
    parser.add_argument("--loop", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
