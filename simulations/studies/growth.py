"""What grows with what: seconds of a round and memory, by registered clients, cohort and network.

One run of three rounds each, on the local engine; seconds are the median of the last two, and
``else`` is what is not training. Example:

    python -m simulations.studies.growth --data cifar10/
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from server.checkpoints import replace_file
from server.record import RunFolder
from simulations.machine import machine
from simulations.studies.measured import measured

RESULTS = Path(__file__).parent / "growth.json"
_TINY = ("model.width=0.25", "model.slice_size=4", "model.code_size=12")


def _clients(registered: int, cohort: int, *more: str) -> tuple[str, ...]:
    return (f"data.clients={registered}", f"train.clients_per_round={cohort}", *more)


# Arms by series and by size. Registered clients share 50,000 images; 1,000 clients have 50 each.
SERIES: dict[str, dict[int, tuple[str, ...]]] = {
    "registered clients, cohort 10": {n: _clients(n, 10, *_TINY) for n in (100, 1_000, 10_000)},
    "cohort, of 1,000 clients": {n: _clients(1_000, n, *_TINY) for n in (10, 100, 1_000)},
    "depth of the ResNet, cohort 10 of 1,000": {
        n: _clients(1_000, 10, f"model.name=resnet{n}") for n in (20, 56, 110)
    },
}


def measure(settings: Sequence[str]) -> dict[str, float]:
    """Seconds of a round, of them training, and peak megabytes of a run."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        values = [*settings, "train.rounds=3", f"run.dir={folder}"]
        pairs = [part for value in values for part in ("--set", value)]
        done = measured(["-m", "simulations.cli", "run", "cifar10-resnet20", *pairs])
        if done.status:
            sys.exit(f"growth: {' '.join(settings)} failed")
        rows = RunFolder(folder).rows()[1:]
    training = [sum(part["seconds"] for part in row.contributions) for row in rows]
    rounds = [row.seconds for row in rows]
    return {
        "seconds": statistics.median(rounds),
        "training": statistics.median(training),
        "peak_mb": done.peak_bytes / 1e6,
    }


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown: every series."""
    lines = ["| what grows | to | s a round | training | else | peak MB |",
             "| --- | --: | --: | --: | --: | --: |"]  # fmt: skip
    for series, sizes in found.items():
        for size, row in sizes.items():
            other = row["seconds"] - row["training"]
            seconds = " | ".join(f"{n:.2f}" for n in (row["seconds"], row["training"], other))
            lines.append(f"| {series} | {int(size):,} | {seconds} | {row['peak_mb']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    options = _options()
    if options.data is not None:
        found: dict[str, Any] = {}
        for series, arms in SERIES.items():
            for size, settings in arms.items():
                row = measure((*settings, f"data.dir={options.data}"))
                found.setdefault(series, {})[str(size)] = row
                print(f"{series}, {size:,}: {row}", file=sys.stderr)
        content = {"machine": machine(), "data": options.copy, "series": found}
        replace_file(RESULTS, (json.dumps(content, indent=1) + "\n").encode())
    if not RESULTS.exists():
        sys.exit("growth: no results yet; name the images with --data")
    print(table(json.loads(RESULTS.read_text())["series"]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.studies.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", metavar="DIR", help="CIFAR-10; none: only the table")
    parser.add_argument("--copy", default="CIFAR-10", help="which copy of the data this is")
    return parser.parse_args()


if __name__ == "__main__":
    main()
