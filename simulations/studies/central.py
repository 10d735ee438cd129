"""ResNet-20 trained centrally for the same few epochs: dense, narrow dense, and generated.

Steps are in bf16, but for arms named so, which show what float32 comes to.

Every run writes one JSON file and is not repeated if its file is there; the table and the picture
are made from the files. Example:

    python -m simulations.studies.central --data cifar10/ --copy "JPEG copy" --seeds 3
"""

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from csg_core import ModelSpec, build, count_trainable
from csg_core.evaluation import Precision
from simulations import command, plots
from simulations.central import Settings, train_centrally
from simulations.command import StudyError, positive
from simulations.machine import machine
from simulations.pages import keep_json
from simulations.train import load_data

RESULTS = Path(__file__).parent / "central"


@dataclass(frozen=True, slots=True)
class Arm:
    """A network, and the precision that its steps are in."""

    spec: ModelSpec
    precision: Precision = "bf16"


# Arms by name. 11 base channels make the dense network with about as many parameters as CSG.
ARMS = {
    "dense": Arm(ModelSpec(parametrization="dense")),
    "csg-fan_in": Arm(ModelSpec(start="fan_in")),
    "csg-fan_in-fp32": Arm(ModelSpec(start="fan_in"), precision="fp32"),
    "csg-paper": Arm(ModelSpec(start="paper")),
    "dense-narrow": Arm(ModelSpec(parametrization="dense", width=11 / 16)),
}


def main() -> None:
    options = _options()
    if options.data is not None:
        _refuse_others(options.epochs)
        train, test = load_data(options.data)
        for seed in range(options.seeds):
            for arm in options.arms:
                path = RESULTS / f"{arm}-seed{seed}.json"
                if path.exists():
                    continue
                settings = _settings(arm, seed, options.epochs)
                model = build(ARMS[arm].spec, seed=seed)
                epochs = []
                for epoch in train_centrally(model, train, test, settings):
                    epochs.append(asdict(epoch))
                    accuracy = 100 * epoch.test_accuracy
                    print(f"{arm} seed {seed} epoch {epoch.epoch}: {accuracy:.2f} %", flush=True)
                result = {
                    "arm": arm,
                    "seed": seed,
                    "parameters": count_trainable(model),
                    "data": options.copy,
                    "machine": machine(),
                    "settings": asdict(settings),
                    "epochs": epochs,
                }
                keep_json(path, result)
    results = list(_kept().values())
    if not results:
        raise StudyError("no results yet; name the images with --data")
    _refuse_others(results[0]["settings"]["epochs"])
    print(table(results))
    draw(results, RESULTS / "accuracy.svg")


def _settings(arm: str, seed: int, epochs: int) -> Settings:
    return Settings(epochs=epochs, precision=ARMS[arm].precision, seed=seed)


def _kept() -> dict[Path, dict[str, Any]]:
    results = {path: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    return {path: result for path, result in results.items() if result["arm"] in ARMS}


def _refuse_others(epochs: int) -> None:
    """Refuse what was kept of other settings: it goes into no table with runs of these."""
    for path, result in _kept().items():
        if result["settings"] != asdict(_settings(result["arm"], result["seed"], epochs)):
            raise StudyError(f"{path} is of other settings than --epochs {epochs}; remove it")


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: accuracy in percent by epoch, mean over seeds, and the deviation at the end."""
    count = len(results[0]["epochs"])
    shown = sorted({e for e in (1, 2, 4, count) if e <= count})
    lines = [
        "| arm | parameters | seeds | " + " | ".join(f"epoch {e}" for e in shown) + " |",
        "| --- | --: | --: |" + " --: |" * len(shown),
    ]
    for arm in ARMS:
        runs = [r for r in results if r["arm"] == arm]
        if not runs:
            continue
        cells = []
        for epoch in shown:
            values = [100 * r["epochs"][epoch - 1]["test_accuracy"] for r in runs]
            deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{deviation}")
        lines.append(
            f"| {arm} | {runs[0]['parameters']:,} | {len(runs)} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against epoch: the mean of the seeds as a line, their range as a band."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for arm in ARMS:
        runs = [r for r in results if r["arm"] == arm]
        if not runs:
            continue
        curves = [[100 * e["test_accuracy"] for e in r["epochs"]] for r in runs]
        by_epoch = list(zip(*curves, strict=True))
        epochs = range(1, len(by_epoch) + 1)
        label = f"{arm} ({runs[0]['parameters']:,})"
        (line,) = axes.plot(epochs, [statistics.mean(v) for v in by_epoch], label=label)
        low, high = [min(v) for v in by_epoch], [max(v) for v in by_epoch]
        axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"test accuracy in %, {results[0]['data']}")
    axes.set_title("ResNet-20 trained centrally: mean and range of the seeds")
    axes.grid(alpha=0.3)
    axes.legend(title="arm (parameters)")
    plots.write(figure, path)


def _options() -> argparse.Namespace:
    parser = command.parser("simulations.studies.central", __doc__)
    parser.add_argument("--data", metavar="DIR", help="CIFAR-10; none: only the table")
    parser.add_argument("--copy", default="CIFAR-10", help="which copy of the data this is")
    parser.add_argument("--epochs", type=positive, default=8)
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    return parser.parse_args()


if __name__ == "__main__":
    command.run(main)
