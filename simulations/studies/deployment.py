"""A deployed run on one machine: SuperLink, server side and SuperNodes, each to be killed and cut.

Every host is a network namespace; what a host runs is one session of processes, ended as a power
failure or as an operator ends it. Needs root, iproute2, ethtool, and with ``secure`` openssl and
ssh-keygen.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from simulations.flower_cli import CONNECTION, connect, environment_of, flwr, script
from simulations.studies.keys import make_ca, make_certificate, make_key
from simulations.studies.network import Network

SUPERLINK, SERVER = "superlink", "server"
PORT = 8000
_READY_S = 120.0
_GONE_S = 30.0
_NODE_ID = re.compile(rb"SuperNode ID: (\d+)")


class Deployment:
    """A context manager; in it, the components are up, and known as in ``components``.

    ``folder`` takes keys, logs and the SuperLink's database; it is also on the Python path of all,
    so that a ClientApp of one's own can lie there. ``secure`` is TLS with node authentication.
    ``environments`` adds variables for some components.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clients: int = 2,
        secure: bool = False,
        environments: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.folder, self.secure = folder, secure
        self.network = Network(clients)
        self.clients = self.network.hosts[1:]
        self.components = [SUPERLINK, SERVER, *self.clients]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.node_ids: dict[str, int] = {}
        self._environments = dict(environments or {})
        self._numbers = {name: number for number, name in enumerate(self.clients)}
        self._ended: list[subprocess.Popen[bytes]] = []
        self._read: dict[str, int] = {}

    def __enter__(self) -> "Deployment":
        for name in ("flwr", "ray", "logs", "keys"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        address = self.network.address("server")
        if self.secure:
            make_ca(self.keys / "ca")
            make_certificate(self.keys / "server", self.keys / "ca", [address, "127.0.0.1"])
        connect(self.folder, f"127.0.0.1:{PORT}", self.ca)
        self.network.__enter__()
        try:
            self.start(SUPERLINK)
            self.start(SERVER)
            for name in self.clients:
                self.start(name, wait=False)
            for name in self.clients:
                self.await_ready(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(self.components):
            with suppress(ProcessLookupError):
                self.kill(name)
        for process in self._ended:
            process.wait()
        self.network.__exit__()

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def ca(self) -> str | None:
        """The certificate that proves the SuperLink."""
        return str(self.keys / "ca.crt") if self.secure else None

    @property
    def settings(self) -> list[str]:
        """Of a recipe, for a run on this deployment."""
        values = ["run.engine=flower", f"run.superlink=127.0.0.1:{PORT}"]
        values += [f"run.superlink_ca={self.ca}"] if self.secure else []
        return [part for value in values for part in ("--set", value)]

    def log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def start(self, name: str, *, wait: bool = True) -> None:
        """Start a component that is not up; a client that was refused is started again."""
        assert not self.up(name), f"{name} is up"
        command = self._command(name)
        with self.log(name).open("ab") as log:
            self._read[name] = log.tell()
            process = subprocess.Popen(
                [*self.network.inside(self._host(name)), script(command[0]), *command[1:]],
                env=self.environment(name),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                start_new_session=True,
            )
        self.processes[name] = process
        if wait:
            self.await_ready(name)

    def await_ready(self, name: str, seconds: float = _READY_S) -> None:
        """Wait until the SuperLink listens, or a client has its node id.

        Flower refuses a node that it takes to be connected still, so a client that was killed is
        turned away until its last heartbeat is a minute old. As a restart policy would, this starts
        it again.

        Raises:
            TimeoutError: if it takes too long.
        """
        until = time.monotonic() + seconds
        while not self._ready(name):
            if time.monotonic() > until:
                raise TimeoutError(f"{name} is not ready after {seconds:g} s; {self.log(name)}")
            if not self.up(name):
                self.start(name, wait=False)
            time.sleep(0.5)

    def up(self, name: str) -> bool:
        process = self.processes.get(name)
        return process is not None and process.poll() is None

    def kill(self, name: str) -> None:
        """End all processes of a component at once, with no time for a word."""
        self._end(name, signal.SIGKILL)

    def terminate(self, name: str) -> None:
        """End a component as an operator does, and all that it started."""
        if self.up(name):
            self.processes[name].terminate()
            with suppress(subprocess.TimeoutExpired):
                self.processes[name].wait(_GONE_S)
        self._end(name, signal.SIGTERM)

    def restart(self, name: str) -> None:
        self.kill(name)
        self.start(name)

    def cut(self, name: str) -> None:
        """Pull the cable of a component's host."""
        self.network.cut(self._host(name))

    def restore(self, name: str) -> None:
        self.network.restore(self._host(name))

    def memory(self) -> dict[str, int]:
        """Bytes (proportional set size) of each component that is up, with all it started."""
        sessions = {p.pid: name for name, p in self.processes.items() if p.poll() is None}
        found = dict.fromkeys(sessions.values(), 0)
        for pid, session in _sessions():
            if session in sessions:
                found[sessions[session]] += _pss(pid)
        return found

    def processes_of(self, name: str, command: str) -> list[int]:
        """Ids of a component's processes whose command line holds ``command``."""
        leader = self.processes[name].pid
        return [
            pid
            for pid, session in _sessions()
            if session == leader and command.encode() in _read(Path(f"/proc/{pid}/cmdline"))
        ]

    def csg(self, *arguments: str, log: Any = subprocess.PIPE) -> subprocess.Popen[str]:
        """Start the command ``csg`` on the server's host, in ``folder``."""
        command = [*self.network.inside("server"), sys.executable, "-m", "simulations.cli"]
        return subprocess.Popen(
            [*command, *arguments],
            env=self.environment("csg"),
            stdout=log,
            stderr=subprocess.STDOUT if log != subprocess.PIPE else log,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            text=True,
            start_new_session=True,
        )

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """What ``flwr`` answers on the server's host."""
        return flwr(list(arguments), self.environment("csg"), self.network.inside("server"))

    def register(self, name: str) -> None:
        """Let a client's key in, or a new one if it has none."""
        public = make_key(self.keys / name)
        self.flwr("supernode", "register", str(public), CONNECTION, "--name", name)

    def forget_key(self, name: str) -> None:
        """The next start of this client is under a key of its own, and a new node id."""
        for path in self.keys.glob(f"{name}*"):
            path.unlink()

    def environment(self, name: str) -> dict[str, str]:
        home = self.folder / ("flwr" if name in ("csg", SUPERLINK) else f"home-{name}")
        home.mkdir(exist_ok=True)
        base = environment_of(self.folder)
        path = os.pathsep.join([str(self.folder), base["PYTHONPATH"]])
        own = self._environments.get(name, {})
        return {**base, "FLWR_HOME": str(home), "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **own}

    def _host(self, name: str) -> str:
        return "server" if name in (SUPERLINK, SERVER) else name

    def _command(self, name: str) -> list[str]:
        keys, ca = self.keys, self.ca
        proof = ["--root-certificates", ca] if ca else ["--insecure"]
        if name == SUPERLINK:
            shown = ["--insecure"]
            if ca:
                shown = ["--ssl-ca-certfile", ca, "--ssl-certfile", str(keys / "server.crt"),
                         "--ssl-keyfile", str(keys / "server.key"),
                         "--enable-supernode-auth"]  # fmt: skip
            return ["flower-superlink", *shown, "--host", "0.0.0.0", "--port", str(PORT),
                    "--isolation", "process", "--database", str(self.folder / "state.db"),
                    "--disable-runtime-dependency-installation"]  # fmt: skip
        if name == SERVER:
            return ["flower-superexec", *proof, "--runtime-api-address", f"127.0.0.1:{PORT}"]
        if ca and not (keys / name).exists():
            self.register(name)
        key = ["--auth-supernode-private-key", str(keys / name)] if ca else []
        place = f"partition-id={self._numbers[name]} num-partitions={len(self.clients)}"
        address = f"{self.network.address('server')}:{PORT}"
        return ["flower-supernode", *proof, *key, "--superlink", address, "--node-config", place]

    def _ready(self, name: str) -> bool:
        if not self.up(name):
            return False
        if name == SUPERLINK:
            return _listens(self.processes[name].pid, PORT)
        if name == SERVER:
            return True
        found = _NODE_ID.search(self.log(name).read_bytes(), self._read[name])
        if found:
            self.node_ids[name] = int(found[1])
        return found is not None

    def _end(self, name: str, number: signal.Signals) -> None:
        process = self.processes.pop(name, None)
        if process is None:
            return
        self._ended.append(process)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        _await(lambda: not any(s == process.pid for _, s in _sessions()), f"{name} goes on")


def _await(condition: Callable[[], bool], what: str, seconds: float = _GONE_S) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"{what} after {seconds:g} s")
        time.sleep(0.1)


def _sessions() -> Iterator[tuple[int, int]]:
    """Ids of all processes that are no zombies, with their sessions'."""
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _read(entry / "stat").rpartition(b")")[2].split()
        if fields and fields[0] != b"Z":
            yield int(entry.name), int(fields[3])


def _pss(pid: int) -> int:
    for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        if line.startswith(b"Pss:"):
            return 1024 * int(line.split()[1])
    return 0


def _listens(pid: int, port: int) -> bool:
    """Whether something in the network namespace of a process listens on a port."""
    lines = _read(Path(f"/proc/{pid}/net/tcp")).splitlines()[1:]
    rows: Sequence[list[bytes]] = [line.split() for line in lines]
    return any(row[1].endswith(b":%04X" % port) and row[3] == b"0A" for row in rows)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""
