"""Faults of the servers of a deployed run, and of all parts at random, done to real processes."""

import time

from simulations.studies.deployment import PROXY, SERVER, SUPERLINK
from simulations.studies.soak import soak
from tests.e2e.deployed import Run, needs_namespaces, slow_down

pytestmark = needs_namespaces


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
    deployment = deploy(secure=True)
    run = Run(deployment, "run.patience=20", rounds=4)
    run.await_round(1)
    deployment.kill(SUPERLINK)
    line = run.stopped()
    assert "the SuperLink 127.0.0.1:8000 is gone for" in line
    assert f"Start it again, then csg resume {run.folder.path} goes on after round" in line
    for path in deployment.folder.glob("state.db*"):
        path.unlink()  # of the runs and nodes nothing is known any more
    deployment.start(SUPERLINK)
    deployment.register()
    for name in deployment.clients:
        deployment.terminate(name)
        deployment.start(name)
    rows = run.resume().completed()
    assert not any(row.failed for row in rows[2:])


def test_a_server_side_killed_is_resumed_with_clients_still_up(deploy):
    deployment = deploy()
    slow_down(deployment, 1, 5)
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


def test_a_dozen_rounds_of_faults_at_random(tmp_path):
    kept = soak(12, 2, tmp_path)
    assert kept["rounds"] == list(range(1, 13))
    assert kept["faults"]
    assert all(of["largest"] < 2e9 for of in kept["memory"].values())
