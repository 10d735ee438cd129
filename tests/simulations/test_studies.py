"""The commands behind the README's figures run, and say what they measured."""

import json
import sys

import pytest

from simulations import bench
from simulations.studies import any_cnn, central


@pytest.mark.slow
def test_the_central_study_writes_results_table_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(central, "RESULTS", tmp_path)
    arms = ["--arms", "dense-narrow", "csg-fan_in"]
    run = ["study", "--data", "digits", "--copy", "digits", "--epochs", "1", "--seeds", "1", *arms]
    monkeypatch.setattr(sys, "argv", run)
    central.main()
    result = json.loads((tmp_path / "csg-fan_in-seed0.json").read_text())
    assert result["parameters"] == 115_426
    assert result["data"] == "digits"
    assert len(result["epochs"]) == 1
    assert (tmp_path / "accuracy.svg").stat().st_size > 1000
    first = capsys.readouterr().out
    assert "| csg-fan_in | 115,426 | 1 |" in first
    monkeypatch.setattr(sys, "argv", ["study"])  # from the files alone, nothing trained again
    central.main()
    again = capsys.readouterr().out
    assert "epoch 1: " not in again
    assert again.strip() in first


def test_the_central_study_without_results_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(central, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["study"])
    with pytest.raises(SystemExit, match="no results yet; name the images with --data"):
        central.main()


@pytest.mark.slow
def test_the_benchmark_compares_all_arms_in_one_run(tmp_path, monkeypatch, capsys):
    out = tmp_path / "bench.json"
    options = ["--networks", "resnet20", "--precision", "fp32", "--batch-size", "16"]
    monkeypatch.setattr(sys, "argv", ["bench", *options, "--repeats", "5", "--out", str(out)])
    bench.main()
    assert "step / dense step" in capsys.readouterr().out
    (row,) = json.loads(out.read_text())["rows"]
    for kind in ("step_ratio", "evaluation_ratio"):
        assert set(row[kind]) == {"csg", "per-layer", "folded"}
        assert all(0.2 < ratio < 5 for ratio in row[kind].values())
    assert all(megabytes > 10 for megabytes in row["peak_memory_mb"].values())


@pytest.mark.slow
def test_the_any_cnn_study_prints_a_report(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study", "--show", "shufflenet_v2_x1_0"])
    any_cnn.main()
    printed = capsys.readouterr().out
    assert "36 convolutions generated, 20 left" in printed
    assert "groups; only ungrouped convolutions can be generated" in printed
