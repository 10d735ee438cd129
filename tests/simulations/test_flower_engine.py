"""Flower's Simulation Engine runs the same recipe to the same model, and leaves nothing behind."""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from server.record import RunFolder
from server.state import checkpoint_paths, load_state


def _csg(*arguments, cwd):
    command = [sys.executable, "-m", "simulations.cli", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture
def scratch(monkeypatch):
    """Where temporary folders of this test alone go; short, since Ray's sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="e", dir="/tmp") as place:
        monkeypatch.setenv("TMPDIR", place)
        yield Path(place)


def _left_in(scratch) -> set[str]:
    """Folders and processes of Flower's that are left."""
    found = {str(path) for path in scratch.glob("csg-*")}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"FLWR_HOME={scratch}/csg-".encode() in (entry / "environ").read_bytes():
                found.add(f"{entry.name} {(entry / 'cmdline').read_bytes()[:80]!r}")
        except OSError:
            continue
    return found


def _state(path):
    folder = RunFolder(path)
    recipe = folder.recipe()
    return load_state(folder.checkpoints, recipe.model, recipe.train.travelling())


@pytest.mark.slow
def test_both_engines_average_to_the_same_model(tmp_path, scratch, tiny_settings):
    for engine in ("local", "flower"):
        wire = ["wire.uplink=fp16", "wire.downlink=fp16", "wire.deltas=true"]
        more = [f"run.dir={engine}", f"run.engine={engine}", "train.rounds=3", *wire]
        settings = [*tiny_settings, *(part for value in more for part in ("--set", value))]
        done = _csg("run", "demo", *settings, cwd=tmp_path)
        assert done.returncode == 0, done.stderr + (tmp_path / engine / "run.log").read_text()
        assert "round 3/3" in done.stdout
    local, flower = (_state(tmp_path / engine) for engine in ("local", "flower"))
    assert local.round == flower.round == 3
    np.testing.assert_allclose(local.values, flower.values, rtol=1e-4, atol=1e-4)
    rows = [RunFolder(tmp_path / engine).rows() for engine in ("local", "flower")]
    assert [row.payload_bytes_up for row in rows[0]] == [row.payload_bytes_up for row in rows[1]]
    assert not _left_in(scratch)


@pytest.mark.slow
def test_a_run_resumed_ends_as_one_that_was_not_interrupted(tmp_path, scratch, tiny_settings):
    """Its clients go back to what their codec left out by the round that it goes on from."""
    more = ["--set", "wire.uplink=ternary", "--set", "train.lr_schedule=constant"]
    for name, engine, rounds in (("whole", "local", 4), ("parts", "flower", 3)):
        own = [f"run.dir={name}", f"run.engine={engine}", f"train.rounds={rounds}"]
        settings = [*tiny_settings, *more, *(part for value in own for part in ("--set", value))]
        done = _csg("run", "demo", *settings, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    *_, second, third = checkpoint_paths(tmp_path / "parts" / "checkpoints")
    assert second.exists()
    third.unlink()  # as if the run had ended before that was written
    config = tmp_path / "parts" / "config.toml"
    config.write_text(config.read_text().replace("rounds = 3\n", "rounds = 4\n"))
    done = _csg("resume", "parts", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "round 3/4" in done.stdout
    whole, parts = (_state(tmp_path / name) for name in ("whole", "parts"))
    assert whole.round == parts.round == 4
    np.testing.assert_allclose(parts.values, whole.values, rtol=1e-4, atol=1e-4)
    losses = [[row.test_loss for row in RunFolder(tmp_path / n).rows()] for n in ("whole", "parts")]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)
    assert len(list((tmp_path / "parts" / "clients").iterdir())) == 4
    assert not _left_in(scratch)


@pytest.mark.slow
def test_a_failed_run_is_passed_on_and_cleaned_up(tmp_path, scratch, tiny_settings):
    (tmp_path / "failing.py").write_text(
        "from flwr.clientapp import ClientApp\n"
        "app = ClientApp()\n"
        "@app.train()\n"
        "def train(message, context):\n"
        "    raise OSError('the camera is gone')\n"
    )
    settings = [*tiny_settings, "--set", "run.dir=run", "--set", "run.engine=flower",
                "--set", "run.client_app=failing:app"]  # fmt: skip
    done = _csg("run", "demo", *settings, cwd=tmp_path)
    assert done.returncode == 1
    assert "Flower says finished:failed: round 1: 0 of 4 clients answered usefully" in done.stderr
    assert "the camera is gone" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not _left_in(scratch)


@pytest.mark.slow
def test_sigterm_leaves_nothing_running(tmp_path, scratch, tiny_settings):
    settings = [*tiny_settings, "--set", "run.dir=run", "--set", "run.engine=flower",
                "--set", "train.rounds=500"]  # fmt: skip
    command = [sys.executable, "-m", "simulations.cli", "run", "demo", *settings]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    folder, until = RunFolder(tmp_path / "run"), time.monotonic() + 300
    while not folder.rows() and time.monotonic() < until:
        time.sleep(0.2)
    assert folder.rows()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert not _left_in(scratch)
    done = _csg("export", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
