"""The runs that the wire study measures, on a deployment in network namespaces."""

import json
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

from server.flower_cli import run_of, start_run, write_app
from server.outcome import RunError
from server.record import RunFolder
from simulations.recipe_names import set_options
from simulations.studies.deployment import Deployment

CLIENTS = 2
# what Flower offers to make a round shorter, see docs/wire.md; the plain app goes without
SETTINGS = {
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
    "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PUSHES": "1",
    "FLWR_PRIVATE_MAX_CONCURRENT_OBJ_PULLS": "1",
}
_ROUND_S = 900.0  # at most


class MeasureError(RunError):
    """A run that was to be measured did not end well."""


def plain(deployment: Deployment, rounds: int) -> dict[str, Any]:
    """Bytes and seconds per client and round of the plain app.

    Raises:
        MeasureError: if it does not come to its end.
        EngineError: if the SuperLink does not answer, or refuses the app.
    """
    record, app = deployment.folder / "rounds", deployment.folder / "app"
    place = "simulations.studies.plain_flower"
    config = {"record": str(record), "interface": "eth0", "rounds": rounds}
    write_app(app, f"{place}:client", f"{place}:server", config)
    environment, inside = deployment.environment("csg"), deployment.network.inside("server")
    run_id = start_run(app, environment, before=inside)
    until = time.monotonic() + rounds * _ROUND_S
    while not (status := run_of(run_id, environment, inside)[0]).startswith("finished"):
        if time.monotonic() > until:
            raise MeasureError(f"plain Flower is {status} after {rounds * _ROUND_S:g} s")
        time.sleep(2)
    if status != "finished:completed":
        raise MeasureError(f"plain Flower ended as {status}")
    up, down, seconds = _differences(record, skip=1)
    clients = [_differences(record.with_name(f"noted-{n}"), skip=0) for n in range(CLIENTS)]
    return {
        "wire_up": up / CLIENTS,
        "wire_down": down / CLIENTS,
        "client_wire_up": mean(sent for _, sent, _ in clients),
        "client_wire_down": mean(received for received, _, _ in clients),
        "seconds": seconds,
    }


def ours(deployment: Deployment, rounds: int, recipe: str, settings: list[str]) -> dict[str, Any]:
    """Bytes and seconds per client and round of a recipe with settings, and its payload.

    Raises:
        MeasureError: if the run does not come to its end.
    """
    folder = deployment.folder / "run"
    values = [f"train.rounds={rounds}", f"data.clients={CLIENTS}", f"run.dir={folder}", *settings]
    csg = deployment.csg("run", recipe, *deployment.settings, *set_options(values), log=sys.stderr)
    if csg.wait():
        raise MeasureError("the run did not end well")
    rows = RunFolder(folder).rows()[1:]  # the first round has the start-up in it
    parts = [part for row in rows for part in row.contributions]
    counted = [row.wire_bytes_up for row in rows] + [part["wire_bytes_up"] for part in parts]
    if any(row.failures for row in rows) or None in counted:
        raise MeasureError("a client failed, or an interface was not counted")
    each = CLIENTS * len(rows)
    return {
        "wire_up": sum(row.wire_bytes_up or 0 for row in rows) / each,
        "wire_down": sum(row.wire_bytes_down or 0 for row in rows) / each,
        "client_wire_up": mean(part["wire_bytes_up"] or 0 for part in parts),
        "client_wire_down": mean(part["wire_bytes_down"] or 0 for part in parts),
        "payload_up": sum(row.payload_bytes_up for row in rows) / each,
        "payload_down": sum(row.payload_bytes_down for row in rows) / each,
        "seconds": mean(row.seconds for row in rows),
        "training": mean(part["seconds"] for part in parts),
        "accuracy": rows[-1].test_accuracy,
    }


def _differences(path: Path, *, skip: int) -> tuple[float, float, float]:
    """Bytes received and sent, and seconds, from one line of a file to the next, on average."""
    lines = [json.loads(line) for line in path.read_text().splitlines()][skip:]
    received, sent, when = (
        (last - first) / (len(lines) - 1) for first, last in zip(lines[0], lines[-1], strict=True)
    )
    return received, sent, when
