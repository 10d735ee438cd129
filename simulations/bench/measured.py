"""A Python command as a process of its own: its output, its seconds, and the memory of its like."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from simulations.processes import marked, memory_together

_SAMPLE_S = 0.5  # each takes some milliseconds, of the cores that are measured


@dataclass(frozen=True, slots=True)
class Measured:
    """``peak_bytes`` is the most that all its processes took (``memory_together``).

    ``arrivals`` are the seconds from the start at which the lines of ``output`` came.
    """

    status: int
    output: str
    seconds: float
    peak_bytes: int
    arrivals: tuple[float, ...] = ()

    def lines(self) -> list[tuple[float, str]]:
        """The lines of the output, and when they came."""
        return list(zip(self.arrivals, self.output.splitlines(), strict=True))


def measured(
    arguments: Sequence[str],
    *,
    interpreter: str | Path = sys.executable,
    environment: Mapping[str, str] | None = None,
    errors: Path | None = None,
    limit: float | None = None,
) -> Measured:
    """Run Python with arguments, as ``-m simulations.cli run demo``, and wait for its end.

    ``environment`` is added to this process's own; what is written to the standard error goes to
    the file ``errors``, or where this process's goes. After ``limit`` seconds it is killed; at the
    end, so are the processes that it began and left running.
    """
    mark, began = uuid.uuid4().hex, time.perf_counter()
    lines, arrivals = [], []
    with errors.open("w") if errors else nullcontext() as log:
        process = subprocess.Popen(
            [str(interpreter), *arguments],
            env={**os.environ, **(environment or {}), "CSG_MEASURED": mark},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        watch = _Memory(mark)
        clock = threading.Timer(threading.TIMEOUT_MAX if limit is None else limit, _kill, [mark])
        clock.start()
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                arrivals.append(time.perf_counter() - began)
            status = process.wait()
        finally:
            clock.cancel()
            _kill(mark)
            process.stdout.close()
            process.wait()
    seconds, peak = time.perf_counter() - began, watch.stop()
    return Measured(status, "".join(lines), seconds, peak, tuple(arrivals))


class _Memory(threading.Thread):
    """Samples the memory of all processes whose environment holds a mark."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self._mark = mark
        self._peak, self._ended = 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(_SAMPLE_S):
            self._peak = max(self._peak, memory_together(marked(self._mark)))

    def stop(self) -> int:
        self._ended.set()
        self.join()
        return self._peak


def _kill(mark: str) -> None:
    for pid in marked(mark):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
