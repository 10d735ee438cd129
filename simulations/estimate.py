"""Print what a recipe will cost: parameters, and payload bytes, before anything is trained."""

import argparse
import json
from typing import Any

from torch import nn

from csg_core import ModelSpec, build, count_trainable, manifest
from csg_core.codecs import GeneratorSchedule, Parts, codec_named
from csg_core.payload import payload_bytes
from federation.recipe import Recipe
from server.aggregation import Aggregation
from simulations.progress import megabytes
from simulations.recipe_names import add_recipe_options, recipe_from
from simulations.recipe_text import commented

HELP = "parameters and bytes of a recipe, or the paper's table"
EXAMPLE = "csg estimate cifar10-resnet56 --set train.rounds=20   (or: csg estimate --table)"

# The rows of the paper's tables: networks with the slice and code sizes used for them.
PAPER_ROWS: dict[str, tuple[tuple[int, int], ...]] = {
    "resnet20": ((12, 72), (16, 72), (16, 128)),
    "resnet56": ((12, 72), (16, 72), (16, 128)),
    "densenet40-36": ((12, 36), (12, 48), (12, 72)),
    "densenet40-48": ((12, 36), (12, 48), (12, 72)),
    "resnet18": ((16, 128),),
    "resnet34": ((16, 128),),
    "resnet50": ((16, 128),),
    "densenet121": ((16, 128),),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_options(parser, required=False)
    parser.add_argument("--table", action="store_true", help="print every row of the paper")
    parser.add_argument("--toml", action="store_true",
                        help="print the recipe instead, every key with what it means, to begin a "
                        "file of your own with")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="machine-readable answer")


def run(options: argparse.Namespace) -> None:
    if options.toml and (options.json or options.table):
        raise ValueError("--toml prints a recipe; leave out --json and --table")
    if options.table:
        if options.recipe is not None or options.set:
            raise ValueError("--table is of the paper's networks; leave out RECIPE and --set")
        _print_table(as_json=options.json)
        return
    if options.recipe is None:
        raise ValueError("RECIPE is missing; name one, as cifar10-resnet20, or give --table")
    name, recipe = recipe_from(options)
    if options.toml:
        print(commented(recipe), end="")
        return
    found = estimate(recipe)
    if options.json:
        print(json.dumps(found))
        return
    counts, train = found["parameters"], recipe.train
    wide = "" if recipe.model.width == 1 else f" ({recipe.model.width:g} times the channels)"
    each = found["payload_bytes_up"] + found["payload_bytes_down"]
    print(f"{name}: {recipe.model.name}, {train.rounds:,} rounds of {recipe.cohort:,} clients")
    print(f"parameters  {counts['total']:,} (generator {counts['generator']:,}, "
          f"codes {counts['codes']:,}, other {counts['other']:,}); "
          f"dense twin{wide} {counts['dense']:,}")  # fmt: skip
    whole = "" if recipe.wire.schedule == GeneratorSchedule() else " where the generator travels"
    print(f"payload     {megabytes(found['payload_bytes_up'])} up ({recipe.wire.uplink}), "
          f"{megabytes(found['payload_bytes_down'])} down ({recipe.wire.downlink}) per client and "
          f"round{whole}; {megabytes(each * recipe.cohort)} per round")  # fmt: skip
    print(f"run         about {megabytes(found['total_bytes'])} in all, some "
          f"{found['ratio_to_dense']:.3g} times fewer than the dense twin; Flower's own protocol "
          "comes on top")  # fmt: skip


def estimate(recipe: Recipe) -> dict[str, Any]:
    """Trainable parameters, and payload bytes if every client of every round answers.

    Where clients evaluate, each evaluation is counted as another download of its round.

    Raises:
        ValueError: if the recipe's strategy or an option of it cannot be.
    """
    Aggregation(recipe.server.strategy, recipe.server.options, trained=0, cohort=recipe.cohort)
    twin = recipe.dense_twin()
    model, dense = build(recipe.model), build(twin.model)
    parts = manifest(model, recipe.train.travelling()).parts
    total, (up, down) = _total_bytes(recipe, parts), recipe.wire.payload_bytes(parts)
    dense_parts = manifest(dense, twin.train.travelling()).parts
    return {
        "parameters": {**parameters(model), "dense": count_trainable(dense)},
        "payload_bytes_up": up,
        "payload_bytes_down": down,
        "total_bytes": total,
        "ratio_to_dense": _total_bytes(twin, dense_parts) / total,
    }


def parameters(model: nn.Module) -> dict[str, int]:
    """Trainable parameters of a model: ``total``, and of it ``generator``, ``codes``, ``other``."""
    counts = manifest(model)
    return {
        "total": count_trainable(model),
        "generator": counts.count("generator"),
        "codes": counts.count("codes"),
        "other": counts.count("norms", "head", "other"),
    }


def _with_twin(spec: ModelSpec) -> dict[str, int]:
    """Of a model and, ``dense``, of its dense twin, counted on the models themselves."""
    return {**parameters(build(spec)), "dense": count_trainable(build(spec.dense_twin()))}


def _total_bytes(recipe: Recipe, parts: Parts) -> int:
    rounds, every, schedule = recipe.train.rounds, recipe.run.eval_every, recipe.wire.schedule
    whole = recipe.wire.payload_bytes(parts)
    partial = recipe.wire.payload_bytes(parts, generator=False)
    total = 0
    for round_ in range(1, rounds + 1):
        up, _ = whole if schedule.trains(round_) else partial
        _, down = whole if schedule.trains(max(1, round_ - 1)) else partial  # what that one made
        evaluated = recipe.clients_evaluate and (round_ % every == 0 or round_ == rounds)
        total += up + (down if evaluated else 0)
        if round_ == 1 and recipe.wire.deltas:  # the model of the seed, which clients make
            line = "none" if recipe.server.start_from is None else "fp16"
            down = payload_bytes(parts, codec_named(line))
        total += down
    return recipe.cohort * total


def _print_table(*, as_json: bool) -> None:
    specs = [
        ModelSpec(name=name, slice_size=s, code_size=d)
        for name, sizes in PAPER_ROWS.items()
        for s, d in sizes
    ]
    rows: list[dict[str, Any]] = [
        {
            "network": spec.name,
            "slice_size": spec.slice_size,
            "code_size": spec.code_size,
            "parameters": _with_twin(spec),
        }
        for spec in specs
    ]
    if as_json:
        print(json.dumps(rows))
        return
    print(f"{'network':<14}{'dense':>12}  {'generated':<14}{'total':>12}{'generator':>11}"
          f"{'codes':>12}{'other':>12}{'ratio':>7}")  # fmt: skip
    for row in rows:
        counts = row["parameters"]
        sizes = f"s={row['slice_size']} d={row['code_size']}"
        print(f"{row['network']:<14}{counts['dense']:>12,}  {sizes:<14}{counts['total']:>12,}"
              f"{counts['generator']:>11,}{counts['codes']:>12,}{counts['other']:>12,}"
              f"{counts['dense'] / counts['total']:>7.2f}")  # fmt: skip
