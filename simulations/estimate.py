"""Print what a recipe will cost: parameters, and payload bytes, before anything is trained."""

import argparse
import json
from typing import Any

from csg_core import ModelSpec, build, count_trainable, manifest
from csg_core.codecs import Codec, Float16, codec_in, codec_named
from csg_core.payload import payload_bytes
from federation.recipe import Recipe
from simulations.progress import megabytes
from simulations.recipe_names import add_recipe_options, recipe_from

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
    parser.add_argument("--json", action="store_true", help="machine-readable answer")


def run(options: argparse.Namespace) -> None:
    if options.table:
        _print_table(as_json=options.json)
        return
    if options.recipe is None:
        raise ValueError("RECIPE is missing; name one, as cifar10-resnet20, or give --table")
    name, recipe = recipe_from(options)
    found = estimate(recipe)
    if options.json:
        print(json.dumps(found))
        return
    counts, train = found["parameters"], recipe.train
    each = found["payload_bytes_up"] + found["payload_bytes_down"]
    print(f"{name}: {recipe.model.name}, {train.rounds:,} rounds of {recipe.cohort:,} clients")
    print(f"parameters  {counts['total']:,} (generator {counts['generator']:,}, "
          f"codes {counts['codes']:,}, other {counts['other']:,}); "
          f"dense twin {counts['dense']:,}")  # fmt: skip
    print(f"payload     {megabytes(found['payload_bytes_up'])} up ({recipe.wire.uplink}), "
          f"{megabytes(found['payload_bytes_down'])} down ({recipe.wire.downlink}) per client and "
          f"round; {megabytes(each * recipe.cohort)} per round")  # fmt: skip
    if (finish := found["finish"]) is not None:
        count = finish["rounds"]
        which = "round" if count == 1 else f"{count:,} rounds"
        print(f"            {megabytes(finish['payload_bytes_up'])} up, "
              f"{megabytes(finish['payload_bytes_down'])} down at the end (the last "
              f"{which}: {recipe.wire.finish})")  # fmt: skip
    print(f"run         {megabytes(found['total_bytes'])} in all, {found['ratio_to_dense']:.2f} "
          "times fewer than the dense twin; Flower's own protocol comes on top")  # fmt: skip


def estimate(recipe: Recipe) -> dict[str, Any]:
    """Trainable parameters, and payload bytes if every client of every round answers.

    ``payload_bytes_up`` and ``payload_bytes_down`` are of a client in the first round, and
    ``finish`` has those of the last one, if it has a codec of its own.
    """
    each = _Each(recipe)
    (up, down), last = each.of(1), each.of(recipe.train.rounds)
    finish = None
    if recipe.finish is not None:
        rounds = recipe.train.rounds - recipe.finish.first + 1
        finish = {"rounds": rounds, "payload_bytes_up": last[0], "payload_bytes_down": last[1]}
    total = each.total()
    return {
        "parameters": parameters(recipe.model),
        "payload_bytes_up": up,
        "payload_bytes_down": down,
        "finish": finish,
        "total_bytes": total,
        "ratio_to_dense": _Each(recipe.dense_twin()).total() / total,
    }


def parameters(spec: ModelSpec) -> dict[str, int]:
    """Trainable parameters of a model and of its dense twin, counted on the models themselves."""
    model = build(spec)
    counts = manifest(model)
    return {
        "total": count_trainable(model),
        "generator": counts.count("generator"),
        "codes": counts.count("codes"),
        "other": counts.count("norms", "head", "other"),
        "dense": count_trainable(build(spec.dense_twin())),
    }


class _Each:
    """Payload bytes of one client by round, as if the seed did not know the first model."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe, self._finish = recipe, recipe.finish
        self._parts = manifest(build(recipe.model), recipe.train.travelling()).parts
        self._downlink = codec_named(recipe.wire.downlink)
        self._bytes: dict[Codec, int] = {}

    def of(self, round_: int) -> tuple[int, int]:
        """Up and down."""
        recipe = self._recipe
        down = codec_in(round_, self._downlink, self._finish)
        down = recipe.wire.schedule.codec(down, self._parts, max(1, round_ - 1))  # what it made
        return self._of(recipe.update_codec(self._parts, round_)), self._of(down)

    def total(self) -> int:
        """Of a run, evaluation included."""
        recipe, total = self._recipe, 0
        rounds, every = recipe.train.rounds, recipe.run.eval_every
        for round_ in range(1, rounds + 1):
            up, down = self.of(round_)
            if round_ == 1 and recipe.server.start_from is not None and recipe.wire.deltas:
                down = self._of(Float16())
            evaluated = recipe.clients_evaluate and (round_ % every == 0 or round_ == rounds)
            total += up + down * (2 if evaluated else 1)
        return recipe.cohort * total

    def _of(self, codec: Codec) -> int:
        if codec not in self._bytes:
            self._bytes[codec] = payload_bytes(self._parts, codec)
        return self._bytes[codec]


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
            "parameters": parameters(spec),
        }
        for spec in specs
    ]
    if as_json:
        print(json.dumps(rows))
        return
    print(f"{'network':<14}{'dense':>12}  {'generated':<14}{'total':>12}{'generator':>11}"
          f"{'codes':>9}{'other':>12}{'ratio':>7}")  # fmt: skip
    for row in rows:
        counts = row["parameters"]
        sizes = f"s={row['slice_size']} d={row['code_size']}"
        print(f"{row['network']:<14}{counts['dense']:>12,}  {sizes:<14}{counts['total']:>12,}"
              f"{counts['generator']:>11,}{counts['codes']:>9,}{counts['other']:>12,}"
              f"{counts['dense'] / counts['total']:>7.2f}")  # fmt: skip
