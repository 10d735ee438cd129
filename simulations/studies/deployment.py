"""A deployed run on one machine: SuperLink, server side and SuperNodes, each to be killed and cut.

Every host is a network namespace; what a host runs is one session of processes, ended as a power
failure or as an operator ends it. Needs root, iproute2, ethtool and nginx.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.flower_cli import connect, environment_of, flwr, script
from server.outcome import RunError
from simulations.processes import listens, pss, read, sessions, wait_until
from simulations.recipe_names import set_options
from simulations.studies.network import Network

SUPERLINK, SERVER, PROXY = "superlink", "server", "proxy"
PORT, PROXY_PORT = 8000, 8443
_READY_S = 120.0
_GONE_S = 30.0
_DOCKER = Path(__file__).parents[2] / "docker"
_KEYS = _DOCKER / "keys.py"
_NODE_ID = re.compile(rb"SuperNode ID: (\d+)")


_APPS = (b"flwr-clientapp", b"flwr-serverapp")


@dataclass(frozen=True, slots=True)
class Memory:
    """Proportional set size of a component, in bytes, under the id of its first process."""

    name: str
    process: int
    pss: int
    anonymous: int


class Deployment:
    """A context manager; in it, the components are up, and known as in ``components``.

    ``folder`` takes keys, logs and the SuperLink's database; it is also on the Python path of all,
    so that a ClientApp of one's own can lie there. ``secure`` is as docker/compose.yml has it: TLS,
    which its proxy ends (nginx is needed), node authentication, and clients that speak HTTP/2, or
    without ``http2`` HTTP/1.1.
    ``lasting`` keeps the SuperLink's database in a file, so that it may be killed.
    ``environments`` adds variables for some components.
    """

    def __init__(
        self,
        folder: Path,
        *,
        clients: int = 2,
        secure: bool = False,
        http2: bool = True,
        network: Network | None = None,
        lasting: bool = True,
        environments: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.folder, self.secure, self._lasting = folder, secure, lasting
        self._http2 = http2
        self.network = network or Network(clients)
        self.clients = self.network.hosts[1:]
        self.components = [SUPERLINK, *([PROXY] if secure else []), SERVER, *self.clients]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.node_ids: dict[str, int] = {}
        self._environments = dict(environments or {})
        self.identities = {name: name for name in self.clients}  # folders of keys
        self.proofs: dict[str, list[str]] = {}  # other than the right one, by client
        self._numbers = {name: number for number, name in enumerate(self.clients)}
        self._ended: list[subprocess.Popen[bytes]] = []
        self._read: dict[str, int] = {}

    def __enter__(self) -> "Deployment":
        for name in ("flwr", "ray", "logs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        if self.secure:
            hosts = ["--host", self.network.address("server"), "--host", "127.0.0.1"]
            self._keys("make", *hosts, "--clients", str(len(self.clients)))
        connect(self.folder, f"127.0.0.1:{PORT}", self.ca)
        self.network.__enter__()
        try:
            self.start(SUPERLINK)
            if self.secure:
                self.register()
                self.start(PROXY)
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
    def ca(self) -> str | None:
        """The certificate that proves the SuperLink."""
        return str(self.folder / "keys" / "proxy" / "ca.crt") if self.secure else None

    @property
    def settings(self) -> list[str]:
        """Of a recipe, for a run on this deployment."""
        values = ["run.engine=flower", f"run.superlink=127.0.0.1:{PORT}"]
        values += [f"run.superlink_ca={self.ca}"] if self.secure else []
        return set_options(values)

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
        self.node_ids.pop(name, None)
        if wait:
            self.await_ready(name)

    def await_ready(self, name: str, seconds: float = _READY_S) -> None:
        """Wait until SuperLink or proxy listens, or a client has its node id.

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

    def restart(self, name: str, *, wait: bool = True) -> None:
        self.kill(name)
        self.start(name, wait=wait)

    def cut(self, name: str) -> None:
        """Pull the cable of a component's host."""
        self.network.cut(self._host(name))

    def restore(self, name: str) -> None:
        self.network.restore(self._host(name))

    def memory(self) -> list[Memory]:
        """Of every component that is up, and apart from it of the apps that run for it."""
        leaders = {p.pid: name for name, p in self.processes.items() if p.poll() is None}
        found: dict[tuple[str, int], Memory] = {}
        for pid, session in sessions():
            if session not in leaders:
                continue
            command = read(Path(f"/proc/{pid}/cmdline"))
            name, leader = leaders[session], session
            if any(app in command for app in _APPS):
                name, leader = f"{name} app", pid
            size, anonymous = pss(pid)
            before = found.get((name, leader), Memory(name, leader, 0, 0))
            more = Memory(name, leader, before.pss + size, before.anonymous + anonymous)
            found[name, leader] = more
        return list(found.values())

    def keep_up(self) -> list[str]:
        """Start whatever has ended, as a restart policy does; what was started."""
        ended = [name for name in self.processes if not self.up(name)]
        for name in ended:
            self.start(name, wait=False)
        return ended

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

    def register(self) -> None:
        """Let all clients in whom the SuperLink does not know."""
        self._keys("register")

    def new_identity(self, name: str, *, registered: bool = True) -> None:
        """From its next start on, a client has another key, and so another node id."""
        key = f"{name}-{len(list((self.folder / 'keys' / 'clients').iterdir()))}"
        self._keys("add", key)
        if registered:
            self._keys("register", key)
        self.identities[name] = key

    def _keys(self, *arguments: str) -> None:
        command = [sys.executable, str(_KEYS), "--dir", str(self.folder / "keys"), *arguments]
        inside = self.network.inside("server") if "register" in arguments else []
        done = subprocess.run([*inside, *command], check=False, capture_output=True, text=True,
                              env=self.environment("csg"))  # fmt: skip
        if done.returncode:
            reason = done.stderr.strip().splitlines()
            raise RunError(reason[-1] if reason else f"keys {arguments[0]}: no reason given")

    def environment(self, name: str) -> dict[str, str]:
        home = self.folder / ("flwr" if name in ("csg", SUPERLINK) else f"home-{name}")
        home.mkdir(exist_ok=True)
        base = environment_of(self.folder)
        own = {"PYTHONPATH": "", **self._environments.get(name, {})}
        path = [own["PYTHONPATH"], str(self.folder), base["PYTHONPATH"]]
        own["PYTHONPATH"] = os.pathsep.join(filter(None, path))
        return {**base, "FLWR_HOME": str(home), "OMP_NUM_THREADS": "1", **own}

    def _host(self, name: str) -> str:
        return "server" if name in (SUPERLINK, PROXY, SERVER) else name

    def _command(self, name: str) -> list[str]:
        keys, ca = self.folder / "keys", self.ca
        proof = ["--root-certificates", ca] if ca else ["--insecure"]
        if name == PROXY:
            nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
            if nginx is None:
                raise FileNotFoundError("nginx is not installed; Debian has it as nginx-light")
            settings = self.folder / "proxy.conf"
            settings.write_text(proxy_settings(self.folder, self.log("requests")))
            return [nginx, "-e", "stderr", "-c", str(settings), "-g", "daemon off;"]
        if name == SUPERLINK:
            shown = ["--insecure"]
            if ca:
                own = keys / "server"
                shown = ["--ssl-ca-certfile", ca, "--ssl-certfile", str(own / "tls.crt"),
                         "--ssl-keyfile", str(own / "tls.key"),
                         "--enable-supernode-auth"]  # fmt: skip
            database = ["--database", str(self.folder / "state.db")] if self._lasting else []
            return ["flower-superlink", *shown, "--host", "0.0.0.0", "--port", str(PORT),
                    "--isolation", "process", *database,
                    "--disable-runtime-dependency-installation"]  # fmt: skip
        if name == SERVER:
            return ["flower-superexec", *proof, "--runtime-api-address", f"127.0.0.1:{PORT}"]
        key = keys / "clients" / self.identities[name] / "key"
        place = f"partition-id={self._numbers[name]} num-partitions={len(self.clients)}"
        port = PROXY_PORT if ca else PORT
        over_http2 = [sys.executable, "-m", "client.supernode"]
        node = over_http2 if ca and self._http2 else ["flower-supernode"]
        return [*node, *self.proofs.get(name, proof),
                *(["--auth-supernode-private-key", str(key)] if ca else []),
                "--superlink", f"{self.network.address('server')}:{port}",
                "--node-config", place]  # fmt: skip

    def _ready(self, name: str) -> bool:
        if not self.up(name):
            return False
        if name == SUPERLINK:
            return listens(self.processes[name].pid, PORT)
        if name == PROXY:
            return listens(self.processes[name].pid, PROXY_PORT)
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
        wait_until(lambda: not any(s == process.pid for _, s in sessions()), f"{name} goes on")


def proxy_settings(folder: Path, log: Path) -> str:
    """docker/proxy.conf for this host, with ``folder/keys``; requests are noted in ``log``."""
    text = (_DOCKER / "proxy.conf").read_text()
    here = {
        "worker_processes": "user root;\nworker_processes",
        "/tmp/": f"{folder}/proxy-",
        " /keys/": f" {folder}/keys/proxy/",
        "set $superlink server": "set $superlink 127.0.0.1",
        "/dev/stderr": "stderr",
        "access_log off": f"access_log {log}",
    }
    for there, own in here.items():
        if there not in text:
            raise ValueError(f"proxy.conf without {there}")
        text = text.replace(there, own)
    return text
