"""Faults of a deployed run, each done to real processes in network namespaces.

A run goes on, or stops with one clear line, within its round timeout; the record says what
happened, and nothing is lost.
"""

import os
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from server.nodes import PROBE_S
from server.record import RoundRow, RunFolder
from server.state import load_state
from simulations.studies.deployment import PROXY, SERVER, SUPERLINK, Deployment

pytestmark = [
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


@pytest.fixture
def deploy(tmp_path):
    """Bring up a deployment, with the ClientApp above; it goes down after the test."""
    up = []

    def bring_up(**options) -> Deployment:
        (tmp_path / "deployed.py").write_text(CLIENT_APP)
        environments = options.pop("environments", {})
        names = [f"client-{number}" for number in range(options.get("clients", 2))]
        for name in [*names, "csg", SERVER]:
            environments[name] = {"APP": str(tmp_path), **environments.get(name, {})}
        up.append(Deployment(tmp_path, environments=environments, **options))
        return up[-1].__enter__()

    yield bring_up
    for deployment in up:
        deployment.__exit__()


def _slow(deployment: Deployment, partition: int, seconds: float) -> None:
    (deployment.folder / f"seconds-{partition}").write_text(str(seconds))


def test_a_client_killed_in_mid_training_is_named_and_comes_back_as_another_node(deploy):
    deployment = deploy()
    _slow(deployment, 1, 5)
    run = Run(deployment, rounds=4)
    run.await_training(1, 2)
    before = deployment.node_ids["client-1"]
    deployment.restart("client-1")
    assert deployment.node_ids["client-1"] != before
    rows = run.completed()
    assert rows[1].failed == {"client 1": "lost its connection (no heartbeat)"}
    assert rows[1].seconds < 100
    assert [sorted(c["partition"] for c in row.contributions) for row in rows[2:]] == [[0, 1]] * 2
    assert not rows[3].failed


def test_a_client_that_keeps_its_key_is_the_same_node_again(deploy):
    """Flower lets it back in only when it takes the killed process for gone."""
    deployment = deploy(secure=True)
    _slow(deployment, 1, 5)
    run = Run(deployment, rounds=4)
    run.await_training(1, 2)
    before = deployment.node_ids["client-1"]
    deployment.restart("client-1")
    assert deployment.node_ids["client-1"] == before
    rows = run.completed()
    requests = deployment.log("requests").read_text().splitlines()
    assert all(re.search(r"POST /v1/fleet/[a-z-]+ HTTP/2.0", line) for line in requests)
    assert len(requests) > 50
    assert list(rows[1].failed) == ["client 1"]
    assert rows[1].seconds < 100
    assert not rows[3].failed, "a client that holds nothing is sent a whole model"
    assert rows[3].clients == 2


def test_a_cut_of_ten_seconds_costs_no_more_than_time(deploy):
    deployment = deploy()
    _slow(deployment, 1, 5)
    run = Run(deployment, rounds=3)
    run.await_training(1, 2)
    deployment.cut("client-1")
    time.sleep(10)
    deployment.restore("client-1")
    rows = run.completed()
    assert [(row.clients, row.failed) for row in rows] == [(2, {})] * 3


def test_a_client_cut_off_for_good_is_done_without(deploy):
    deployment = deploy()
    _slow(deployment, 1, 5)
    run = Run(deployment, rounds=4)
    run.await_training(1, 2)
    deployment.cut("client-1")
    rows = run.completed()
    assert rows[1].failed == {"client 1": "lost its connection (no heartbeat)"}
    assert rows[1].seconds < 100
    assert [(row.clients, row.failed) for row in rows[2:]] == [(1, {})] * 2


def test_a_missing_quorum_ends_the_run_after_the_round_timeout(deploy):
    deployment = deploy()
    _slow(deployment, 1, 5)
    run = Run(deployment, "server.min_clients=2", "server.round_timeout=80", rounds=4)
    run.await_training(1, 2)
    deployment.cut("client-1")
    line = run.stopped()
    assert "round 2: 1 of 2 clients answered usefully, the quorum is 2" in line
    assert "client 1 lost its connection (no heartbeat)" in line
    run.resume()  # with nobody else there
    line = run.stopped()
    assert "round 2: 1 clients are connected after 80 s and the quorum is 2; start more" in line
    deployment.restore("client-1")
    deployment.restart("client-1")
    run.resume().completed()


def test_a_message_that_is_lost_on_its_way_is_sent_again(deploy):
    """As when a connection or the SuperLink breaks while a client is handed its message."""
    deployment = deploy()
    run = Run(deployment, rounds=5)
    run.await_round(1)
    node = deployment.node_ids["client-1"]
    signed = node - 2**64 if node >= 2**63 else node
    taken = (
        "update message_ins set delivered_at = '2026-01-01' "
        f"where dst_node_id = {signed} and delivered_at = '' and message_type = 'train'"
    )
    with closing(sqlite3.connect(deployment.folder / "state.db", timeout=30)) as database:

        def lose() -> bool:
            with database:
                return database.execute(taken).rowcount == 1

        run.wait_for(lose, 120)
    rows = run.completed()
    assert [(row.clients, row.failed) for row in rows] == [(2, {})] * 5
    assert f"node {node} is idle and has not answered" in run.folder.log.read_text()
    assert max(row.seconds for row in rows) > PROBE_S


def test_a_client_beyond_the_round_timeout_fails_and_others_go_on(deploy):
    deployment = deploy()
    _slow(deployment, 1, 60)
    run = Run(deployment, "server.round_timeout=40", rounds=2)
    rows = run.completed()
    assert rows[0].clients == 1
    assert "did not answer within 40 s" in next(iter(rows[0].failed.values()))
    assert all(row.seconds < 50 for row in rows)


def test_a_client_ten_times_slower_is_waited_for(deploy):
    deployment = deploy()
    _slow(deployment, 1, 30)
    rows = Run(deployment, rounds=2).completed()
    assert [(row.clients, row.failed) for row in rows] == [(2, {})] * 2
    slow = [c["seconds"] for row in rows for c in row.contributions if c["partition"] == 1]
    assert len(slow) == 2
    assert all(row.seconds >= 30 for row in rows)


def test_a_superlink_killed_and_restarted_keeps_its_run(deploy):
    deployment = deploy()
    run = Run(deployment, rounds=4)
    run.await_round(1)
    deployment.kill(SUPERLINK)
    time.sleep(5)
    deployment.start(SUPERLINK)
    rows = run.completed()
    assert sum(row.failures for row in rows) <= 2


def test_a_superlink_that_stays_away_is_told_and_resumed_on_a_new_one(deploy):
    deployment = deploy()
    run = Run(deployment, "run.patience=20", rounds=4)
    run.await_round(1)
    deployment.kill(SUPERLINK)
    line = run.stopped()
    assert "the SuperLink 127.0.0.1:8000 is gone for" in line
    assert f"Start it again, then csg resume {run.folder.path} goes on after round" in line
    for path in deployment.folder.glob("state.db*"):
        path.unlink()  # of the runs and nodes nothing is known any more
    deployment.start(SUPERLINK)
    for name in deployment.clients:
        deployment.terminate(name)
        deployment.start(name)
    rows = run.resume().completed()
    assert not any(row.failed for row in rows[2:])


def test_a_server_side_killed_is_resumed_with_clients_still_up(deploy):
    deployment = deploy()
    _slow(deployment, 1, 5)
    run = Run(deployment, rounds=4)
    run.await_training(1, 3)
    nodes = dict(deployment.node_ids)
    deployment.kill(SERVER)
    line = run.stopped()
    assert "the server side ended without a word" in line or "Flower says finished:failed" in line
    before = run.folder.rows()
    deployment.start(SERVER)
    rows = run.resume().completed()
    assert rows[: len(before)] == before
    assert deployment.node_ids == nodes
    assert not any(row.failed for row in rows), "clients without state are sent whole models"


def test_everything_stopped_and_started_again_is_resumed(deploy):
    deployment = deploy(secure=True)
    run = Run(deployment, rounds=4)
    run.await_round(2)
    for name in [SERVER, *deployment.clients, PROXY, SUPERLINK]:
        deployment.terminate(name)
    assert "interrupted after round" in run.stopped()
    before = run.folder.rows()
    for name in deployment.components:
        deployment.start(name, wait=name == SUPERLINK)
    for name in deployment.clients:
        deployment.await_ready(name)
    rows = run.resume().completed()
    assert rows[: len(before)] == before


def test_a_client_that_joins_in_round_five_takes_part(deploy):
    deployment = deploy()
    deployment.terminate("client-1")
    run = Run(deployment, "server.gather_timeout=5", rounds=8)
    run.await_round(4)
    deployment.start("client-1")
    rows = run.completed()
    assert [row.clients for row in rows[:4]] == [1] * 4
    assert rows[-1].clients == 2
    assert not any(row.failed for row in rows)


def test_wrong_certificates_keys_recipes_and_code_are_refused_by_name(deploy, tmp_path):
    other = tmp_path / "other"  # the same code, but for one word
    root = Path(__file__).parents[2]
    for package in ("csg_core", "federation"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / package, other / package, ignore=ignored)
    with (other / "federation" / "messages.py").open("a") as file:
        file.write("# other\n")
    environments = {"client-1": {"OTHER_RECIPE": "1"}, "client-2": {"PYTHONPATH": str(other)}}
    deployment = deploy(clients=3, secure=True, environments=environments)

    deployment.new_identity("client-0", registered=False)
    deployment.terminate("client-0")
    deployment.start("client-0", wait=False)
    assert "Failed to activate SuperNode" in _last_words(deployment, "client-0")
    deployment.identities["client-0"] = "client-0"
    stranger = tmp_path / "stranger"
    deployment.proofs["client-0"] = ["--root-certificates", str(_authority(stranger))]
    deployment.start("client-0", wait=False)
    assert "CERTIFICATE_VERIFY_FAILED" in _last_words(deployment, "client-0")
    del deployment.proofs["client-0"]
    deployment.start("client-0")

    rows = Run(deployment, rounds=2).completed()
    for row in rows:
        assert row.clients == 1
        assert sorted(row.failed) == ["node client-1", "node client-2"]
        assert "of another model" in row.failed["node client-1"]
        assert "raised CodeError: this is csg-fl" in row.failed["node client-2"]
        assert "install the same csg-fl on server and clients" in row.failed["node client-2"]


def _last_words(deployment: Deployment, name: str) -> str:
    """What a client says that ends by itself."""
    deployment.processes[name].wait(60)
    return deployment.log(name).read_text()[-4000:]


def _authority(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "ca.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
         "/CN=stranger", "-keyout", str(folder / "ca.key"), "-out", str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    return path


def test_a_dozen_rounds_of_faults_at_random(tmp_path):
    from simulations.studies.soak import soak

    kept = soak(12, 2, tmp_path)
    assert kept["rounds"] == list(range(1, 13))
    assert kept["faults"]
    assert all(of["largest"] < 2e9 for of in kept["memory"].values())
