"""Runs as numbers to show: what the table and the pictures of report and compare are made of."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from federation.recipe import Recipe
from server.record import RunFolder, RunFolderError
from server.rows import RoundRow

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunData:
    """A run as its files tell it."""

    name: str
    folder: RunFolder
    recipe: Recipe
    environment: dict[str, Any]
    summary: dict[str, Any]
    rows: list[RoundRow]

    @property
    def evaluated(self) -> list[RoundRow]:
        """The rounds with an accuracy."""
        return [row for row in self.rows if row.test_accuracy is not None]

    @property
    def accuracies(self) -> list[float]:
        """Test accuracies in percent, of evaluated rounds."""
        return [100 * (row.test_accuracy or 0.0) for row in self.evaluated]

    def megabytes_until(self, round_: int) -> float:
        """Payload of both directions and all clients up to and with a round, MB."""
        rows = [row for row in self.rows if row.round <= round_]
        return sum(row.payload_bytes_up + row.payload_bytes_down for row in rows) / 1e6

    def reaching(self, accuracy: float) -> RoundRow | None:
        """The first round of at least this accuracy, a fraction."""
        return next((r for r in self.evaluated if (r.test_accuracy or 0.0) >= accuracy), None)


def read_runs(paths: Sequence[Path]) -> list[RunData]:
    """The runs in folders, and in the folders of a folder that is none itself.

    Of several, those without a complete round are left out, with a warning in the log.

    Runs of one name are told apart by the folders above them.

    Raises:
        RunFolderError: as ``read_run`` does.
    """
    once: dict[Path, Path] = {}
    for path in [path for given in paths for path in _runs_below(given)]:
        once.setdefault(path.resolve(), path)
    found = list(once.values())
    begun = [p for p in found if not (p / "config.toml").exists() or RunFolder(p).rows()]
    if begun and len(found) > 1:
        for path in found:
            if path not in begun:
                _log.warning("%s: has no complete round yet, and is left out", path)
        found = begun
    runs = [read_run(path) for path in found]
    places = [run.folder.path.resolve().parts for run in runs]
    for shown in range(2, max(map(len, places)) + 1):
        counts = Counter(run.name for run in runs)
        runs = [
            replace(run, name="/".join(parts[-shown:])) if counts[run.name] > 1 else run
            for run, parts in zip(runs, places, strict=True)
        ]
    return runs


def _runs_below(path: Path) -> list[Path]:
    if (path / "config.toml").exists():
        return [path]
    return sorted(found.parent for found in path.glob("*/config.toml")) or [path]


def read_run(path: Path) -> RunData:
    """The run in a folder.

    Raises:
        RunFolderError: if there is none, it is damaged, or it has no complete round.
    """
    folder = RunFolder(path)
    recipe, rows = folder.recipe(), folder.rows()
    if not rows:
        raise RunFolderError(f"{path}: has no complete round yet; csg resume {path} goes on")
    return RunData(
        path.resolve().name, folder, recipe, folder.environment(), folder.summary(), rows
    )


def percent(fraction: float | None) -> str:
    """A fraction for a reader."""
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def last_accuracy(row: dict[str, Any]) -> str:
    """Of a row of ``table``, with its round where that is not the last one."""
    earlier = row["accuracy_round"] not in (None, row["rounds"])
    return percent(row["accuracy"]) + (f" (round {row['accuracy_round']})" if earlier else "")


def table(runs: list[RunData], targets: list[float]) -> list[dict[str, Any]]:
    """A row for each run; bytes are payload, both directions, all clients."""
    found = []
    for run in runs:
        last = run.evaluated[-1] if run.evaluated else None
        best = max((row.test_accuracy or 0.0 for row in run.evaluated), default=None)
        reached = []
        for target in targets:
            row = run.reaching(target)
            rounds = row and row.round
            megabytes = row and run.megabytes_until(row.round)
            reached.append({"accuracy": target, "rounds": rounds, "megabytes": megabytes})
        found.append(
            {
                "run": run.name,
                "rounds": run.rows[-1].round,
                "accuracy": last.test_accuracy if last else None,
                "accuracy_round": last.round if last else None,
                "best_accuracy": best,
                "megabytes": run.megabytes_until(run.rows[-1].round),
                "reached": reached,
                "seconds": sum(row.seconds for row in run.rows),
                "failures": sum(row.failures for row in run.rows),
                "outcome": run.summary.get("outcome", "not finished"),
            }
        )
    return found
