"""Processes of this machine, their memory and what they listen on (by /proc), and a free port."""

import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from server.outcome import RunError


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Poll until something is so; a TimeoutError says ``what`` was there instead."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} after {seconds:g} s")
        time.sleep(0.1)


def sessions() -> Iterator[tuple[int, int]]:
    """Ids of all processes that are no zombies, with their sessions'."""
    for entry in Path("/proc").glob("[0-9]*"):
        fields = read(entry / "stat").rpartition(b")")[2].split()
        if fields and fields[0] != b"Z":
            yield int(entry.name), int(fields[3])


def marked(text: str) -> Iterator[int]:
    """Ids of the processes whose environment holds a text; zombies have none."""
    for pid, _ in sessions():
        if text.encode() in read(Path(f"/proc/{pid}/environ")):
            yield pid


def pss(pid: int) -> tuple[int, int]:
    """Proportional set size, and what of it is anonymous, in bytes."""
    found = {b"Pss:": 0, b"Pss_Anon:": 0}
    for line in read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        key, *rest = line.split()
        if key in found:
            found[key] = 1024 * int(rest[0])
    return found[b"Pss:"], found[b"Pss_Anon:"]


def memory_together(pids: Iterable[int]) -> int:
    """What processes have in memory, in bytes: anonymous and shared, what they share counted once.

    Pages of files, as of libraries, are left out: how many are there depends on what the system
    has at hand, and it drops them where memory is scarce.
    """
    return sum(
        1024 * int(line.split()[1])
        for pid in pids
        for line in read(Path(f"/proc/{pid}/smaps_rollup")).splitlines()
        if line.startswith((b"Pss_Anon:", b"Pss_Shmem:"))
    )


def listens(pid: int, port: int) -> bool:
    """Whether something in the network namespace of a process listens on a port."""
    lines = read(Path(f"/proc/{pid}/net/tcp")).splitlines()[1:]
    rows: list[list[bytes]] = [line.split() for line in lines]
    return any(row[1].endswith(b":%04X" % port) and row[3] == b"0A" for row in rows)


def free_port() -> int:
    """A port of this machine on which nothing listens now, and that no connection is given.

    Raises:
        RunError: if none of a hundred is free.
    """
    for _ in range(100):
        port = 20_000 + secrets.randbelow(12_000)  # by default Linux gives those from 32,768 on
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise RunError("no port from 20,000 to 31,999 of 127.0.0.1 can be listened at; free some")


def read(path: Path) -> bytes:
    """A file of /proc, which may go at any time; empty then."""
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""
