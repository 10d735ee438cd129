"""Write one self-contained HTML page of one or more runs."""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from federation.files import check_writable, replace_file
from server.record import RunFolder
from server.rows import Contribution
from simulations import plots
from simulations.curves import RunData, last_accuracy, percent, read_runs, table
from simulations.wire_bytes import wire_rows

HELP = "a page of runs: curves, bytes, clients, configuration"
EXAMPLE = "csg report runs/demo-20261124-120000   (or several runs, and --out page.html)"

_TEMPLATE = Path(__file__).parent / "report.html.jinja"
_SHOWN = 100  # clients and failures of a run

Measured = Literal["loss_before", "loss_after", "seconds"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN",
                        help="folders of runs, or folders that hold such")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE",
                        help="none: report.html in the folder of the one run")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="machine-readable answer")


def run(options: argparse.Namespace) -> None:
    runs = read_runs(options.runs)
    if options.out is None and len(runs) > 1:
        raise ValueError("a page of several runs is none's own; name it, as --out page.html")
    out = options.out or runs[0].folder.path / "report.html"
    write_report([run.folder for run in runs], out)
    print(json.dumps({"report": str(out)}) if options.json else f"written: {out}")


def write_report(folders: list[RunFolder], out: Path) -> None:
    """Write the page of these runs, whole or not at all.

    Raises:
        RunFolderError: if one of them cannot be used.
        ValueError: if jinja2 or matplotlib is not installed.
    """
    runs = read_runs([folder.path for folder in folders])
    check_writable(out)
    replace_file(out, page(runs).encode())


def page(runs: list[RunData]) -> str:
    """The HTML of these runs."""
    try:
        import jinja2

        pictures = [{"title": title, "svg": plots.svg(draw)} for title, draw in _pictures(runs)]
    except ModuleNotFoundError as error:
        raise ValueError(f"a report needs {error.name}; install the extra csg-fl[plots]") from error
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    template = environment.from_string(_TEMPLATE.read_text("utf-8"))
    title = f"csg-fl: {runs[0].name}" if len(runs) == 1 else f"csg-fl: {len(runs)} runs"
    return template.render(
        title=title,
        rows=table(runs, []),
        against_dense=[line for line in map(_against_dense, runs) if line],
        pictures=pictures,
        wire=[row for run in runs for row in wire_rows(run)][:_SHOWN],
        runs=[_details(run) for run in runs],
        percent=percent,
        last_accuracy=last_accuracy,
    )


def _pictures(runs: list[RunData]) -> list[tuple[str, plots.Draw]]:
    found = [
        ("Accuracy by round", plots.accuracy_by_round(runs)),
        ("Accuracy by payload", plots.accuracy_by_megabytes(runs)),
        ("Loss", plots.losses(runs)),
        ("Payload of a round", plots.payload_by_round(runs)),
    ]
    for run in runs:
        counts = run.environment.get("spread")
        if counts:
            shared = "as the recipe shares them out, " if run.recipe.run.superlink else ""
            title = f"Images by client and class, {shared}{run.name}"
            found.append((title, plots.spread(counts)))
    return found


def _details(run: RunData) -> dict[str, Any]:
    clients = _clients(run)
    failures = [(row.round, who, why) for row in run.rows for who, why in row.failed.items()]
    environment = {key: value for key, value in run.environment.items() if key != "spread"}
    return {
        "name": run.name,
        "clients": clients[:_SHOWN],
        "hidden": max(0, len(clients) - _SHOWN),
        "failures": failures[-_SHOWN:],
        "config": run.recipe.to_toml(),
        "environment": json.dumps(environment, indent=1),
    }


def _clients(run: RunData) -> list[dict[str, Any]]:
    found: dict[int, list[Contribution]] = defaultdict(list)
    for row in run.rows:
        for report in row.contributions:
            found[report["partition"]].append(report)
    total = sum(report["examples"] for reports in found.values() for report in reports) or 1

    def mean(reports: list[Contribution], key: Measured) -> float:
        return fmean(report[key] for report in reports)

    return [
        {
            "partition": partition,
            "rounds": len(reports),
            "examples": reports[-1]["examples"],
            "share": sum(report["examples"] for report in reports) / total,
            "before": mean(reports, "loss_before"),
            "after": mean(reports, "loss_after"),
            "seconds": mean(reports, "seconds"),
        }
        for partition, reports in sorted(found.items())
    ]


def _against_dense(run: RunData) -> str:
    ratio, twin = (run.summary.get(f) for f in ("ratio_to_dense", "dense_twin_payload_bytes"))
    if run.recipe.model.parametrization == "dense":
        return ""
    if not isinstance(ratio, int | float) or not isinstance(twin, int | float):
        return ""
    return f"{run.name}: the dense twin would exchange {twin / 1e6:.2f} MB, {ratio:.2f} times it."
