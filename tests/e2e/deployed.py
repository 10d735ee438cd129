"""A run on a deployment in network namespaces, for tests of its faults.

A run goes on, or stops with one clear line, within its round timeout; the record says what
happened, and nothing is lost.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Callable

import pytest

from server.record import RunFolder
from server.rows import RoundRow
from server.state import load_state
from simulations.studies.deployment import Deployment

needs_namespaces = [
    pytest.mark.deployment,
    pytest.mark.skipif(
        os.geteuid() != 0
        or not all(shutil.which(name) for name in ("ip", "ethtool", "/usr/sbin/nginx")),
        reason="network namespaces and proxy need root, iproute2, ethtool and nginx, as in .ci/run",
    ),
]

# The real ClientApp, which says when it trains, and takes as long as $APP/seconds-PARTITION says.
CLIENT_APP = """
import os
import time
from pathlib import Path

from flwr.clientapp import ClientApp

from client.app import make_app

app, real = ClientApp(), make_app()
place = Path(os.environ["APP"])


@app.train()
def train(message, context):
    partition = context.node_config["partition-id"]
    round_ = message.content["message"]["server-round"]
    (place / f"training-{partition}-{round_}").touch()
    seconds = place / f"seconds-{partition}"
    if seconds.exists():
        time.sleep(float(seconds.read_text()))
    if os.environ.get("OTHER_RECIPE"):
        key = "recipe"
        context.run_config[key] = context.run_config[key].replace('"width":0.25', '"width":0.5')
    return real(message, context)
"""


class Run:
    """A run on a deployment, of the command ``csg``."""

    def __init__(self, deployment: Deployment, *values: str, rounds: int) -> None:
        self.deployment = deployment
        self.folder = RunFolder(deployment.folder / f"run-{time.monotonic_ns()}")
        clients = len(deployment.clients)
        common = ["model.width=0.25", "model.slice_size=4", "model.code_size=12",
                  "train.precision=fp32", "train.batch_size=128", "wire.deltas=true",
                  f"data.clients={clients}", f"train.rounds={rounds}", "server.min_clients=1",
                  "server.round_timeout=150", "run.client_app=deployed:app",
                  f"run.dir={self.folder.path}"]  # fmt: skip
        options = [part for value in [*common, *values] for part in ("--set", value)]
        self._began = time.monotonic()
        self._csg = deployment.csg("run", "demo", *deployment.settings, *options)

    def resume(self) -> "Run":
        self._began = time.monotonic()
        self._csg = self.deployment.csg("resume", str(self.folder.path))
        return self

    def await_round(self, round_: int, seconds: float = 240) -> None:
        """Wait until a round is recorded."""
        self.wait_for(lambda: any(row.round >= round_ for row in self.folder.rows()), seconds)

    def await_training(self, partition: int, round_: int) -> None:
        """Wait until a client trains in a round."""
        place = self.deployment.folder / f"training-{partition}-{round_}"
        self.wait_for(place.exists, 240)

    def wait_for(self, condition: Callable[[], bool], seconds: float) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if self._csg.poll() is not None and not condition():
                raise AssertionError("csg has ended: " + "".join(self._csg.communicate()))
            assert time.monotonic() < until, f"not within {seconds} s; {self.deployment.folder}"
            time.sleep(0.2)

    def end(self, seconds: float = 300) -> tuple[int, str, str]:
        """Exit status, output and errors."""
        try:
            out, err = self._csg.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._csg.kill()
            raise
        took = time.monotonic() - self._began
        print(f"{self.deployment.folder.name}: status {self._csg.returncode} in {took:.0f} s")
        for row in self.folder.rows():
            print(f"  round {row.round}, {row.clients} clients, {row.seconds:.0f} s, {row.failed}")
        print(err)
        return self._csg.returncode, out, err

    def completed(self) -> list[RoundRow]:
        """The rows of a run that has to end well, with every round once and a whole model."""
        status, _, err = self.end()
        assert status == 0, err
        rows, recipe = self.folder.rows(), self.folder.recipe()
        assert [row.round for row in rows] == list(range(1, recipe.train.rounds + 1))
        state = load_state(self.folder.checkpoints, recipe.model, recipe.train.travelling())
        assert state.round == recipe.train.rounds
        assert self.folder.summary()["outcome"] == "completed"
        return rows

    def stopped(self) -> str:
        """The one line of a run that has to stop."""
        status, _, err = self.end()
        assert status == 1
        assert err.count("\n") == 1, err
        return err


def slow_down(deployment: Deployment, partition: int, seconds: float) -> None:
    """Let a client's training take some seconds more, from its next on."""
    (deployment.folder / f"seconds-{partition}").write_text(str(seconds))
