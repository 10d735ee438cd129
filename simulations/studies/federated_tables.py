"""Tables of the federated study, from what was kept of its runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from statistics import fmean
from typing import Any

from simulations.studies.federated_arms import CODECS, NAMED
from simulations.studies.wire_tables import interface_kilobytes

TARGETS = (0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8)  # accuracies, of runs on all images
CHEAPEST = tuple(percent / 100 for percent in range(20, 90, 5))  # to find the least payload to
SOME_TARGETS = (0.25, 0.3, 0.35, 0.4)  # of runs on a tenth of them, or three
_ROUND = 10  # from which on ratios have no fraction
_NAMES = {"csg": "CSG", "fedpara": "FedPara", "flocora": "FLoCoRA"}  # of kernels, for a reader
_SLICE = 12  # of all networks but those that say otherwise
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
    def codec(self) -> str:
        """Its name in arms, "" of float32."""
        if self.arm in NAMED:
            return NAMED[self.arm][1]
        return max((codec for codec in CODECS if self.arm.endswith(f"-{codec}")), key=len)

    @property
    def described(self) -> tuple[str, str]:
        """Network and training in words."""
        recipe = self.content["recipe"]
        model = recipe["model"]
        kind = _NAMES.get(self.kind, self.kind)
        network = f"{kind} ResNet-{model['name'].removeprefix('resnet')}"
        if model["width"] != 1:
            network += f", {16 * model['width']:g} channels"
        if self.kind == "csg":
            network += f", codes of {model['code_size']}"
            if model["slice_size"] != _SLICE:
                network += f" for slices of {model['slice_size']}"
        rank = model.get("options", {}).get("rank")
        if rank is not None:
            network += f", rank {rank:g}"
        momentum = recipe["server"]["options"].get("server_momentum")
        training = ["clipped"] * self.clipped + ["momentum"] * bool(momentum)
        return network, ", ".join(training) or "FedAvg"

    @property
    def curve(self) -> list[tuple[float, float]]:
        """Payload of all clients in both directions so far, MB, and accuracy, where evaluated."""
        total, found = 0, []
        for row in self.content["rows"]:
            total += row["payload_bytes_up"] + row["payload_bytes_down"]
            if row["test_accuracy"] is not None:
                found.append((total / 1e6, float(row["test_accuracy"])))
        return found

    def megabytes_to(self, accuracy: float) -> float | None:
        """Payload of all clients in both directions until an accuracy was reached, if it was."""
        return next((mb for mb, reached in self.curve if reached >= accuracy), None)

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
        """Mean payload of a client and round after the first, up and down.

        Of results that do not say how many payloads there were, a client that failed sent none.
        """
        rows, recipe = self.content["rows"][1:], self.content["recipe"]
        cohort = recipe["train"].get("clients_per_round", recipe["data"]["clients"])
        updates = sum(row.get("updates", cohort - row["failures"]) for row in rows)
        models = sum(row.get("models", cohort) for row in rows)
        up, down = (sum(row[f"payload_bytes_{way}"] for row in rows) for way in ("up", "down"))
        return up / updates / 1e3, down / models / 1e3

    @property
    def remarks(self) -> tuple[str, ...]:
        """How the run differs from what today's code would make, written into its file by hand."""
        return tuple(self.content.get("remarks", ()))

    @property
    def failures(self) -> int:
        """Clients whose round came to nothing, of all rounds."""
        return sum(row["failures"] for row in self.content["rows"])


def table(results: Sequence[Result], targets: Sequence[float] = TARGETS) -> str:
    """Markdown: loss, accuracy at the end, payload, and MB to targets; ratios to dense float32.

    What is on the wire is what such payloads come to as deployed.

    Points are to a run on the same machine, in the same precision. Remarks of results stand below.
    """
    goals = "".join(f" MB to {100 * target:g} % |" for target in targets)
    lines = [
        "| shards | seed | on | arm | training loss | accuracy | of dense | kB up + down "
        f"| times fewer | kB on the wire | MB |{goals}",
        "| --- | --: | --- | --- |" + " --: |" * (7 + len(targets)),
    ]
    remarks = list(dict.fromkeys(chain.from_iterable(result.remarks for result in results)))
    for result in results:
        up, down = result.kilobytes_each
        points, fewer = _to_dense(result, results)
        failed = f" ({result.failures} failed)" if result.failures else ""
        marks = "".join(f" [{1 + remarks.index(remark)}]" for remark in result.remarks)
        cells = [result.partition, str(result.seed), result.machine, result.arm + marks + failed]
        cells += [f"{result.late_loss:.3f}", f"{100 * result.accuracy:.2f} %", points]
        wire = interface_kilobytes(1e3 * (up + down))
        cells += [f"{up:,.1f} + {down:,.1f}", fewer, wire, f"{result.curve[-1][0]:,.2f}"]
        for target in targets:
            reached = result.megabytes_to(target)
            cells.append("–" if reached is None else f"{reached:,.2f}")  # noqa: RUF001
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"\n[{number}] {remark}." for number, remark in enumerate(remarks, 1)]
    return "\n".join(lines)


def cheapest_table(results: Sequence[Result]) -> str:
    """Markdown: which arm came to an accuracy with the least payload, by shards and seed."""
    lines = ["| shards | seed | accuracy | arm | MB |", "| --- | --: | --- | --- | --: |"]
    for partition, seed in dict.fromkeys((r.partition, r.seed) for r in results):
        of = [r for r in results if (r.partition, r.seed) == (partition, seed)]
        found = [
            (target, *min((mb, r.arm) for r in of if (mb := r.megabytes_to(target)) is not None))
            for target in CHEAPEST
            if target <= max(accuracy for r in of for _, accuracy in r.curve)
        ]
        for arm, alike in groupby(found, key=itemgetter(2)):
            targets, payloads, _ = zip(*alike, strict=True)
            percent = _range(f"{100 * target:.0f}" for target in (targets[0], targets[-1]))
            megabytes = _range(f"{mb:.2f}" for mb in (payloads[0], payloads[-1]))
            lines.append(f"| {partition} | {seed} | {percent} % | {arm} | {megabytes} |")
    return "\n".join(lines)


def _range(ends: Iterable[str]) -> str:
    return " to ".join(dict.fromkeys(ends))


def codec_table() -> str:
    """Markdown: what the names of codecs in arms stand for."""
    lines = ["| name | up | down | what is sent |", "| --- | --- | --- | --- |"]
    for name, values in CODECS.items():
        wire = dict(value.removeprefix("wire.").split("=", 1) for value in values)
        up, down = wire.get("uplink", "fp32"), wire.get("downlink", "fp32")
        sent = "updates; deltas" if "deltas" in wire else "updates; whole models"
        sent += ", both predicted" * ("predict" in wire)
        shown = "the same" if up == down else f"`{down}`"
        lines.append(f"| {f'`{name}`' if name else 'none'} | `{up}` | {shown} | {sent} |")
    return "\n".join(lines)


def short_table(results: Sequence[Result], arms: Mapping[str, Sequence[str]]) -> str:
    """Markdown, of arms by shards: what each is, accuracies of all its seeds, and mean payload.

    Ratios are to dense float32 where it is there, points to a run on the same machine.
    """
    lines = [
        "| shards | network | codec | training | accuracy in %, by seed | of dense "
        "| payload, kB a client and round | times fewer | on the wire |",
        "| --- | --- | --- | --- | --: | --: | --: | --: | --: |",
    ]
    for shards, arm in [(shards, arm) for shards, own in arms.items() for arm in own]:
        seeds = [r for r in results if (r.partition, r.arm) == (shards, arm)]
        if not seeds:
            continue
        payload = fmean(sum(result.kilobytes_each) for result in seeds)
        twins = [twin for result in seeds if (twin := _dense_twin(result, results))]
        fewer = fmean(sum(twin.kilobytes_each) for twin in twins) / payload if twins else None
        points = [_to_dense(result, results)[0] for result in seeds]
        points = [each or "-" for each in points] if any(points) else []
        network, training = seeds[0].described
        codec = f"`{seeds[0].codec}`" if seeds[0].codec else "float32"
        accuracies = ", ".join(f"{100 * result.accuracy:.2f}" for result in seeds)
        cells = [shards, network, codec, training, accuracies]
        cells += [", ".join(points), f"{payload:,.1f}"]
        cells.append("" if fewer is None else f"{fewer:.0f}" if fewer >= _ROUND else f"{fewer:.1f}")
        cells.append(interface_kilobytes(1e3 * payload))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def by_payload(results: Sequence[Result]) -> list[Result]:
    """The same shards together, and in them those with the least payload first."""
    shards = list(dict.fromkeys(result.partition for result in results))
    return sorted(results, key=lambda r: (shards.index(r.partition), sum(r.kilobytes_each)))


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
