"""Flower's commands, and the app that they bundle: the code itself is installed on all machines."""

import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tomli_w

from federation.recipe import RecipeError
from server.outcome import RunError

_ANSWER_S = 60.0
CONNECTION = "csg"  # the SuperLink's name in Flower's configuration

# A module each, so that a client needs nothing of the server, and the server nothing of a client.
_APP = """\
from {module} import {name} as app

__all__ = ["app"]
"""


class EngineError(RunError):
    """Flower could not run something; the message says why."""


def environment_of(scratch: Path) -> dict[str, str]:
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


def script(name: str) -> str:
    """A command that was installed beside this Python."""
    beside = sysconfig.get_path("scripts")
    found = shutil.which(name, path=f"{beside}{os.pathsep}{os.defpath}")
    if found is None:
        raise EngineError(f"{name} is not in {beside}; install csg-fl there with its dependencies")
    return found


def connect(scratch: Path, address: str, ca: str | None = None) -> None:
    """Name the SuperLink at ``address`` in Flower's configuration in ``scratch``.

    ``ca`` is the file of the certificate that proves it; without, the connection is not encrypted.
    """
    link = {"root-certificates": ca} if ca else {"insecure": True}
    content = {"superlink": {CONNECTION: {"address": address, **link}}}
    (scratch / "flwr" / "config.toml").write_text(tomli_w.dumps(content), "utf-8")


def write_app(path: Path, client: str, server: str, config: dict[str, Any]) -> None:
    """Write an app that Flower can bundle, of installed apps named ``module:name``.

    Raises:
        RecipeError: if a name cannot be one.
    """
    for what, place in (("client", client), ("server", server)):
        module, _, name = place.partition(":")
        if not module or not name.isidentifier():
            raise RecipeError(f"run.client_app {place!r}: give module:name")
        path.mkdir(parents=True, exist_ok=True)
        (path / f"csg_{what}.py").write_text(_APP.format(module=module, name=name))
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
                        "serverapp": "csg_server:app",
                        "clientapp": "csg_client:app",
                    },
                    "config": config,
                }
            }
        },
    }
    (path / "pyproject.toml").write_text(tomli_w.dumps(project), "utf-8")


def start_run(
    app: Path, environment: dict[str, str], *options: str, before: Sequence[str] = ()
) -> str:
    """Hand an app to the SuperLink; the id of its run.

    Raises:
        EngineError: if the SuperLink does not answer, or refuses the app.
    """
    answer = flwr(["run", str(app), CONNECTION, *options], environment, before)
    if not answer.get("run-id"):
        raise EngineError(f"Flower refused the run: {reason_in(answer)}")
    return str(answer["run-id"])


def run_of(run_id: str, environment: dict[str, str], before: Sequence[str] = ()) -> tuple[str, str]:
    """The status of a run, and Flower's details of it.

    Raises:
        EngineError: if the SuperLink does not answer, or does not know the run.
    """
    answer = flwr(["ls", CONNECTION, "--run-id", run_id], environment, before)
    runs = answer.get("runs")
    if not runs:
        raise EngineError(reason_in(answer))
    return str(runs[0]["status"]), str(runs[0].get("status-details") or "")


def reason_in(answer: dict[str, Any]) -> str:
    """Flower's reason for a failure, in one line."""
    lines = str(answer.get("error-message", answer)).strip().splitlines()
    return lines[-1] if lines else "no reason given"


def flwr(
    arguments: list[str], environment: dict[str, str], before: Sequence[str] = ()
) -> dict[str, Any]:
    """What ``flwr`` answers, as JSON; ``before`` goes before the command, to enter a namespace.

    Raises:
        EngineError: if it gives no answer.
    """
    command = [*before, script("flwr"), *arguments, "--format", "json"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True,
                              check=False, timeout=_ANSWER_S)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise EngineError(f"flwr {arguments[0]}: no answer within {_ANSWER_S:g} s") from None
    start = done.stdout.find("{")
    try:
        content = json.loads(done.stdout[start:])
    except ValueError:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise EngineError(f"flwr {arguments[0]}: {reason[-1] if reason else 'no answer'}") from None
    return content if isinstance(content, dict) else {}
