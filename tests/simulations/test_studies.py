"""The commands behind the figures of the docs run, and say what they measured."""

import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from client.job import TrainingError
from federation.code import CodeError
from server.flower_cli import EngineError
from server.outcome import RunError
from simulations import command
from simulations.bench import tasks
from simulations.command import StudyError
from simulations.pages import fill
from simulations.studies import any_cnn, central, codecs, deployment, soak, wire, wire_tables
from simulations.studies.network import Network
from simulations.studies.wire_runs import MeasureError


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
    with pytest.raises(StudyError, match="is of other settings than --epochs 2; remove it"):
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


def test_the_central_study_trains_nothing_beside_results_of_other_settings(tmp_path, monkeypatch):
    kept = json.loads((central.RESULTS / "dense-seed0.json").read_text())
    monkeypatch.setattr(central, "RESULTS", tmp_path)
    monkeypatch.setattr(central, "train_centrally", lambda *_: pytest.fail("it was trained"))
    (tmp_path / "dense-seed0.json").write_text(json.dumps(kept))
    wanted = "dense-seed0.json is of other settings than --epochs 1; remove it"
    run = ["study", "--data", "digits", "--epochs", "1", "--seeds", "1", "--arms", "csg-paper"]
    monkeypatch.setattr(sys, "argv", run)
    with pytest.raises(StudyError, match=wanted):
        central.main()
    first = {**kept, "arm": "csg-paper", "epochs": kept["epochs"][:1],
             "settings": {**kept["settings"], "epochs": 1}}  # fmt: skip
    (tmp_path / "csg-paper-seed0.json").write_text(json.dumps(first))
    monkeypatch.setattr(sys, "argv", ["study"])
    with pytest.raises(StudyError, match=wanted):
        central.main()


def test_the_central_study_without_results_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(central, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["study"])
    with pytest.raises(StudyError, match="no results yet; name the images with --data"):
        central.main()


@pytest.mark.slow
def test_the_any_cnn_study_prints_a_report(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study", "--show", "shufflenet_v2_x1_0"])
    any_cnn.main()
    printed = capsys.readouterr().out
    assert "36 convolutions generated, 20 left" in printed
    assert "groups; only ungrouped convolutions can be generated" in printed


@pytest.mark.parametrize(
    "error",
    [
        RunError,
        EngineError,
        MeasureError,
        TrainingError,
        CodeError,
        StudyError,
        ValueError,
        OSError,
    ],
)
def test_what_a_study_cannot_do_is_one_line(error):
    def failing():
        raise error("no round since round 3")

    with pytest.raises(SystemExit) as ended:
        command.run(failing)
    assert ended.value.code == "test_studies: no round since round 3"


def test_an_interrupted_study_says_so(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        command.run(interrupted)
    assert ended.value.code == 130
    assert capsys.readouterr().err == "test_studies: interrupted\n"


def test_a_bug_of_a_study_is_shown_whole():
    def failing():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        command.run(failing)


@pytest.mark.parametrize(
    ("outcome", "rounds", "growth", "said"),
    [
        ("stopped: no quorum", [1], 0.0, r"stopped: no quorum, with rounds \[1\]; see "),
        ("completed", list(range(1, 101)), 2e5, r"bytes a round .*: \{'server': 200000\.0\}; see "),
    ],
)
def test_a_verdict_of_the_soak_study_is_one_line(
    tmp_path, monkeypatch, outcome, rounds, growth, said
):
    found = {"outcome": outcome, "rounds": rounds, "memory": {"server": {"growth": growth}}}
    monkeypatch.setattr(soak, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(soak.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(soak, "Deployment", lambda *_, **__: nullcontext())
    monkeypatch.setattr(soak, "Soak", lambda *_: SimpleNamespace(run=lambda: None))
    monkeypatch.setattr(soak, "summary", lambda *_: found)
    monkeypatch.setattr(sys, "argv", ["soak", "--rounds", "100"])
    with pytest.raises(SystemExit) as ended:
        command.run(soak.main)
    assert re.fullmatch(rf"soak: {said}{tmp_path}/soak-csg-\w+", str(ended.value.code))
    assert not (tmp_path / "results").exists()


class _Deployment:
    """Has written a log; no host is made."""

    def __init__(self, folder, **_):
        self.folder = folder

    def __enter__(self):
        (self.folder / "logs").mkdir()
        (self.folder / "logs" / "superlink.log").write_text("out of disk")
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("error", [EngineError, MeasureError, RunError, TimeoutError])
def test_logs_of_an_arm_that_was_not_measured_are_kept(tmp_path, monkeypatch, error):
    def failing(*_):
        raise error("Flower refused the run: no reason given")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wire, "FILE", tmp_path / "results" / "resnet56.json")
    monkeypatch.setattr(wire, "Deployment", _Deployment)
    monkeypatch.setattr(wire, "_traced", lambda *_: nullcontext())
    monkeypatch.setattr(wire, "plain", failing)
    monkeypatch.setattr(sys, "argv", ["wire", "--arms", "plain Flower"])
    wanted = (
        "wire: plain Flower: Flower refused the run: no reason given; see runs/wire-failed/logs"
    )
    with pytest.raises(SystemExit, match=f"^{wanted}$"):
        command.run(wire.main)
    assert Path("runs/wire-failed/logs/superlink.log").read_text() == "out of disk"
    assert not (tmp_path / "results").exists()


def test_an_arm_of_cifar_without_its_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(wire, "FILE", tmp_path / "results" / "resnet56.json")
    monkeypatch.setattr(sys, "argv", ["wire", "--arms", "cifar10-compressed, CIFAR-10, HTTP/2"])
    with pytest.raises(StudyError, match="needs CIFAR-10; name its folder with --data"):
        wire.main()


def test_bytes_at_the_interface_are_near_those_of_what_was_measured():
    deployed = [name for name, arm in wire.ARMS.items() if arm.over == "HTTP/2" and not arm.images]
    results = json.loads(wire_tables.FILE.read_text())["results"]
    assert len(deployed) > 5
    for name in deployed:
        found = results[name]
        payload = found["payload_up"] + found["payload_down"]
        sent = found["client_wire_up"] + found["wire_down"]
        shown = wire_tables.interface_kilobytes(payload)
        assert 1e3 * float(shown.replace(",", "")) == pytest.approx(sent, rel=0.05)
    assert wire_tables.interface_kilobytes(3000.0).startswith("≈ ")


@pytest.mark.parametrize(
    ("study", "rounds", "least"),
    [(soak, "0", 1), (soak, "x", 1), (tasks, "1", 2), (tasks, "-3", 2)],
)
def test_rounds_that_cannot_be_are_refused(study, rounds, least, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study", "--rounds", rounds])
    with pytest.raises(SystemExit):
        study._options()
    assert f"'{rounds}' is no whole number from {least} on" in capsys.readouterr().err


def test_a_deployment_says_why_there_are_no_keys(tmp_path):
    there = deployment.Deployment(tmp_path, secure=True, network=Network(2))
    (tmp_path / "keys").write_text("")
    with pytest.raises(RunError, match=r"^keys make: .*keys") as caught:
        there._keys("make", "--host", "127.0.0.1", "--clients", "2")
    assert "\n" not in str(caught.value)


def test_the_page_of_codecs_shows_what_was_kept(tmp_path):
    page = tmp_path / "codecs.md"
    page.write_text(codecs.PAGE.read_text())
    kept = json.loads(codecs.RESULTS.read_text())
    assert list(kept["codecs"]) == list(codecs.LINES)
    assert list(kept["arms"]) == codecs.arms()
    fill(codecs.tables(kept), page)
    assert page.read_text() == codecs.PAGE.read_text()


@pytest.mark.slow
def test_a_payload_of_resnet56_takes_less_than_50_ms():
    found = codecs._of_arm("csg56-small-clip-momentum-ecsq-predict", repeats=3)
    assert found["up"]["bytes"] + found["down"]["bytes"] < 30_000
    for way in ("up", "down"):
        assert found[way]["encode_ms"] + found[way]["decode_ms"] < 50
