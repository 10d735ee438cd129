"""Runs side by side, and what is said of runs whose files are not as they should be."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from server.record import RunFolder, RunFolderError
from server.rows import RoundRow
from server.summary import summary_of
from simulations import machine, plots
from simulations.cli import main
from simulations.curves import read_run, read_runs
from simulations.progress import Progress, megabytes
from simulations.report import page
from simulations.run import _made

ROW = RoundRow(
    round=1, clients=1, failures=0, train_loss=2.0, test_loss=1.5, test_accuracy=0.3,
    payload_bytes_up=1_000_000, payload_bytes_down=2_000_000, seconds=1.0,
    contributions=[{"partition": 0, "examples": 9, "loss_before": 2.0, "loss_after": 1.0,
                    "seconds": 0.5}],
)  # fmt: skip


@pytest.fixture
def made(tiny, tmp_path):
    """Makes a run's folder of its rows' accuracies."""

    def make(name, *accuracies):
        folder = RunFolder(tmp_path / name)
        folder.create(tiny(), {}, [[5, 4]])
        for number, accuracy in enumerate(accuracies, start=1):
            folder.append(replace(ROW, round=number, test_accuracy=accuracy))
        return folder

    return make


def test_a_folder_of_runs_stands_for_them_and_names_tell_them_apart(made, tmp_path, capsys):
    made("a/csg", 0.5), made("a/dense", 0.6), made("b/csg", 0.7)
    picture = tmp_path / "new" / "c.svg"
    folders = [str(tmp_path / name) for name in ("a", "b/csg")]
    assert main(["compare", *folders, "--to", "0.6", "0.6", "0.65", "--picture", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:5]] == ["a/csg", "dense", "b/csg"]
    assert {line.count("|") for line in lines[:5]} == {10}
    assert lines[2].endswith("| 1 | not finished |")
    assert "| not reached | not reached |" in lines[2]
    assert "| 3.0 MB, round 1 | not reached |" in lines[3]
    assert lines[5] == f"picture: {picture}"
    assert picture.read_text().count("dense") == 1


def test_a_run_named_twice_is_shown_once_where_it_was_named_first(made, tmp_path, capsys):
    made("a", 0.5), made("b", 0.6)
    folders = [str(tmp_path / "b"), str(tmp_path), str(tmp_path / "b")]
    assert main(["compare", *folders, "--picture", str(tmp_path / "c.svg")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["b", "a"]
    assert lines[4].startswith("picture")


def test_an_accuracy_of_an_earlier_round_than_the_last_names_it(made, tiny, capsys):
    folder = made("stopped", 0.5, None)
    folders = [str(folder.path), str(made("ended", None, 0.6).path)]
    assert main(["compare", *folders, "--picture", str(folder.path / "c.svg")]) == 0
    shown = [line.split("|")[3].strip() for line in capsys.readouterr().out.splitlines()[2:4]]
    assert shown == ["50.00 % (round 1)", "60.00 %"]
    assert "<td>50.00 % (round 1)</td>" in page(read_runs([folder.path]))
    folder.write_summary(summary_of(folder.rows(), "interrupted", (1, 1)))
    Progress(tiny(), folder.rows(), sys.stdout).end(folder)
    assert "accuracy 50.00 % in round 1, best 50.00 % in round 1\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--to", "0.9", "RUN"], "'RUN' is no number; give the runs first, then --to 0.6 0.7"),
        (["RUN", "--to", "90"], "90: give fractions of 1, as 0.75"),
    ],
)
def test_a_mistake_is_named_before_anything_is_read(options, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["compare", *options])
    assert said in capsys.readouterr().err


def test_of_several_runs_those_without_a_round_are_left_out(made, tmp_path, capsys, caplog):
    folders = [str(made(name, *accuracies).path) for name, accuracies in
               (("a", [0.5]), ("begun", []))]  # fmt: skip
    made("a2", 0.6).write_summary({"outcome": "stopped: round 2: the disk is full"})
    picture = ["--picture", str(tmp_path / "c.svg")]
    assert main(["compare", *folders, str(tmp_path / "a2"), *picture]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:4]] == ["a", "a2"]
    assert lines[3].endswith("| stopped |")
    assert f"{tmp_path / 'begun'}: has no complete round yet, and is left out" in caplog.text
    assert main(["compare", folders[1], *picture]) == 2
    assert "has no complete round yet; csg resume" in capsys.readouterr().err


def test_a_page_of_several_runs_needs_a_name(made, capsys):
    folders = [str(made(name, 0.5).path) for name in ("a", "b")]
    assert main(["report", *folders]) == 2
    assert "name it, as --out page.html" in capsys.readouterr().err
    assert main(["report", *folders, "--out", f"{folders[0]}/both.html"]) == 0
    above = Path(folders[0]).parent
    assert main(["report", str(above)]) == 2, "a folder of two runs is two"
    assert not [*above.glob("*.html")]
    (above / "page.html").write_text("")
    assert main(["compare", *map(str, above.iterdir())]) == 2
    assert "page.html: holds no run (no config.toml); name a run's" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["picture", "picture.txt", "."])
def test_a_picture_that_cannot_be_costs_no_table_and_leaves_nothing(made, tmp_path, capsys, name):
    made("a", 0.5)
    before = sorted(tmp_path.iterdir())
    picture = tmp_path / name
    assert main(["compare", str(tmp_path / "a"), "--picture", str(picture)]) == 2
    shown = capsys.readouterr()
    assert "| a | 1 | 50.00 % |" in shown.out
    assert shown.err == f"csg compare: {picture}: give a name that ends in .svg, .png, .pdf\n"
    assert main(["compare", str(tmp_path / "a"), "--picture", str(picture), "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert (found["runs"][0]["rounds"], found["picture"]) == (1, None)
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_evaluated_once_is_a_point(made, tmp_path):
    run = read_run(made("a", None, 0.5).path)
    plots.save(plots.accuracy_by_megabytes([run]), tmp_path / "c.svg")
    assert (tmp_path / "c.svg").read_text().count("<use") > 10, "with those of the ticks"
    two = read_run(made("b", 0.4, 0.5).path)
    plots.save(plots.accuracy_by_megabytes([two]), tmp_path / "d.svg")
    difference = [(tmp_path / name).read_text().count("#0072B2".lower()) for name in
                  ("c.svg", "d.svg")]  # fmt: skip
    assert difference[0] > difference[1], "and of a line no point is marked"


@pytest.mark.parametrize(
    "change",
    [{"contributions": [{}]}, {"contributions": [{"partition": 0, "loss_before": None}]}],
)
def test_a_row_without_what_clients_report_is_named(made, change):
    folder = made("a", 0.5)
    path = folder.path / "rounds.jsonl"
    path.write_text(json.dumps(json.loads(path.read_text()) | change) + "\n")
    with pytest.raises(RunFolderError, match=r"line 1 is damaged \(contributions.0"):
        read_run(folder.path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.json", {"ratio_to_dense": 2}),
        ("summary.json", {"ratio_to_dense": "2", "dense_twin_payload_bytes": []}),
        ("environment.json", {"spread": [[1, 2], [3]]}),
    ],
)
def test_a_page_is_made_without_what_is_damaged(made, name, content):
    folder = made("a", 0.5)
    (folder.path / name).write_text(json.dumps(content))
    text = page(read_runs([folder.path]))
    assert "50.00 %" in text
    assert "dense twin" not in text


def test_runs_begun_in_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [_made("demo").name for _ in range(3)] == ["demo", "demo-2", "demo-3"]


def test_the_commit_of_another_repository_is_not_this_packages(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "-C", tmp_path, *who, "commit", "-qm", "x", "--allow-empty"], check=True)
    (tmp_path / "machine.py").touch()
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    assert machine.commit() is None
    subprocess.run(["git", "-C", tmp_path, "add", "machine.py"], check=True)
    assert machine.commit().endswith("-dirty")


@pytest.mark.parametrize(
    ("count", "told"),
    [(999, "1.0 kB"), (1_500_000, "1.50 MB"), (9_999_000_000, "9999.00 MB"), (4.7e10, "47.00 GB"),
     (4.67e13, "46.70 TB")],
)  # fmt: skip
def test_bytes_are_told_in_a_fitting_unit(count, told):
    assert megabytes(int(count)) == told
