"""A run of ``csg run`` as a process of its own: its rounds, its seconds and its memory."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from server.record import RunFolder
from server.rows import RoundRow
from simulations.bench.measured import Measured, measured
from simulations.command import StudyError
from simulations.recipe_names import set_options


@dataclass(frozen=True, slots=True)
class Run:
    """``seconds`` are of each of ``rows``, ``wall`` of the whole command."""

    rows: list[RoundRow]
    seconds: list[float]
    wall: float
    peak_mb: float


def measured_run(
    recipe: str, settings: Sequence[str], *, environment: Mapping[str, str] | None = None
) -> Run:
    """Run a recipe, by name or path, with settings such as ``run.workers=2``.

    Raises:
        StudyError: if the command fails, or a client does.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        options = set_options((*settings, f"run.dir={folder}"))
        done = measured(["-m", "simulations.cli", "run", recipe, *options], environment=environment)
        if done.status:
            raise StudyError(f"{recipe} {' '.join(settings)} ended with status {done.status}")
        rows = RunFolder(folder).rows()
    return Run(rows, round_seconds(done, rows), done.seconds, done.peak_bytes / 1e6)


def round_seconds(done: Measured, rows: Sequence[RoundRow]) -> list[float]:
    """Seconds of each round, from report to report, so that its record and checkpoint are in it.

    Of the first they are what its row says. Raises StudyError as :func:`report_times` does.
    """
    ends = report_times(done, rows)
    return [rows[0].seconds, *(end - begin for begin, end in pairwise(ends))]


def report_times(done: Measured, rows: Sequence[RoundRow]) -> list[float]:
    """When each round was reported, in seconds from the command's start.

    Raises:
        StudyError: if clients failed, or not every round was reported.
    """
    if failures := sum(row.failures for row in rows):
        raise StudyError(f"{failures} of the clients' answers failed")
    ends = [at for at, line in done.lines() if line.startswith("round ")]
    if len(ends) != len(rows):
        raise StudyError(f"{len(ends)} of {len(rows)} rounds were reported")
    return ends
