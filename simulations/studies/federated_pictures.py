"""Pictures of the federated study, SVG, from what was kept of its runs."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simulations import plots
from simulations.studies.federated_tables import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_KINDS = {
    ("dense", False): "dense",
    ("dense", True): "dense, clipped",
    ("csg", True): "CSG, clipped",
}
_MARKERS = {"resnet20": "o", "resnet32": "s", "resnet56": "^"}


def draw(results: Sequence[Result], path: Path, *, in_words: bool = False) -> None:
    """Accuracy against cumulative payload, one panel for each kind of shards and seed.

    A colour is a network, by its arm's name or ``in_words``; its codec stands at the end of a line.
    """
    names = {
        r: "; ".join(r.described) if in_words else r.arm.removesuffix(f"-{r.codec}")
        for r in results
    }
    networks = list(dict.fromkeys(names.values()))
    lines: dict[str, Line2D] = {}
    figure, panels = _panels(_by(lambda of: (of.partition, of.seed), results), width=6, height=5)
    for axes, shown in panels:
        axes.set_title(f"{shown[0].partition}, seed {shown[0].seed}")
        for result in shown:
            network = names[result]
            number = networks.index(network)
            color, dashes = f"C{number % 10}", ("-", "--", ":", "-.")[number // 10 % 4]
            sent, accuracy = zip(*result.curve, strict=True)
            percent = [100 * at for at in accuracy]
            (lines[network],) = axes.plot(sent, percent, dashes, color=color, linewidth=1)
            axes.annotate(
                result.codec or "float32", (sent[-1], percent[-1]), xytext=(2, 0), va="center",
                textcoords="offset points", fontsize=5, color=color,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("payload so far, MB, all clients, both directions")
        axes.set_ylabel(f"test accuracy in %, {shown[0].content['data']}")
        axes.grid(alpha=0.3)
    figure.legend(lines.values(), lines.keys(), loc="outside right upper", fontsize="small")
    plots.write(figure, path)


def draw_frontier(results: Sequence[Result], path: Path) -> None:
    """Accuracy at the end against payload, one panel for each kind of shards and codec.

    A point is a network; a line joins those of a kind that no other of the kind beats in both.
    """
    apart = _by(lambda of: (of.partition, of.codec), results)
    figure, panels = _panels(apart, width=7, height=5.5)
    for axes, shown in panels:
        axes.set_title(f"{shown[0].partition}, {shown[0].codec}")
        for number, (kind, label) in enumerate(_KINDS.items()):
            own = [result for result in shown if (result.kind, result.clipped) == kind]
            if own:
                _draw_kind(axes, own, f"C{number}", label)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.margins(x=0.15)
        axes.set_xlabel("payload a client and round, both directions, kB")
        axes.set_ylabel(f"test accuracy at the end in %, {shown[0].content['data']}")
        axes.grid(alpha=0.3, which="both")
        axes.legend(title="ResNet-20 round, -32 square, -56 triangle", fontsize="small")
    plots.write(figure, path)


def _by(key: Callable[[Result], Hashable], results: Sequence[Result]) -> list[list[Result]]:
    """The results that have the same key together, in the order in which keys come first."""
    groups: dict[Hashable, list[Result]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return list(groups.values())


def _panels(
    groups: Sequence[list[Result]], width: float, height: float
) -> tuple["Figure", list[tuple["Axes", list[Result]]]]:
    """A panel for each group with what is drawn there, in a square; sizes in inches."""
    from matplotlib.figure import Figure

    columns = math.ceil(math.sqrt(len(groups)))
    rows = -(-len(groups) // columns)
    figure = Figure(figsize=(1 + width * columns, height * rows), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    return figure, list(zip(panels, groups, strict=False))


def _draw_kind(axes: "Axes", results: Sequence[Result], color: str, label: str) -> None:
    places = {result: (sum(result.kilobytes_each), 100 * result.accuracy) for result in results}
    for result, place in places.items():
        marker = _MARKERS[result.content["recipe"]["model"]["name"]]
        axes.plot(place[0], place[1], marker, color=color)
        axes.annotate(
            result.network, place, xytext=(5, -3), fontsize="x-small", color=color,
            textcoords="offset points",
        )  # fmt: skip
    payloads, accuracies = zip(*best(places.values()), strict=True)
    axes.plot(payloads, accuracies, color=color, label=label)


def best(places: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The places, (payload, accuracy), which no other beats in both, by payload."""
    highest = float("-inf")
    for payload, accuracy in sorted(places):
        if accuracy > highest:
            highest = accuracy
            yield payload, accuracy
