"""Compare runs: accuracy, and rounds and megabytes to given accuracies."""

import argparse
import json
from pathlib import Path
from typing import Any

from simulations import plots
from simulations.curves import last_accuracy, percent, read_runs, table

HELP = "a table and a picture of several runs"
EXAMPLE = "csg compare runs/demo-* --to 0.9 0.95 --picture compare.svg"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN",
                        help="folders of runs, or folders that hold such")  # fmt: skip
    parser.add_argument("--to", type=_accuracy, nargs="+", default=[0.6, 0.7, 0.75],
                        metavar="ACCURACY",
                        help="accuracies to reach, as fractions of 1")  # fmt: skip
    parser.add_argument("--picture", type=Path, default=Path("compare.svg"), metavar="FILE",
                        help="picture to write, .svg, .png or .pdf")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="machine-readable answer")


def run(options: argparse.Namespace) -> None:
    targets = sorted(set(options.to))
    runs = read_runs(options.runs)
    rows = table(runs, targets)
    if not options.json:
        print(markdown(rows, targets))
    picture = None
    try:
        plots.save(plots.accuracy_by_megabytes(runs), options.picture)
        picture = str(options.picture)
    finally:
        if options.json:
            print(json.dumps({"runs": rows, "picture": picture}))
    if not options.json:
        print(f"picture: {picture}")


def _accuracy(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number; give the runs first, then --to 0.6 0.7"
        ) from None
    if not 0 < found <= 1:
        raise argparse.ArgumentTypeError(f"{text}: give fractions of 1, as 0.75")
    return found


def markdown(rows: list[dict[str, Any]], targets: list[float]) -> str:
    """The table; MB are payload, both directions, all clients."""
    goals = "".join(f" to {100 * target:g} % |" for target in targets)
    lines = [
        f"| run | rounds | accuracy | best | MB |{goals} seconds | outcome |",
        "| --- | --: | --: | --: | --: |" + " --: |" * len(targets) + " --: | --- |",
    ]
    for row in rows:
        cells = [row["run"], str(row["rounds"]), last_accuracy(row)]
        cells += [percent(row["best_accuracy"]), _megabytes(row["megabytes"])]
        for reached in row["reached"]:
            there = reached["rounds"] is not None
            cells.append(f"{_megabytes(reached['megabytes'])} MB, round {reached['rounds']}"
                         if there else "not reached")  # fmt: skip
        cells += [f"{row['seconds']:.0f}", _outcome(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _outcome(row: dict[str, Any]) -> str:
    """How it ended, in a few words, and the clients that failed."""
    outcome = str(row["outcome"]).partition(":")[0]
    return f"{outcome}, {row['failures']} failed" if row["failures"] else outcome


def _megabytes(count: float) -> str:
    return f"{count:.1f}" if count >= 1 else f"{count:.3f}"
