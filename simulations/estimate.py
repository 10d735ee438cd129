"""Print how many parameters a network has, dense and generated, before anything is trained."""

import argparse
import json
from dataclasses import replace
from typing import Any

from csg_core import ModelSpec, build, count_trainable, manifest
from simulations.model_options import add_model_options, spec_from

HELP = "parameters of a network, or the paper's table"
EXAMPLE = "csg estimate resnet56 --slice-size 16 --code-size 128   (or: csg estimate --table)"

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
    add_model_options(parser)
    parser.add_argument("--table", action="store_true", help="print every row of the paper")
    parser.add_argument("--json", action="store_true", help="machine-readable answer")


def run(options: argparse.Namespace) -> None:
    if options.table:
        specs = [
            ModelSpec(name=name, slice_size=s, code_size=d)
            for name, sizes in PAPER_ROWS.items()
            for s, d in sizes
        ]
    else:
        specs = [spec_from(options)]
    rows = [estimate(spec) for spec in specs]
    if options.json:
        print(json.dumps(rows if options.table else rows[0]))
        return
    print(f"{'network':<14}{'dense':>12}  {'generated':<14}{'total':>12}{'generator':>11}"
          f"{'codes':>9}{'other':>12}{'ratio':>7}")  # fmt: skip
    for row in rows:
        counts = row["parameters"]
        sizes = f"s={row['slice_size']} d={row['code_size']}"
        label = sizes if row["parametrization"] == "csg" else "dense"
        print(f"{row['network']:<14}{counts['dense']:>12,}  {label:<14}{counts['total']:>12,}"
              f"{counts['generator']:>11,}{counts['codes']:>9,}{counts['other']:>12,}"
              f"{row['ratio_to_dense']:>7.2f}")  # fmt: skip


def estimate(spec: ModelSpec) -> dict[str, Any]:
    """Trainable parameters of a model and of its dense twin, counted on the models themselves."""
    model = build(spec)
    counts = manifest(model)
    dense = count_trainable(build(replace(spec, parametrization="dense")))
    total = count_trainable(model)
    return {
        "network": spec.name,
        "parametrization": spec.parametrization,
        "slice_size": spec.slice_size,
        "code_size": spec.code_size,
        "parameters": {
            "total": total,
            "generator": counts.count("generator"),
            "codes": counts.count("codes"),
            "other": counts.count("norms", "other"),
            "dense": dense,
        },
        "ratio_to_dense": dense / total,
    }
