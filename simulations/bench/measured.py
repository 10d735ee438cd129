"""A Python command as a process of its own: its output, its seconds, and the memory of its like."""

import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_MARK = "CSG_MEASURED"


@dataclass(frozen=True, slots=True)
class Measured:
    """``peak_bytes`` is the largest sum of proportional set sizes of all its processes."""

    status: int
    output: str
    seconds: float
    peak_bytes: int


def measured(arguments: Sequence[str]) -> Measured:
    """Run Python with arguments, as ``-m simulations.cli run demo``, and wait for its end."""
    mark, began = uuid.uuid4().hex, time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env={**os.environ, _MARK: mark},
        stdout=subprocess.PIPE,
        text=True,
    )
    watch = _Memory(mark)
    output, _ = process.communicate()
    seconds, peak = time.perf_counter() - began, watch.stop()
    return Measured(process.returncode, output, seconds, peak)


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
