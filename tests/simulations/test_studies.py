"""The commands behind the figures of the docs run, and say what they measured."""

import json
import sys

import pytest

from simulations.studies import any_cnn, central


@pytest.mark.slow
def test_the_central_study_writes_results_table_and_picture(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(central, "RESULTS", tmp_path)
    arms = ["--arms", "csg-fan_in-fp32"]
    run = ["study", "--data", "digits", "--copy", "digits", "--epochs", "1", "--seeds", "1", *arms]
    monkeypatch.setattr(sys, "argv", run)
    central.main()
    result = json.loads((tmp_path / "csg-fan_in-fp32-seed0.json").read_text())
    assert result["parameters"] == 115_426
    assert result["settings"]["precision"] == "fp32"
    assert result["data"] == "digits"
    assert len(result["epochs"]) == 1
    assert (tmp_path / "accuracy.svg").stat().st_size > 1000
    first = capsys.readouterr().out
    assert "| csg-fan_in-fp32 | 115,426 | 1 |" in first
    assert " ± " not in first, "of one seed there is no deviation"
    monkeypatch.setattr(sys, "argv", [*run, "--epochs", "2"])
    with pytest.raises(SystemExit, match="is of other settings; remove it to run these"):
        central.main()
    monkeypatch.setattr(sys, "argv", ["study"])  # from the files alone, nothing trained again
    central.main()
    again = capsys.readouterr().out
    assert "epoch 1: " not in again
    assert again.strip() in first


def test_the_central_studys_arms_are_in_the_precision_they_are_named_after(tmp_path):
    for arm, what in central.ARMS.items():
        assert what.precision == ("fp32" if arm.endswith("fp32") else "bf16")
    kept = [json.loads(path.read_text()) for path in sorted(central.RESULTS.glob("*.json"))]
    rows = central.table(kept).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [
        arm for arm in central.ARMS if any(result["arm"] == arm for result in kept)
    ]
    assert len(rows) > 3
    central.draw(kept, tmp_path / "accuracy.svg")
    picture = (tmp_path / "accuracy.svg").read_text()
    assert picture.count("<path") > 8


def test_the_central_study_without_results_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(central, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["study"])
    with pytest.raises(SystemExit, match="no results yet; name the images with --data"):
        central.main()


@pytest.mark.slow
def test_the_any_cnn_study_prints_a_report(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study", "--show", "shufflenet_v2_x1_0"])
    any_cnn.main()
    printed = capsys.readouterr().out
    assert "36 convolutions generated, 20 left" in printed
    assert "groups; only ungrouped convolutions can be generated" in printed
