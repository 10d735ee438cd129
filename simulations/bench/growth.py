"""What grows with what: seconds of a round and memory, by registered clients, cohort and network.

One run of three rounds each, on the local engine. Seconds are of the second, since the first warms
up and the last evaluates. A client's seconds are of its training with what it decodes
and encodes; the server's are the rest of a round.
"""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from simulations import plots
from simulations.bench.part import RESULTS
from simulations.bench.runs import measured_run

NEEDS_IMAGES = True
_RUN = ("train.rounds=3", "run.eval_every=1000", "run.device=cpu")
_TINY = ("model.width=0.25", "model.slice_size=4", "model.code_size=12")

Row = dict[str, float]


def _clients(registered: int, cohort: int, images: int, *more: str) -> tuple[str, ...]:
    """``images`` is how many each client has."""
    return (f"data.clients={registered}", f"train.clients_per_round={cohort}",
            f"data.images={registered * images}", *more)  # fmt: skip


# Arms by series and by size, in each of which all clients have the same number of images.
SERIES: dict[str, dict[int, tuple[str, ...]]] = {
    "registered clients, cohort of 10": {
        n: _clients(n, 10, 5, *_TINY) for n in (10, 100, 1_000, 10_000)
    },
    "cohort, of 1,000 clients": {n: _clients(1_000, n, 5, *_TINY) for n in (10, 100, 1_000)},
    "depth of the ResNet, cohort of 10": {
        n: _clients(1_000, 10, 50, f"model.name=resnet{n}") for n in (20, 56, 110)
    },
}


def measure(images: str | None) -> dict[str, dict[str, Row]]:
    """A row for every size of every series."""
    return {
        series: {str(size): run((*more, f"data.dir={images}")) for size, more in arms.items()}
        for series, arms in SERIES.items()
    }


def run(settings: Sequence[str]) -> Row:
    """Seconds of a round, of them its clients', images trained on, and peak megabytes of a run."""
    run = measured_run("cifar10-resnet20", (*settings, *_RUN))
    rows = run.rows[1:-1]
    return {
        "seconds": statistics.median(run.seconds[1:-1]),
        "clients": statistics.median(sum(p["seconds"] for p in r.contributions) for r in rows),
        "images": statistics.median(sum(p["examples"] for p in r.contributions) for r in rows),
        "peak_mb": run.peak_mb,
    }


def tables(found: Mapping[str, Mapping[str, Row]]) -> dict[str, str]:
    """Markdown, every series; and the picture is drawn."""
    draw(found, RESULTS / "growth.svg")
    lines = ["| what grows | to | images | s a round | clients, s | server, ms | peak MB |",
             "| --- | --: | --: | --: | --: | --: | --: |"]  # fmt: skip
    for series, sizes in found.items():
        for size, row in sizes.items():
            server = 1e3 * (row["seconds"] - row["clients"])
            lines.append(f"| {series} | {int(size):,} | {row['images']:,.0f} "
                         f"| {row['seconds']:.2f} | {row['clients']:.2f} | {server:.1f} "
                         f"| {row['peak_mb']:.0f} |")  # fmt: skip
    return {"growth": "\n".join(lines)}


def draw(found: Mapping[str, Mapping[str, Row]], path: Path) -> None:
    """Seconds and memory against what grows, each as a ratio to its smallest size, SVG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (series, sizes) in zip(panels, found.items(), strict=True):
        numbers, rows = [int(size) for size in sizes], list(sizes.values())
        lines = {
            "seconds of a round": [row["seconds"] for row in rows],
            "of them, the server": [row["seconds"] - row["clients"] for row in rows],
            "peak memory": [row["peak_mb"] for row in rows],
        }
        for label, values in lines.items():
            ratios = [value / values[0] for value in values]
            axes.plot(numbers, ratios, marker="o", label=label)
        axes.set(xscale="log", yscale="log", xlabel=series, xticks=numbers)
        axes.set_xticklabels([f"{number:,}" for number in numbers])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("of the smallest")
    panels[0].legend()
    plots.write(figure, path)
