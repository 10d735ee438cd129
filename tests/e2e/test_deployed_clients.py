"""Faults of the clients of a deployed run, each done to real processes in network namespaces."""

import re
import shutil
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

from server.nodes import PROBE_S
from simulations.studies.deployment import Deployment
from tests.e2e.deployed import Run, needs_namespaces, slow_down

pytestmark = needs_namespaces


def test_a_client_killed_in_mid_training_is_named_and_comes_back_as_another_node(deploy):
    deployment = deploy()
    slow_down(deployment, 1, 5)
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
    slow_down(deployment, 1, 5)
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
    slow_down(deployment, 1, 5)
    run = Run(deployment, rounds=3)
    run.await_training(1, 2)
    deployment.cut("client-1")
    time.sleep(10)
    deployment.restore("client-1")
    rows = run.completed()
    assert [(row.clients, row.failed) for row in rows] == [(2, {})] * 3


def test_a_client_cut_off_for_good_is_done_without(deploy):
    deployment = deploy()
    slow_down(deployment, 1, 5)
    run = Run(deployment, rounds=4)
    run.await_training(1, 2)
    deployment.cut("client-1")
    rows = run.completed()
    assert rows[1].failed == {"client 1": "lost its connection (no heartbeat)"}
    assert rows[1].seconds < 100
    assert [(row.clients, row.failed) for row in rows[2:]] == [(1, {})] * 2


def test_a_missing_quorum_ends_the_run_after_the_round_timeout(deploy):
    deployment = deploy()
    slow_down(deployment, 1, 5)
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
    slow_down(deployment, 1, 60)
    run = Run(deployment, "server.round_timeout=40", rounds=2)
    rows = run.completed()
    assert rows[0].clients == 1
    assert "did not answer within 40 s" in next(iter(rows[0].failed.values()))
    assert all(row.seconds < 50 for row in rows)


def test_a_client_ten_times_slower_is_waited_for(deploy):
    deployment = deploy()
    slow_down(deployment, 1, 30)
    rows = Run(deployment, rounds=2).completed()
    assert [(row.clients, row.failed) for row in rows] == [(2, {})] * 2
    slow = [c["seconds"] for row in rows for c in row.contributions if c["partition"] == 1]
    assert len(slow) == 2
    assert all(row.seconds >= 30 for row in rows)


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
