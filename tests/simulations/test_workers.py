"""Clients in worker processes: the same bits as in one process, and nothing left behind."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from server.outcome import RunError
from server.record import RunFolder
from server.state import load_state
from simulations.local_engine import run_local, worker_count
from simulations.processes import marked, wait_until

pytestmark = pytest.mark.slow

LOSSY = {"uplink": "ecsq:step=1", "downlink": "ecsq:step=1", "deltas": True}
# Notes the process that each client trains in; partition 1 does what $TROUBLE says in round 2.
CLIENT_APP = """
import logging
import os
import time
from pathlib import Path

from flwr.clientapp import ClientApp

from client.app import make_app

app, real = ClientApp(), make_app()


@app.train()
def train(message, context):
    partition = context.node_config["partition-id"]
    with (Path(os.environ["NOTES"]) / f"{partition}").open("a") as note:
        note.write(f"{os.getpid()}\\n")
    if os.environ.get("TOGETHER"):  # two clients at least train at the same time
        until = time.monotonic() + 60
        while len(list(Path(os.environ["NOTES"]).glob("[0-9]"))) < 2 and time.monotonic() < until:
            time.sleep(0.05)
    trouble = os.environ.get("TROUBLE")
    if trouble and partition == 1 and message.content["message"]["server-round"] == 2:
        if trouble == "raises":
            raise OSError("the disk is gone")
        if trouble == "hangs":
            (Path(os.environ["NOTES"]) / "hanging").touch()
            time.sleep(600)
        os._exit(9)
    return real(message, context)
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a recipe in a folder of its own; the folder, the last state and the processes."""
    (tmp_path / "noting.py").write_text(CLIENT_APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NOTES", str(tmp_path))

    def go(recipe, name="run"):
        more = {"dir": str(tmp_path / name), "client_app": "noting:app"}
        recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update=more)})
        folder = RunFolder(tmp_path / name)
        folder.create(recipe, {}, [])
        run_local(recipe, lambda _row: None)
        state = load_state(folder.checkpoints, recipe.model, recipe.train.travelling())
        clients = range(recipe.data.clients)
        return folder, state, _processes(tmp_path, clients)

    return go


@pytest.mark.parametrize("wire", [{}, LOSSY], ids=["floats", "what clients keep goes along"])
def test_workers_come_to_the_same_bits_as_one_process(tiny, run, wire, monkeypatch):
    _, alone, here = run(tiny(wire=wire), "alone")
    monkeypatch.setenv("TOGETHER", "yes")
    _, shared, there = run(tiny(wire=wire, run={"workers": 3}), "shared")
    assert here == {os.getpid()}
    assert 1 < len(there) <= 3
    assert os.getpid() not in there
    assert np.array_equal(alone.values, shared.values)
    assert {n: a.tobytes() for n, a in alone.clients.items()} == {
        n: a.tobytes() for n, a in shared.clients.items()
    }
    assert not [pid for pid in there if _alive(pid)]


def test_workers_need_nothing_that_a_run_before_left_in_the_process(tmp_path, tiny_settings):
    settings = [*tiny_settings, "--set", "run.workers=2", "--set", f"run.dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "simulations.cli", "run", "demo", *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(RunFolder(tmp_path / "run").rows()) == 2


def test_a_client_that_raises_or_hangs_in_a_worker_is_named(tiny, run, monkeypatch, caplog):
    monkeypatch.setenv("TROUBLE", "raises")
    folder, _, _ = run(tiny(run={"workers": 2}), "raises")
    assert folder.rows()[1].failed == {"client 1": "raised OSError: the disk is gone"}
    assert "client 1 raised" in caplog.text
    assert "the disk is gone" in caplog.text
    monkeypatch.setenv("TROUBLE", "hangs")
    began = time.monotonic()
    folder, _, _ = run(tiny(run={"workers": 2}, server={"round_timeout": 20.0}), "hangs")
    assert folder.rows()[1].failed == {"client 1": "did not answer within 20 s"}
    assert time.monotonic() - began < 200


def test_a_worker_that_dies_ends_the_run_in_one_line(tiny, run, monkeypatch):
    monkeypatch.setenv("TROUBLE", "dies")
    with pytest.raises(RunError, match=r"a worker process ended .* lower run.workers"):
        run(tiny(run={"workers": 2}))


def test_an_interrupt_leaves_no_worker(tiny, run, tmp_path, monkeypatch):
    monkeypatch.setenv("TROUBLE", "hangs")

    def interrupt(_number, _frame):
        raise KeyboardInterrupt

    over = threading.Event()

    def once_it_hangs():
        while not (tmp_path / "hanging").exists():
            if over.wait(0.1):
                return
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    watching = threading.Thread(target=once_it_hangs)
    watching.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tiny(run={"workers": 2}))
    finally:
        over.set()
        watching.join()
        signal.signal(signal.SIGUSR1, before)
    assert (tmp_path / "hanging").exists()
    started = _processes(tmp_path, range(4))
    assert started
    assert not [pid for pid in started if _alive(pid)]


def test_workers_end_with_a_run_that_is_killed(tmp_path, tiny_settings):
    settings = [*tiny_settings, "--set", "run.workers=2", "--set", f"run.dir={tmp_path / 'run'}",
                "--set", "train.rounds=1000"]  # fmt: skip
    command = [sys.executable, "-m", "simulations.cli", "run", "demo", *settings]
    mark = f"CSG_TEST={tmp_path}"
    with (tmp_path / "log").open("w") as log:
        environment = {**os.environ, "CSG_TEST": str(tmp_path)}
        started = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: len(RunFolder(tmp_path / "run").rows()) > 0, "no round is done", 120)
        assert len([*marked(mark)]) > 2
    finally:
        started.kill()
        started.wait()
    wait_until(lambda: not any(marked(mark)), "workers are still there")


def test_there_are_no_more_workers_than_clients_of_a_round(tiny):
    assert worker_count(tiny(run={"workers": 9}, train={"clients_per_round": 2})) == 2
    assert worker_count(tiny()) == 1


def _processes(folder, clients):
    """The processes that clients trained in, and nothing of it left for the next run."""
    notes = [folder / str(number) for number in clients if (folder / str(number)).exists()]
    found = {int(line) for note in notes for line in note.read_text().split()}
    for note in notes:
        note.unlink()
    return found


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
