"""Compare runs: accuracy, and rounds and megabytes to given accuracies."""

import argparse
import json
from pathlib import Path
from typing import Any

from simulations import plots
from simulations.curves import RunData, read_run, table

HELP = "a table and a picture of several runs"
EXAMPLE = "csg compare runs/demo-* --to 0.9 0.95 --picture compare.svg"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs")
    parser.add_argument("--to", type=float, nargs="+", default=[0.6, 0.7, 0.75], metavar="ACCURACY",
                        help="accuracies to reach, as fractions of 1")  # fmt: skip
    parser.add_argument("--picture", type=Path, default=Path("compare.svg"), metavar="FILE",
                        help="picture to write, .svg, .png or .pdf")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="machine-readable answer")


def run(options: argparse.Namespace) -> None:
    for target in options.to:
        if not 0 < target <= 1:
            raise ValueError(f"--to {target:g}: give fractions of 1, as 0.75")
    runs = [read_run(path) for path in options.runs]
    rows = table(runs, options.to)
    picture = _draw(runs, options.picture)
    if options.json:
        print(json.dumps({"runs": rows, "picture": picture}))
        return
    print(markdown(rows, options.to))
    print(f"picture: {picture}")


def markdown(rows: list[dict[str, Any]], targets: list[float]) -> str:
    """The table; MB are payload, both directions, all clients."""
    goals = "".join(f" to {100 * target:g} % |" for target in targets)
    lines = [
        f"| run | rounds | accuracy | best | MB |{goals} seconds |",
        "| --- | --: | --: | --: | --: |" + " --: |" * len(targets) + " --: |",
    ]
    for row in rows:
        cells = [row["run"], str(row["rounds"]), _percent(row["accuracy"])]
        cells += [_percent(row["best_accuracy"]), f"{row['megabytes']:.1f}"]
        for reached in row["reached"].values():
            there = reached and f"{reached['megabytes']:.1f} MB, round {reached['rounds']}"
            cells.append(there or "not reached")
        lines.append("| " + " | ".join([*cells, f"{row['seconds']:.0f}"]) + " |")
    return "\n".join(lines)


def _draw(runs: list[RunData], path: Path) -> str:
    try:
        plots.save(plots.accuracy_by_megabytes(runs), path)
    except ModuleNotFoundError as error:
        raise ValueError(f"a picture needs {error.name}; install csg-fl[plots]") from error
    return str(path)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f} %"
