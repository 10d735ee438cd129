"""Tables and pictures of the federated study, from what was kept of its runs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

TARGETS = (0.6, 0.65, 0.7, 0.75)  # accuracies, of runs on all images
SOME_TARGETS = (0.25, 0.3, 0.35, 0.4)  # of runs on a tenth of them, or three
DENSE = ("dense", "dense32", "dense56")  # what others are compared with


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One run: how images were shared out, its arm and its seed, and its JSON file's content."""

    partition: str
    arm: str
    seed: int
    content: dict[str, Any]

    @property
    def machine(self) -> str:
        """What it was trained on, and in what precision."""
        on = self.content["environment"]
        device = on["machine"]["cpu"] if on["device"] == "cpu" else on["device"]
        return f"{device}, {on['precision']}"

    @property
    def network(self) -> str:
        """Depth, channels of the first stage and, of generated kernels, slice and code."""
        model = self.content["recipe"]["model"]
        name = f"{model['name'].removeprefix('resnet')}-{16 * model['width']:g}"
        if self.kind == "csg":
            name += f" s={model['slice_size']} d={model['code_size']}"
        return name

    @property
    def kind(self) -> str:
        """How kernels are made."""
        return str(self.content["recipe"]["model"]["parametrization"])

    @property
    def clipped(self) -> bool:
        """Whether the gradient of each step was."""
        return self.content["recipe"]["train"].get("clip_norm") is not None

    @property
    def curve(self) -> list[tuple[float, float]]:
        """Payload of all clients in both directions so far, MB, and accuracy, where evaluated."""
        total, found = 0, []
        for row in self.content["rows"]:
            total += row["payload_bytes_up"] + row["payload_bytes_down"]
            if row["test_accuracy"] is not None:
                found.append((total / 1e6, float(row["test_accuracy"])))
        return found

    @property
    def accuracy(self) -> float:
        """At the end."""
        return self.curve[-1][1]

    @property
    def late_loss(self) -> float:
        """Mean training loss of the second half of the rounds, nats; varies less than accuracy."""
        losses = [row["train_loss"] for row in self.content["rows"]]
        return fmean(losses[len(losses) // 2 :])

    @property
    def kilobytes_each(self) -> tuple[float, float]:
        """Mean payload of a client and round after the first, up and down."""
        rows, recipe = self.content["rows"][1:], self.content["recipe"]
        cohort = recipe["train"].get("clients_per_round", recipe["data"]["clients"])
        of_all = cohort * len(rows) * 1e3
        up, down = (sum(row[f"payload_bytes_{way}"] for row in rows) for way in ("up", "down"))
        return up / of_all, down / of_all


def table(results: Sequence[Result], targets: Sequence[float] = TARGETS) -> str:
    """Markdown: loss, accuracy at the end, payload, and MB to targets; ratios to dense float32.

    Points are to a run on the same machine, in the same precision.
    """
    goals = "".join(f" MB to {100 * target:g} % |" for target in targets)
    lines = [
        "| shards | seed | on | arm | training loss | accuracy | of dense | kB up + down "
        f"| times fewer | MB |{goals}",
        "| --- | --: | --- | --- | --: | --: | --: | --: | --: | --: |" + " --: |" * len(targets),
    ]
    for result in results:
        curve, (up, down) = result.curve, result.kilobytes_each
        points, fewer = _to_dense(result, results)
        cells = [result.partition, str(result.seed), result.machine, result.arm]
        cells += [f"{result.late_loss:.3f}", f"{100 * result.accuracy:.2f} %", points]
        cells += [f"{up:.1f} + {down:.1f}", fewer, f"{curve[-1][0]:.2f}"]
        for target in targets:
            reached = next((mb for mb, accuracy in curve if accuracy >= target), None)
            cells.append("–" if reached is None else f"{reached:.2f}")  # noqa: RUF001
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def short_table(results: Sequence[Result]) -> str:
    """Markdown: accuracy at the end and payload, with ratios to dense float32 where it is there."""
    lines = [
        "| arm | accuracy | of dense | payload, kB a client and round | times fewer |",
        "| --- | --: | --: | --: | --: |",
    ]
    for result in results:
        points, fewer = _to_dense(result, results)
        accuracy, payload = f"{100 * result.accuracy:.2f} %", f"{sum(result.kilobytes_each):,.1f}"
        lines.append(f"| {result.arm} | {accuracy} | {points} | {payload} | {fewer} |")
    return "\n".join(lines)


def by_payload(results: Sequence[Result]) -> list[Result]:
    """The same shards together, and in them those with the least payload first."""
    shards = list(dict.fromkeys(result.partition for result in results))
    return sorted(results, key=lambda r: (shards.index(r.partition), sum(r.kilobytes_each)))


def draw(results: Sequence[Result], path: Path) -> None:
    """Accuracy against cumulative payload, one panel for each kind of shards, SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    partitions = list(dict.fromkeys(result.partition for result in results))
    arms = list(dict.fromkeys(result.arm for result in results))
    with mpl.rc_context({"svg.hashsalt": "csg-fl"}):
        figure = Figure(figsize=(1.5 + 4.5 * len(partitions), 5), layout="constrained")
        panels = figure.subplots(1, len(partitions), sharey=True, sharex=True, squeeze=False)[0]
        for axes, partition in zip(panels, partitions, strict=True):
            for result in results:
                if result.partition == partition:
                    number = arms.index(result.arm)
                    style = {"color": f"C{number % 10}", "linestyle": _line(number)}
                    sent, accuracy = zip(*result.curve, strict=True)
                    axes.plot(sent, [100 * at for at in accuracy], label=result.arm, **style)
            axes.set_xscale("log")
            axes.set_title(f"{partition} shards")
            axes.set_xlabel("payload so far, MB, all clients, both directions")
            axes.grid(alpha=0.3)
        panels[0].set_ylabel(f"test accuracy in %\n{results[0].content['data']}")
        lines = {line.get_label(): line for axes in panels for line in axes.get_lines()}
        figure.legend(lines.values(), lines.keys(), loc="outside right upper", fontsize="small")
        figure.savefig(path, metadata={"Date": None})


def draw_frontier(results: Sequence[Result], path: Path) -> None:
    """Accuracy at the end against payload, one panel for each kind of shards, SVG.

    A point is a network; a line joins those of a kind that no other of the kind beats in both.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    partitions = list(dict.fromkeys(result.partition for result in results))
    kinds = {
        ("dense", False): "dense",
        ("dense", True): "dense, clipped",
        ("csg", True): "csg, clipped",
    }
    markers = {"resnet20": "o", "resnet32": "s", "resnet56": "^"}
    with mpl.rc_context({"svg.hashsalt": "csg-fl"}):
        figure = Figure(figsize=(1 + 7 * len(partitions), 5.5), layout="constrained")
        panels = figure.subplots(1, len(partitions), squeeze=False)[0]
        for axes, partition in zip(panels, partitions, strict=True):
            shown = [result for result in results if result.partition == partition]
            for number, (kind, label) in enumerate(kinds.items()):
                own = [result for result in shown if (result.kind, result.clipped) == kind]
                places = {r: (sum(r.kilobytes_each), 100 * r.accuracy) for r in own}
                for result, (payload, accuracy) in places.items():
                    marker = markers[result.content["recipe"]["model"]["name"]]
                    axes.plot(payload, accuracy, marker, color=f"C{number}")
                    axes.annotate(
                        result.network, (payload, accuracy), xytext=(5, -3), fontsize="x-small",
                        textcoords="offset points", color=f"C{number}",
                    )  # fmt: skip
                if own:
                    best = zip(*_best(places.values()), strict=True)
                    axes.plot(*best, color=f"C{number}", label=label)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("{x:g}")
            axes.margins(x=0.15)
            axes.set_title(f"{partition} shards")
            axes.set_xlabel("payload a client and round, both directions, kB")
            axes.set_ylabel(f"test accuracy at the end in %, {shown[0].content['data']}")
            axes.grid(alpha=0.3, which="both")
            axes.legend(title="ResNet-20 round, -32 square, -56 triangle", fontsize="small")
        figure.savefig(path, metadata={"Date": None})


def _best(places: Iterable[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The places which no other beats in both, by payload."""
    highest = float("-inf")
    for payload, accuracy in sorted(places):
        if accuracy > highest:
            highest = accuracy
            yield payload, accuracy


def _line(number: int) -> str:
    return ("-", "--", ":", "-.")[number // 10 % 4]


def _to_dense(result: Result, results: Sequence[Result]) -> tuple[str, str]:
    """Points of accuracy, if it ran on the same machine, and how many times fewer bytes."""
    dense = _dense_twin(result, results)
    if dense is None:
        return "", ""
    fewer = f"{sum(dense.kilobytes_each) / sum(result.kilobytes_each):.1f}"
    if dense.machine != result.machine:
        return "", fewer
    return f"{100 * (result.accuracy - dense.accuracy):+.2f}", fewer


def _dense_twin(result: Result, results: Sequence[Result]) -> Result | None:
    """The dense float32 run of the same depth, on the same shards and seed."""

    def work(of: Result) -> tuple[str, int, str]:
        return of.partition, of.seed, of.content["recipe"]["model"]["name"]

    return next((r for r in results if r.arm in DENSE and work(r) == work(result)), None)
