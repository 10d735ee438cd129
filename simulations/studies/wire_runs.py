"""A deployment in network namespaces, and the runs that it is measured with."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

from server.record import RoundRow, RunFolder
from simulations.flower_cli import (
    CONNECTION,
    connect,
    environment_of,
    flwr,
    script,
    status_of,
    write_app,
)
from simulations.studies.network import Network

CLIENTS = 2
_PORT = 8000
_START_S = 60.0
# what Flower offers to make a round shorter, see docs/wire.md; the plain app goes without
SETTINGS = {
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES": "1",
    "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS": "1",
}


_ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # two clients may have to share two cores


@contextmanager
def deployment(
    network: Network, scratch: Path, more: Mapping[str, str]
) -> Iterator[dict[str, str]]:
    """A SuperLink and SuperNodes; the environment for ``flwr`` on the server."""
    settings = {**environment_of(scratch), **_ONE_THREAD, **more}
    connect(scratch, f"127.0.0.1:{_PORT}")
    with ExitStack() as stack, (scratch / "log").open("ab") as log:

        def start(host: str, *command: str, home: Path) -> None:
            process = subprocess.Popen(
                [*network.inside(host), script(command[0]), *command[1:]],
                env={**settings, "FLWR_HOME": str(home)},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)

        link = ["--insecure", "--host", "0.0.0.0", "--port", str(_PORT)]
        start("server", "flower-superlink", *link, home=scratch / "flwr")
        _wait_for_port(network)
        for number, host in enumerate(network.hosts[1:]):
            place = f"partition-id={number} num-partitions={CLIENTS}"
            node = ["--superlink", f"{network.address('server')}:{_PORT}", "--node-config", place]
            home = scratch / host
            home.mkdir(exist_ok=True)
            start(host, "flower-supernode", "--insecure", *node, home=home)
        yield settings


def plain(network: Network, scratch: Path, rounds: int) -> dict[str, Any]:
    """Bytes and seconds per client and round of the plain app."""
    record = scratch / "rounds"
    with deployment(network, scratch, {}) as settings:
        place = "simulations.studies.plain_flower"
        config = {"record": str(record), "interface": "eth0", "rounds": rounds}
        write_app(scratch / "app", f"{place}:client", f"{place}:server", config)
        inside = network.inside("server")
        answer = flwr(["run", str(scratch / "app"), CONNECTION], settings, inside)
        while not (status := status_of(str(answer["run-id"]), settings, inside)).startswith("fin"):
            time.sleep(2)
        if status != "finished:completed":
            _give_up(scratch, f"plain Flower ended as {status}")
    up, down, seconds = _differences(record, skip=1)
    clients = [_differences(record.with_name(f"noted-{n}"), skip=0) for n in range(CLIENTS)]
    return {
        "wire_up": up / CLIENTS,
        "wire_down": down / CLIENTS,
        "client_wire_up": mean(sent for _, sent, _ in clients),
        "client_wire_down": mean(received for received, _, _ in clients),
        "seconds": seconds,
    }


def ours(network: Network, scratch: Path, rounds: int, settings_: list[str]) -> dict[str, Any]:
    """Bytes and seconds per client and round of this project, and its payload."""
    values = [f"train.rounds={rounds}", "data.name=digits", f"data.clients={CLIENTS}",
              "train.local_epochs=1", "train.lr=0.01", "run.engine=flower",
              f"run.superlink=127.0.0.1:{_PORT}", f"run.dir={scratch / 'run'}",
              *settings_]  # fmt: skip
    options = [part for value in values for part in ("--set", value)]
    with deployment(network, scratch, SETTINGS) as settings:
        command = [sys.executable, "-m", "simulations.cli", "run", "cifar10-resnet56", *options]
        done = subprocess.run([*network.inside("server"), *command], env=settings, check=False)
    if done.returncode:
        _give_up(scratch, "the run did not end well")
    rows = RunFolder(scratch / "run").rows()[1:]  # the first round has the start-up in it
    each = CLIENTS * len(rows)
    return {
        "wire_up": sum(row.wire_bytes_up or 0 for row in rows) / each,
        "wire_down": sum(row.wire_bytes_down or 0 for row in rows) / each,
        "client_wire_up": _of_clients(rows, "wire_bytes_up"),
        "client_wire_down": _of_clients(rows, "wire_bytes_down"),
        "payload_up": sum(row.payload_bytes_up for row in rows) / each,
        "payload_down": sum(row.payload_bytes_down for row in rows) / each,
        "seconds": mean(row.seconds for row in rows),
        "training": mean(part["seconds"] for row in rows for part in row.contributions),
        "accuracy": rows[-1].test_accuracy,
    }


def _of_clients(rows: list[RoundRow], key: str) -> float:
    return float(mean(part[key] for row in rows for part in row.contributions))


def _differences(path: Path, *, skip: int) -> tuple[float, float, float]:
    """Bytes received and sent, and seconds, from one line of a file to the next, on average."""
    lines = [json.loads(line) for line in path.read_text().splitlines()][skip:]
    received, sent, when = (
        (last - first) / (len(lines) - 1) for first, last in zip(lines[0], lines[-1], strict=True)
    )
    return received, sent, when


def _wait_for_port(network: Network) -> None:
    probe = f"import socket; socket.create_connection(('127.0.0.1', {_PORT}), 1)"
    command = [*network.inside("server"), sys.executable, "-c", probe]
    until = time.monotonic() + _START_S
    while subprocess.run(command, capture_output=True, check=False).returncode:
        if time.monotonic() > until:
            sys.exit(f"deployment: the SuperLink does not listen after {_START_S:g} s")
        time.sleep(0.2)


def _give_up(scratch: Path, why: str) -> None:
    kept = Path("runs/wire-failed")
    shutil.copytree(scratch, kept, dirs_exist_ok=True)
    sys.exit(f"wire: {why}; see {kept}/log")
