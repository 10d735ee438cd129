"""The engine ``flower``: Flower's Simulation Engine (Ray), started, followed and cleaned up here.

A SuperLink of our own runs in a scratch folder and on a free port, the recipe travels in the run
config, and the server side writes the run's folder as it does everywhere; clients keep what is
theirs there, too. With ``$RAY_ADDRESS`` set, Ray joins that cluster instead of starting one. With
``run.superlink`` set, nothing is started: the run goes to that SuperLink, which shares this file
system, and to its SuperNodes.
"""

import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from federation.code import CODE, code_identity
from federation.messages import RECIPE, STARTED
from federation.recipe import Recipe
from server.flower_cli import (
    EngineError,
    connect,
    environment_of,
    script,
    start_run,
    write_app,
)
from server.outcome import RunError
from server.record import RunFolder
from server.rows import RoundRow
from simulations.flower_run import Followed
from simulations.processes import free_port, marked

_log = logging.getLogger(__name__)
_START_S = 60.0
_STOP_S = 10.0


def run_flower(recipe: Recipe, on_round: Callable[[RoundRow], None]) -> None:
    """Run a recipe on Flower's Simulation Engine; nothing of it is left running.

    Raises:
        RunError: if the run stopped, with the server's reason.
        EngineError: if Flower could not start or lost the run.
    """
    folder = RunFolder(Path(str(recipe.run.dir)))
    before = folder.rows()
    folder.begin()
    with _scratch() as scratch, folder.log.open("a") as log:
        environment = environment_of(scratch)
        with _superlink_of(recipe, scratch, environment, log) as superlink:
            run_id = _submit(recipe, scratch, environment, folder, log)
            followed = Followed(run_id, recipe, folder, environment)

            def check_superlink() -> None:
                if superlink is not None and superlink.poll() is not None:
                    raise EngineError(f"Flower's SuperLink has ended; see {folder.log}")

            try:
                status, details = followed.to_its_end(before, on_round, check_superlink)
            except KeyboardInterrupt:
                if superlink is None:  # it goes on, but not with this run
                    followed.stop()
                raise
    summary = folder.summary()
    if status != "finished:completed" or summary.get("outcome") != "completed":
        known = str(summary.get("outcome", "")).removeprefix("stopped: ")
        reason = known or details or "the server side never began"
        raise RunError(f"Flower says {status}: {reason} (log: {folder.log})")


@contextmanager
def _superlink_of(
    recipe: Recipe, scratch: Path, environment: dict[str, str], log: Any
) -> Iterator[subprocess.Popen[bytes] | None]:
    """The SuperLink that the run is given to: the recipe's, or one of our own."""
    address = recipe.run.superlink
    port = free_port()
    connect(scratch, address or f"127.0.0.1:{port}", recipe.run.superlink_ca)
    if address is not None:
        yield None
        return
    with _superlink(port, scratch, environment, log) as superlink:
        yield superlink


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
        *(script("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]
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
    ours = f"FLWR_HOME={scratch}"
    for number in (signal.SIGTERM, signal.SIGKILL):
        left = {*marked(ours), *([process.pid] if process.poll() is None else [])}
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        until = time.monotonic() + _STOP_S
        while (process.poll() is None or any(marked(ours))) and time.monotonic() < until:
            time.sleep(0.1)
    process.wait()


def _submit(
    recipe: Recipe, scratch: Path, environment: dict[str, str], folder: RunFolder, log: Any
) -> str:
    started = str(folder.environment().get("started", ""))
    config = {RECIPE: recipe.model_dump_json(), CODE: code_identity(), STARTED: started}
    write_app(scratch / "app", recipe.run.client_app, "server.app:app", config)
    federation = [
        f"num-supernodes={recipe.data.clients}",
        f"client-resources-num-cpus={recipe.run.client_cpus:g}",
        f"client-resources-num-gpus={recipe.run.client_gpus:g}",
        "init-args-log-to-driver=true",
    ]
    simulated = ["--federation-config", " ".join(federation)]
    if recipe.run.superlink is not None:
        _wait_for(recipe.run.superlink, recipe.run.patience, folder)
        simulated = []
    try:
        run_id = start_run(scratch / "app", environment, *simulated)
    except EngineError as error:
        raise EngineError(f"{error} (log: {folder.log})") from error
    log.write(f"run {run_id}\n")
    return run_id


def _wait_for(superlink: str, patience: float, folder: RunFolder) -> None:
    """Until something listens at the address; a run is handed over once."""
    host, _, port = superlink.rpartition(":")
    began, reason = time.monotonic(), ""
    while time.monotonic() - began < patience:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
            return
        except OSError as error:
            if not reason:
                _log.warning("the SuperLink %s is waited for (%s)", superlink, error)
            reason = str(error)
            time.sleep(1.0)
    raise EngineError(
        f"the SuperLink {superlink} does not answer within {patience:g} s (run.patience): "
        f"{reason}; start it, then csg resume {folder.path}"
    )


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0
