"""Bytes at the network interface, per client and round: plain Flower, dense, generated, compressed.

One server and two clients, each in a network namespace of its own, joined by a bridge; what crosses
the server's interface is counted by the kernel, offloads switched off. All arms exchange ResNet-56,
the trained ones on digits. Needs root, iproute2 and ethtool. Example:

    python -m simulations.studies.wire --rounds 6
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from server.checkpoints import replace_file
from server.record import RunFolder
from simulations.flower_cli import (
    CONNECTION,
    connect,
    environment_of,
    flwr,
    script,
    status_of,
    write_app,
)
from simulations.machine import machine
from simulations.studies.network import Network

RESULTS = Path(__file__).parent / "wire"
CLIENTS = 2
_PORT = 8000
_LINE = "ecsq:step=1.5; statistics=ecsq:step=0.5"
_ECSQ = [f"wire.uplink={_LINE}", f"wire.downlink={_LINE}", "wire.deltas=true"]
ARMS: dict[str, list[str] | None] = {
    "plain Flower": None,
    "dense": ["model.parametrization=dense"],
    "csg s=16 d=128": ["model.slice_size=16", "model.code_size=128"],
    "csg s=12 d=72": [],
    "dense, ecsq": ["model.parametrization=dense", *_ECSQ],
    "csg s=12 d=72, ecsq": _ECSQ,
}


@contextmanager
def deployment(network: Network, scratch: Path) -> Iterator[dict[str, str]]:
    """A SuperLink and SuperNodes; the environment for ``flwr`` on the server."""
    settings = environment_of(scratch)
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
        time.sleep(8)
        for number, host in enumerate(network.hosts[1:]):
            place = f"partition-id={number} num-partitions={CLIENTS}"
            node = ["--superlink", f"{network.address('server')}:{_PORT}", "--node-config", place]
            home = scratch / host
            home.mkdir(exist_ok=True)
            start(host, "flower-supernode", "--insecure", *node, home=home)
        yield settings


def plain(network: Network, scratch: Path, rounds: int) -> dict[str, Any]:
    """Bytes per client and round of the plain app."""
    record = scratch / "rounds"
    with deployment(network, scratch) as settings:
        place = "simulations.studies.plain_flower"
        config = {"record": str(record), "interface": "eth0", "rounds": rounds}
        write_app(scratch / "app", f"{place}:client", f"{place}:server", config)
        inside = network.inside("server")
        answer = flwr(["run", str(scratch / "app"), CONNECTION], settings, inside)
        while not (status := status_of(str(answer["run-id"]), settings, inside)).startswith("fin"):
            time.sleep(2)
        if status != "finished:completed":
            sys.exit(f"wire: plain Flower ended as {status}; see {scratch / 'log'}")
    counts = [json.loads(line) for line in record.read_text().splitlines()]
    (first, up, down), (last, up_after, down_after) = counts[1], counts[-1]
    each = CLIENTS * (last - first)
    return {"wire_up": (up_after - up) / each, "wire_down": (down_after - down) / each}


def ours(network: Network, scratch: Path, rounds: int, settings_: list[str]) -> dict[str, Any]:
    """Bytes per client and round of this project, and its payload."""
    values = [f"train.rounds={rounds}", "data.name=digits", f"data.clients={CLIENTS}",
              "train.local_epochs=1", "train.lr=0.01", "run.engine=flower", "run.interface=eth0",
              f"run.superlink=127.0.0.1:{_PORT}", f"run.dir={scratch / 'run'}",
              *settings_]  # fmt: skip
    options = [part for value in values for part in ("--set", value)]
    with deployment(network, scratch) as settings:
        command = [sys.executable, "-m", "simulations.cli", "run", "cifar10-resnet56", *options]
        done = subprocess.run([*network.inside("server"), *command], env=settings, check=False)
    if done.returncode:
        shutil.copytree(scratch, "runs/wire-failed", dirs_exist_ok=True)
        sys.exit("wire: the run did not end well; see runs/wire-failed")
    rows = RunFolder(scratch / "run").rows()[1:]  # the first round has the start-up in it
    each = CLIENTS * len(rows)
    return {
        "wire_up": sum(row.wire_bytes_up or 0 for row in rows) / each,
        "wire_down": sum(row.wire_bytes_down or 0 for row in rows) / each,
        "payload_up": sum(row.payload_bytes_up for row in rows) / each,
        "payload_down": sum(row.payload_bytes_down for row in rows) / each,
        "seconds": sum(row.seconds for row in rows) / len(rows),
        "accuracy": rows[-1].test_accuracy,
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown: kB per client and round, and how many times fewer than plain Flower."""
    whole = {name: found["wire_up"] + found["wire_down"] for name, found in results.items()}
    lines = ["| arm | payload kB | wire kB up | down | both | over the payload | times fewer |",
             "| --- | --: | --: | --: | --: | --: | --: |"]  # fmt: skip
    for name, found in results.items():
        payload = found.get("payload_up", 0) + found.get("payload_down", 0)
        over = f"{(whole[name] - payload) / 1e3:.1f} kB" if payload else ""
        fewer = f"{whole['plain Flower'] / whole[name]:.1f}" if "plain Flower" in whole else ""
        lines.append(
            f"| {name} | {payload / 1e3:.1f} | {found['wire_up'] / 1e3:.1f} | "
            f"{found['wire_down'] / 1e3:.1f} | {whole[name] / 1e3:.1f} | {over} | {fewer} |"
        )
    return "\n".join(lines)


def main() -> None:
    options = _options()
    path = RESULTS / "resnet56.json"
    content = json.loads(path.read_text()) if path.exists() else {"results": {}}
    for name in options.arms:
        with (
            tempfile.TemporaryDirectory(prefix="wire-csg-") as place,
            Network(CLIENTS) as network,
        ):
            scratch = Path(place)
            for folder in ("flwr", "ray"):
                (scratch / folder).mkdir()
            settings = ARMS[name]
            if settings is None:
                found = plain(network, scratch, options.rounds)
            else:
                found = ours(network, scratch, options.rounds, settings)
        content["results"][name] = found
        content |= {
            "rounds": options.rounds,
            "machine": machine(),
            "date": time.strftime("%Y-%m-%d"),
        }
        RESULTS.mkdir(exist_ok=True)
        replace_file(path, (json.dumps(content, indent=1) + "\n").encode())
    kept = content["results"]
    print(table({name: kept[name] for name in ARMS if name in kept}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.studies.wire",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=6, help="of which the first does not count")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS),
                        help="none: only print what was measured before")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    main()
