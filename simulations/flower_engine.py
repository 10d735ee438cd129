"""The engine ``flower``: Flower's Simulation Engine (Ray), started, followed and cleaned up here.

A SuperLink of our own runs in a scratch folder and on a free port, the recipe travels in the run
config, and the server side writes the run's folder as it does everywhere. With ``$RAY_ADDRESS``
set, Ray joins that cluster instead of starting one.
"""

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from federation.messages import RECIPE
from federation.recipe import Recipe, RecipeError
from server.record import RoundRow, RunFolder
from server.strategy import RunError

_log = logging.getLogger(__name__)
_CONNECTION = "csg"
_START_S = 60.0
_POLL_S = 0.5
_STATUS_EVERY_S = 5.0
_STOP_S = 10.0

# The app that Flower bundles: the code itself is installed wherever a client runs.
_APP = """\
from {module} import {name} as client_app
from server.app import app as server_app

__all__ = ["client_app", "server_app"]
"""


class EngineError(RunError):
    """Flower's engine could not run; the message says why and names the log."""


def run_flower(recipe: Recipe, on_round: Callable[[RoundRow], None]) -> None:
    """Run a recipe on Flower's Simulation Engine; nothing of it is left running.

    Raises:
        RunError: if the run stopped, with the server's reason.
        EngineError: if Flower could not start or lost the run.
    """
    folder = RunFolder(Path(str(recipe.run.dir)))
    seen = len(folder.rows())
    folder.begin()
    with _scratch() as scratch, folder.log.open("a") as log:
        environment = _environment(scratch)
        port = _free_port()
        with _superlink(port, scratch, environment, log) as superlink:
            run_id = _submit(recipe, scratch, environment, folder, log)
            asked = time.monotonic()
            while True:
                time.sleep(_POLL_S)
                if superlink.poll() is not None:
                    raise EngineError(f"Flower's SuperLink has ended; see {folder.log}")
                rows = folder.rows()
                for row in rows[seen:]:
                    on_round(row)
                seen = len(rows)
                if time.monotonic() - asked < _STATUS_EVERY_S and not folder.summary():
                    continue
                status = _status(run_id, environment)
                asked = time.monotonic()
                if status.startswith("finished"):
                    break
    summary = folder.summary()
    if status != "finished:completed" or summary.get("outcome") != "completed":
        outcome = summary.get("outcome", f"the server side wrote no summary; see {folder.log}")
        reason = str(outcome).removeprefix("stopped: ")
        raise RunError(f"Flower says {status}: {reason} (log: {folder.log})")


def _environment(scratch: Path) -> dict[str, str]:
    settings = {
        "FLWR_HOME": str(scratch / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(scratch / "ray"),
        "PATH": os.pathsep.join(
            [sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
        ),
        "PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
    }
    return {**os.environ, **settings}


def _script(name: str) -> str:
    """A command that was installed beside this Python."""
    found = shutil.which(name, path=f"{sysconfig.get_path('scripts')}{os.pathsep}{os.defpath}")
    if found is None:
        raise EngineError(f"{name} is not installed; install the extra csg-fl[ray]")
    return found


@contextmanager
def _scratch() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="csg-"))
    for name in ("flwr", "ray", "app"):
        (path / name).mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _superlink(
    port: int, scratch: Path, environment: dict[str, str], log: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A SuperLink of this run's own; every process below it is gone afterwards."""
    command = [
        *(_script("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
    connection = {"superlink": {_CONNECTION: {"address": f"127.0.0.1:{port}", "insecure": True}}}
    (scratch / "flwr" / "config.toml").write_text(tomli_w.dumps(connection))
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + _START_S
        while not _listening(port):
            if process.poll() is not None or time.monotonic() > until:
                raise EngineError(f"Flower's SuperLink did not start; see {log.name}")
            time.sleep(0.1)
        yield process
    finally:
        _end(process, scratch)


def _end(process: subprocess.Popen[bytes], scratch: Path) -> None:
    """End the SuperLink and everything that was started below it, Ray included."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        left = _ours(scratch) | ({process.pid} if process.poll() is None else set())
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        until = time.monotonic() + _STOP_S
        while (process.poll() is None or _ours(scratch)) and time.monotonic() < until:
            time.sleep(0.1)
    process.wait()


def _ours(scratch: Path) -> set[int]:
    """Processes whose environment names the scratch folder, except this one's parents."""
    mark = f"FLWR_HOME={scratch}".encode()
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes() and _alive(entry):
                found.add(int(entry.name))
        except OSError:
            continue
    return found


def _alive(entry: Path) -> bool:
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"


def _submit(
    recipe: Recipe, scratch: Path, environment: dict[str, str], folder: RunFolder, log: Any
) -> str:
    _write_app(recipe, scratch / "app")
    federation = [
        f"num-supernodes={recipe.data.clients}",
        f"client-resources-num-cpus={recipe.run.client_cpus:g}",
        f"client-resources-num-gpus={recipe.run.client_gpus:g}",
        "init-args-log-to-driver=true",
    ]
    answer = _flwr(
        ["run", str(scratch / "app"), _CONNECTION, "--federation-config", " ".join(federation)],
        environment,
    )
    log.write(json.dumps(answer) + "\n")
    if not answer.get("run-id"):
        reason = answer.get("error-message", answer)
        raise EngineError(f"Flower refused the run: {reason} (log: {folder.log})")
    return str(answer["run-id"])


def _write_app(recipe: Recipe, path: Path) -> None:
    module, _, name = recipe.run.client_app.partition(":")
    if not module or not name.isidentifier():
        raise RecipeError(f"run.client_app {recipe.run.client_app!r}: give module:name")
    (path / "csg_app.py").write_text(_APP.format(module=module, name=name))
    (path / "LICENSE").write_text("Apache-2.0\n")
    flower = version("flwr")
    project = {
        "project": {
            "name": "csg-fl-run",
            "version": version("csg-fl"),
            "description": "A run of csg-fl",
            "license": {"file": "LICENSE"},
            "dependencies": [f"flwr>={flower}"],
        },
        "tool": {
            "flwr": {
                "app": {
                    "publisher": "csg-fl",
                    "fab-format-version": 1,
                    "flwr-version-target": flower,
                    "components": {
                        "serverapp": "csg_app:server_app",
                        "clientapp": "csg_app:client_app",
                    },
                    "config": {RECIPE: recipe.model_dump_json()},
                }
            }
        },
    }
    (path / "pyproject.toml").write_text(tomli_w.dumps(project))


def _status(run_id: str, environment: dict[str, str]) -> str:
    """As ``running`` or ``finished:completed``."""
    answer = _flwr(["ls", _CONNECTION, "--run-id", run_id], environment)
    runs = answer.get("runs") or [{}]
    return str(runs[0].get("status", "unknown"))


def _flwr(arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    command = [_script("flwr"), *arguments, "--format", "json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    start = done.stdout.find("{")
    try:
        content = json.loads(done.stdout[start:])
    except ValueError:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise EngineError(f"flwr {arguments[0]}: {reason[-1] if reason else 'no answer'}") from None
    return content if isinstance(content, dict) else {}


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
