"""A Python command as a process of its own: its output, its seconds, and the memory of its like."""

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

_MARK = "CSG_MEASURED"


@dataclass(frozen=True, slots=True)
class Measured:
    """``peak_bytes`` is the largest sum of proportional set sizes of all its processes.

    ``arrivals`` are the seconds from the start at which the lines of ``output`` came.
    """

    status: int
    output: str
    seconds: float
    peak_bytes: int
    arrivals: tuple[float, ...] = ()


def measured(
    arguments: Sequence[str],
    *,
    interpreter: str | Path = sys.executable,
    environment: Mapping[str, str] | None = None,
    errors: Path | None = None,
) -> Measured:
    """Run Python with arguments, as ``-m simulations.cli run demo``, and wait for its end.

    ``environment`` is added to this process's own; what is written to the standard error goes to
    the file ``errors``, or where this process's goes.
    """
    mark, began = uuid.uuid4().hex, time.perf_counter()
    lines, arrivals = [], []
    with errors.open("w") if errors else nullcontext() as log:
        process = subprocess.Popen(
            [str(interpreter), *arguments],
            env={**os.environ, **(environment or {}), _MARK: mark},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        watch = _Memory(mark)
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                arrivals.append(time.perf_counter() - began)
        status = process.wait()
    seconds, peak = time.perf_counter() - began, watch.stop()
    return Measured(status, "".join(lines), seconds, peak, tuple(arrivals))


class _Memory(threading.Thread):
    """Samples the memory of all processes whose environment holds a mark."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self._mark = f"{_MARK}={mark}".encode()
        self._peak, self._ended = 0, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ended.wait(1.0):
            self._peak = max(self._peak, sum(map(self._pss, Path("/proc").glob("[0-9]*"))))

    def stop(self) -> int:
        self._ended.set()
        self.join()
        return self._peak

    def _pss(self, entry: Path) -> int:
        try:
            if self._mark not in (entry / "environ").read_bytes():
                return 0
            lines = (entry / "smaps_rollup").read_text().splitlines()
        except OSError:
            return 0
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
