"""What clients cost the server, and from that what many of them would.

Measured: the CPU of reading, decoding and averaging an update, of a round's messages to 50 clients,
and of Flower's SuperLink for a request, by threads that ask it for messages without a pause.
Everything about 10,000 and 1,000,000 clients is arithmetic on these, and the tables say so.
"""

import math
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import ConfigRecord, Message
from flwr.supernode.fleet_http_connection import http_request_response

from client.app import make_app
from csg_core import build, manifest, pack
from csg_core.codecs import codec_named
from csg_core.payload import encode
from federation.messages import TrainReport, reply
from federation.recipe import recipe_of
from server.aggregation import model_record
from server.flower_cli import environment_of, script
from server.strategy import CsgStrategy
from simulations.clients import Clients
from simulations.local_engine import LocalGrid
from simulations.processes import free_port, listens, pss, wait_until

T = TypeVar("T")
NEEDS_IMAGES = False
NETWORK = "resnet56"
WIRES: dict[str, dict[str, Any]] = {
    "fp32": {"uplink": "fp32", "downlink": "fp32"},
    "fp32z": {"uplink": "fp32z", "downlink": "fp32z"},
    "ecsq": {"uplink": "ecsq", "downlink": "ecsq", "deltas": True},
}
_UPDATES = 50
_NODES, _SECONDS = 100, 10.0
_PATIENCE_S = 60.0  # with a SuperLink that does not answer
# By Flower 1.41: a node asks for messages every 3 s, and says every 20 s or so that it is alive.
_POLL_S, _HEARTBEAT_S = 3.0, 20.0
_IDLE = 1 / _POLL_S + 1 / _HEARTBEAT_S  # requests a second
_POLL_BYTES = 1_470  # both ways, headers and all; docs/wire.md
_REQUESTS = (
    8  # of a message that a node takes and answers, polls and heartbeats apart; docs/wire.md
)


def measure(_images: str | None = None) -> dict[str, Any]:
    """Milliseconds of CPU and bytes of an update by codec, and what the SuperLink takes."""
    return {
        "updates": {name: updates(wire) for name, wire in WIRES.items()},
        "superlink": superlink(),
    }


def updates(wire: Mapping[str, Any], count: int = _UPDATES) -> dict[str, float]:
    """Bytes of a round of ``count`` clients, and the server's CPU for it, on one thread."""
    recipe = recipe_of({"model": {"name": NETWORK}, "data": {"name": "digits", "clients": count},
                        "wire": dict(wire)}, "the server part")  # fmt: skip
    model = build(recipe.model, seed=0)
    found = manifest(model)
    strategy = CsgStrategy(recipe, found, pack(model))
    grid = LocalGrid(recipe, Clients(make_app(), {}, count))
    rng = np.random.default_rng(0)
    noise, change = (
        0.01 * rng.standard_normal(found.size).astype(np.float32) for _ in ("down", "up")
    )
    new = model_record(strategy.downlink.held + noise)
    sending, messages = _cpu_ms(lambda: strategy.configure_train(1, new, ConfigRecord(), grid))
    codec, label = codec_named(recipe.wire.uplink), strategy.downlink.update_label(1)
    up = encode(change, label, codec, rng)
    replies = [Message(reply(up, _report(n)), reply_to=m) for n, m in enumerate(messages)]
    receiving, _ = _cpu_ms(lambda: strategy.aggregate_train(1, replies))
    return {"bytes_up": len(up), "bytes_down": strategy.outcome.bytes_down / count,
            "values": found.size, "update_ms": receiving / count,
            "downlink_ms": sending}  # fmt: skip


def _report(partition: int) -> TrainReport:
    return TrainReport(partition=partition, examples=100, train_loss=1.0, loss_before=1.0,
                       loss_after=1.0, seconds=1.0)  # fmt: skip


def _cpu_ms(call: Callable[[], T]) -> tuple[float, T]:
    """Milliseconds of CPU of a call on one thread, and what it gives."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        began = time.process_time()
        found = call()
        return 1e3 * (time.process_time() - began), found
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, slots=True)
class Load:
    """CPU seconds and proportional set size in bytes of a process."""

    cpu: float
    memory: int

    @classmethod
    def of(cls, pid: int) -> "Load":
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return cls(cpu, pss(pid)[0])


def superlink(nodes: int = _NODES, seconds: float = _SECONDS) -> dict[str, float]:
    """What a SuperLink takes for a connected node and for a request, asked by ``nodes`` threads."""
    with _superlink() as (pid, address), ExitStack() as connections:
        alone = Load.of(pid)
        asking = [
            connections.enter_context(
                http_request_response(address, insecure=True, max_wait_time=_PATIENCE_S)
            )[1]
            for _ in range(nodes)
        ]
        before, began = Load.of(pid), time.perf_counter()
        done = _ask(asking, seconds)
        after, took = Load.of(pid), time.perf_counter() - began
    return {
        "nodes": nodes,
        "memory_alone_mb": alone.memory / 1e6,
        "memory_a_node_kb": (before.memory - alone.memory) / nodes / 1e3,
        "requests_a_second": done / took,
        "cpu_ms_a_request": 1e3 * (after.cpu - before.cpu) / done,
        "cores_used": (after.cpu - before.cpu) / took,
    }


def _ask(asking: list[Callable[[], Any]], seconds: float) -> int:
    """Ask for messages without a pause, a few nodes at a time; the number of answers."""
    until, counts = time.monotonic() + seconds, [0] * 4

    def ask(thread: int) -> None:
        mine = asking[thread :: len(counts)]
        while time.monotonic() < until:
            for call in mine:
                call()
                counts[thread] += 1

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts)


@contextmanager
def _superlink() -> Iterator[tuple[int, str]]:
    """A SuperLink of its own, with a database file as deployed; its process id and address."""
    port = free_port()
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "flwr").mkdir()
        command = [script("flower-superlink"), "--insecure", "--host", "127.0.0.1",
                   "--port", str(port), "--isolation", "process",
                   "--database", str(Path(scratch) / "superlink.db"),
                   "--disable-runtime-dependency-installation"]  # fmt: skip
        process = subprocess.Popen(command, env=environment_of(Path(scratch)), cwd=scratch,
                                   stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            wait_until(
                lambda: listens(process.pid, port), "the SuperLink does not listen", _PATIENCE_S
            )
            yield process.pid, f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait()


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Markdown: what was measured, and what many clients would take by it."""
    lines = ["| codec | kB up | kB down | ms of CPU an update | ms for the messages |",
             "| --- | --: | --: | --: | --: |"]  # fmt: skip
    for name, row in found["updates"].items():
        lines.append(f"| {name} | {row['bytes_up'] / 1e3:.1f} | {row['bytes_down'] / 1e3:.1f} "
                     f"| {row['update_ms']:.2f} | {row['downlink_ms']:.1f} |")  # fmt: skip
    link = found["superlink"]
    said = (
        f"The SuperLink answered {link['requests_a_second']:.0f} polls a second with "
        f"{link['cores_used']:.2f} cores, {link['cpu_ms_a_request']:.2f} ms of CPU each; "
        f"{link['memory_alone_mb']:.0f} MB alone, and {link['memory_a_node_kb']:.0f} kB for each "
        f"of {link['nodes']} connected nodes. "
        f"{1e3 / link['cpu_ms_a_request'] / _IDLE:,.0f} idle nodes fill one core."
    )
    return {"server": "\n".join(lines), "superlink": said, "many": many(found)}


def many(found: Mapping[str, Any]) -> str:
    """Markdown: arithmetic on what was measured, for deployed clients of whom 1 % train a round."""
    link, update = found["superlink"], found["updates"]["ecsq"]
    lines = ["| clients | polls and heartbeats a second | cores of SuperLinks for them "
             "| MB/s of them | GB of memory for them | a cohort of 1 %: MB a round "
             "| s of SuperLinks' CPU | s to read and average | MB of payloads held |",
             "| --: | --: | --: | --: | --: | --: | --: | --: | --: |"]  # fmt: skip
    for clients in (100, 10_000, 1_000_000):
        idle, cohort = clients * _IDLE, clients / 100
        request_s = link["cpu_ms_a_request"] / 1e3
        alone = math.ceil(idle * request_s) * link["memory_alone_mb"]
        memory = alone + clients * link["memory_a_node_kb"] / 1e3
        cells = [f"{clients:,}", f"{idle:,.0f}", f"{idle * request_s:,.1f}",
                 f"{idle * _POLL_BYTES / 1e6:,.2f}",
                 f"{memory / 1e3:,.1f}",
                 f"{cohort * (update['bytes_up'] + update['bytes_down']) / 1e6:,.2f}",
                 f"{cohort * _REQUESTS * request_s:,.1f}",
                 f"{cohort * update['update_ms'] / 1e3:,.2f}",
                 f"{cohort * update['bytes_up'] / 1e6:,.2f}"]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
