"""The study of growth measures runs, and its table says what it measured."""

import sys

import pytest

from simulations.studies import growth
from simulations.studies.measured import measured


def test_a_command_is_measured_with_all_its_processes():
    child = "import time; x = bytearray(60_000_000); time.sleep(2.5)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print(1)"
    done = measured(["-c", script])
    assert (done.status, done.output) == (0, "1\n")
    assert done.seconds > 2.5
    assert done.peak_bytes > 60_000_000


@pytest.mark.slow
def test_a_run_has_seconds_of_training_and_memory():
    settings = ("model.width=0.25", "model.slice_size=4", "model.code_size=12",
                "data.name=digits", "data.clients=4", "train.precision=fp32")  # fmt: skip
    found = growth.measure(settings)
    assert 0 < found["training"] < found["seconds"]
    assert found["peak_mb"] > 100
    lines = growth.table({"clients": {"4": found}}).splitlines()
    assert lines[2].startswith("| clients | 4 | ")


def test_without_results_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "RESULTS", tmp_path / "growth.json")
    monkeypatch.setattr(sys, "argv", ["growth"])
    with pytest.raises(SystemExit, match="no results yet; name the images with --data"):
        growth.main()
