"""ResNet-20 over ten clients, 20 rounds: generated, dense, and narrow dense of about equal bytes.

Each in float32, and with both directions entropy-coded, the downlink as deltas.

Every run is a ``csg run``; what is kept of it is one JSON file, and a run whose file is there is
not repeated. The table and the picture are made from the files. Example:

    python -m simulations.studies.federated --data cifar10/ --copy "JPEG copy of CIFAR-10"
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from server.checkpoints import replace_file
from simulations.cli import main as csg
from simulations.curves import RunData, read_run

RESULTS = Path(__file__).parent / "federated"
TARGETS = (0.6, 0.7, 0.75)
PARTITIONS = ("iid", "dirichlet")

_LINE = "ecsq:step=1.5; statistics=ecsq:step=0.5"
_ECSQ = ("--set", f"wire.uplink={_LINE}", "--set", f"wire.downlink={_LINE}",
         "--set", "wire.deltas=true")  # fmt: skip
# Arms by name: recipe and settings. 11 base channels make the dense network of about equal bytes.
_PLAIN: dict[str, tuple[str, ...]] = {
    "dense": ("cifar10-resnet20-dense",),
    "csg": ("cifar10-resnet20",),
    "dense-narrow": ("cifar10-resnet20-dense", "--set", "model.width=0.6875"),
}
ARMS = {**_PLAIN, **{f"{name}-ecsq": (*arm, *_ECSQ) for name, arm in _PLAIN.items()}}


def main() -> None:
    options = _options()
    if options.data is not None:
        for partition in options.partitions:
            for arm in options.arms:
                _run(arm, partition, options)
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    if not results:
        sys.exit("federated: no results yet; name the images with --data")
    print(table(results))
    draw(results, RESULTS / "accuracy.svg")


def _run(arm: str, partition: str, options: argparse.Namespace) -> None:
    path = RESULTS / f"{arm}-{partition}-seed{options.seed}.json"
    if path.exists():
        return
    folder = options.runs / path.stem
    settings = {
        "data.dir": options.data,
        "data.partition": partition,
        "run.seed": options.seed,
        "run.dir": folder,
    }
    pairs = (part for key, value in settings.items() for part in ("--set", f"{key}={value}"))
    command = ["resume", str(folder)] if folder.exists() else ["run", *ARMS[arm], *pairs]
    if csg(command):
        sys.exit(f"federated: {path.stem} did not end well; see {folder}")
    keep(read_run(folder), path, options.copy)


def keep(run: RunData, path: Path, copy: str) -> None:
    """Write what is kept of a run: curves, settings and machine, no clients and no folders."""
    columns = ("round", "train_loss", "test_loss", "test_accuracy", "seconds", "failures")
    payload = ("payload_bytes_up", "payload_bytes_down")
    rows = [{key: asdict(row)[key] for key in columns + payload} for row in run.rows]
    environment = {key: value for key, value in run.environment.items() if key != "spread"}
    recipe = run.recipe.model_dump(exclude={"data": {"dir"}, "run": {"dir"}}, exclude_none=True)
    content = {"data": copy, "environment": environment, "recipe": recipe, "rows": rows}
    path.parent.mkdir(exist_ok=True)
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode())


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: accuracy at the end, payload of all clients in both directions, MB to targets."""
    goals = "".join(f" MB to {100 * target:g} % |" for target in TARGETS)
    lines = [
        f"| shards | arm | accuracy | best | MB |{goals} seconds |",
        "| --- | --- | --: | --: | --: |" + " --: |" * len(TARGETS) + " --: |",
    ]
    for partition, arm, result in _ordered(results):
        rows, sent = result["rows"], _megabytes(result)
        best = max(row["test_accuracy"] for row in rows)
        cells = [partition, arm, f"{100 * rows[-1]['test_accuracy']:.2f} %", f"{100 * best:.2f} %"]
        cells.append(f"{sent[-1]:.2f}")
        for target in TARGETS:
            there = (mb for row, mb in zip(rows, sent, strict=True) if _at(row) >= target)
            reached = next(there, None)
            cells.append("not reached" if reached is None else f"{reached:.2f}")
        cells.append(f"{sum(row['seconds'] for row in rows):.0f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against cumulative payload, one panel for each kind of shards."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "csg-fl"}):
        figure = Figure(figsize=(9, 3.8), layout="constrained")
        panels = figure.subplots(1, len(PARTITIONS), sharey=True, sharex=True)
        for axes, partition in zip(panels, PARTITIONS, strict=True):
            for number, arm in enumerate(ARMS):
                for found, name, result in _ordered(results):
                    if (found, name) == (partition, arm):
                        accuracy = [100 * _at(row) for row in result["rows"]]
                        axes.plot(_megabytes(result), accuracy, label=arm, color=f"C{number}")
            axes.set_xscale("log")
            axes.set_title(f"{partition} shards")
            axes.set_xlabel("payload so far, MB, ten clients, both directions")
            axes.grid(alpha=0.3)
        panels[0].set_ylabel(f"test accuracy in %\n{results[0]['data']}")
        panels[0].legend()
        figure.savefig(path, metadata={"Date": None})


def _ordered(results: list[dict[str, Any]]) -> list[tuple[str, str, dict[str, Any]]]:
    named = [(result["recipe"]["data"]["partition"], _arm(result), result) for result in results]
    arms = list(ARMS)
    return sorted(named, key=lambda item: (PARTITIONS.index(item[0]), arms.index(item[1])))


def _arm(result: dict[str, Any]) -> str:
    model, codec = result["recipe"]["model"], result["recipe"]["wire"]["uplink"].split(":")[0]
    narrow = "" if model["width"] == 1.0 else "-narrow"
    return f"{model['parametrization']}{narrow}" + ("" if codec == "fp32" else f"-{codec}")


def _megabytes(result: dict[str, Any]) -> list[float]:
    total, found = 0, []
    for row in result["rows"]:
        total += row["payload_bytes_up"] + row["payload_bytes_down"]
        found.append(total / 1e6)
    return found


def _at(row: dict[str, Any]) -> float:
    return float(row["test_accuracy"] or 0.0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.studies.federated",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", metavar="DIR", help="CIFAR-10; none: only table and picture")
    parser.add_argument("--copy", default="CIFAR-10", help="which copy of the data this is")
    parser.add_argument("--runs", type=Path, default=Path("runs/federated"), metavar="DIR",
                        help="where the runs' folders go")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--partitions", nargs="+", choices=PARTITIONS, default=list(PARTITIONS))
    return parser.parse_args()


if __name__ == "__main__":
    main()
