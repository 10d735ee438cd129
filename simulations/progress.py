"""What the terminal shows of a run: a line per round, and where things are at the end."""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from csg_core import build, manifest
from federation.recipe import Recipe
from server.logs import LogFile, logged
from server.record import RunFolder, RunFolderError
from server.rows import RoundRow

_LOGGERS = ("flwr", "ray")


class Progress:
    """Prints a run as it goes; on a terminal the round at work is shown as well."""

    def __init__(self, recipe: Recipe, rows: list[RoundRow], out: TextIO = sys.stdout) -> None:
        self._recipe, self._out = recipe, out
        self._live = out.isatty()
        self._rows = list(rows)
        self._began = time.monotonic()
        self._first: int | None = None
        self._at = ""

    @property
    def advanced(self) -> bool:
        """Whether a round was done."""
        return self._first is not None

    def begin(self, folder: RunFolder) -> None:
        """Say what is run."""
        recipe = self._recipe
        counts = manifest(build(recipe.model), recipe.train.travelling())
        self._say(
            f"{recipe.model.name} {recipe.model.kind} on {recipe.data.name}, "
            f"{recipe.data.partition} over {recipe.data.clients:,} clients, "
            f"{recipe.cohort:,} a round; {counts.size:,} values travel each way"
        )
        if left := folder.environment().get("images left out"):
            self._say(f"{left:,} images are no client's: pieces of the same size leave that many")
        self._say(f"run: {folder.path}")

    def client(self, done: int, cohort: int) -> None:
        """Show how many clients of the round are done."""
        if self._live:
            self._write(f"\r\033[K{self._at}client {done + 1}/{cohort}")

    def round(self, row: RoundRow) -> None:
        """Print a round."""
        if self._first is None:  # a resumed run may go on before its last rows
            self._first = row.round
            self._rows = [earlier for earlier in self._rows if earlier.round < row.round]
        self._rows.append(row)
        total = self._recipe.train.rounds
        spent = (time.monotonic() - self._began) / (row.round - self._first + 1)
        left = (total - row.round) * spent
        sent = sum(row.payload_bytes_up + row.payload_bytes_down for row in self._rows)
        self._at = f"round {row.round + 1}/{total}: "
        tested = "                            "
        if row.test_accuracy is not None:
            loss = "  none" if row.test_loss is None else f"{row.test_loss:6.3f}"
            tested = f"accuracy {100 * row.test_accuracy:5.2f} %  loss {loss}"
        self.clear()
        self._say(
            f"round {row.round:{len(str(total))}}/{total}  {tested}  "
            f"up {megabytes(row.payload_bytes_up)}  down {megabytes(row.payload_bytes_down)}  "
            f"sum {megabytes(sent)}  {wire_line(row)}{row.seconds:.1f} s  ETA {clock(left)}"
        )
        for who, why in list(row.failed.items())[:3]:
            self._say(f"  {who} failed: {why}")
        if len(row.failed) > 3:
            self._say(f"  and {len(row.failed) - 3} more failed")

    def clear(self) -> None:
        """Take the live line away."""
        if self._live:
            self._write("\r\033[K")

    def end(self, folder: RunFolder, *, goes_on: bool = True) -> None:
        """Say how the run ended, and where things are.

        ``goes_on`` says whether a run that is not complete can be resumed as it is.
        """
        summary = folder.summary()
        if not summary:
            return
        self._say(f"outcome: {summary['outcome']}")
        if summary["outcome"] != "completed" and goes_on:
            self._say(f"csg resume {folder.path} goes on from there")
        if summary["best_accuracy"] is not None:
            at = summary["accuracy_round"]
            when = "at the end" if at == summary["rounds"] else f"in round {at}"
            self._say(
                f"accuracy {100 * summary['accuracy']:.2f} % {when}, best "
                f"{100 * summary['best_accuracy']:.2f} % in round {summary['best_round']}"
            )
        twin = ""
        if summary["ratio_to_dense"] and self._recipe.model.parametrization == "csg":
            twin = (
                f"; the dense twin would exchange "
                f"{megabytes(summary['dense_twin_payload_bytes'])}, "
                f"{summary['ratio_to_dense']:.2f} times as much"
            )
        self._say(f"payload {megabytes(summary['payload_bytes'])} in all{twin}")
        if summary.get("wire_bytes") is not None:
            self._say(
                f"wire {megabytes(summary['wire_bytes'])} in all at the server's "
                f"{interface_label(summary['interface'], summary['interface_shared'])}"
            )
        report = folder.path / "report.html"
        there = f"   report: {report}" if report.exists() else ""
        self._say(f"checkpoints: {folder.checkpoints}{there}   log: {folder.log}")

    def _say(self, line: str) -> None:
        self._write(f"{line}\n")

    def _write(self, text: str) -> None:
        try:
            self._out.write(text)
            self._out.flush()
        except BrokenPipeError:  # as of `head`; a run is worth more than its reader
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())
            with suppress(BrokenPipeError):
                print("csg: nobody reads what the run says any more; it goes on", file=sys.stderr)


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """All logging of this package, Flower and Ray goes to a file and not to the terminal."""
    try:
        handler = LogFile(path)
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be written ({error.strerror})") from error
    before = {name: list(logging.getLogger(name).handlers) for name in _LOGGERS}
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    try:
        with logged(handler):
            yield
    finally:
        for name, handlers in before.items():
            logging.getLogger(name).handlers[:] = handlers


def megabytes(count: int) -> str:
    """Bytes for a reader: kB of 1000, MB of 10^6, GB and TB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= 10 * size or (unit == "MB" and count >= size):
            return f"{count / size:.2f} {unit}"
    return f"{count / 1e3:.1f} kB"


def wire_line(row: RoundRow) -> str:
    """What crossed the server's interface in a round, where that was measured."""
    if row.wire_bytes_up is None or row.wire_bytes_down is None:
        return ""
    whole = megabytes(row.wire_bytes_up + row.wire_bytes_down)
    return f"wire {whole} at {interface_label(row.interface, row.interface_shared)}  "


def interface_label(name: str | None, shared: bool | None) -> str:
    """An interface's name, and whether the figure is of one container alone."""
    return f"{name or 'interface'} ({'shared' if shared else 'own' if shared is False else '?'})"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
