"""The benchmark tasks are what their authors define, run, and their study says what it measured."""

import json
import sys

import numpy as np
import pytest

from csg_core import build
from federation.recipe_file import read_recipe
from server.record import RunFolder
from server.state import load_state
from simulations import recipe_names
from simulations.bench import tasks
from simulations.cli import main
from simulations.command import StudyError
from simulations.local_engine import run_local

COUNTS = {
    "bench-pfl-cifar10": (1_626_442, 1_612_362),
    "bench-blazefl-cnn": (62_006, 60_846),
    "bench-blazefl-resnet18": (11_181_642, 1_101_386),
}
ROW = {
    "network": "pfl-cnn", "kind": "dense", "precision": "fp32", "rounds": 3, "rounds_of_task": 1500,
    "seconds": 12.34, "round_seconds": 0.5, "images_per_second": 5000.0,
    "step_images_per_second": 10_000.0, "large_images_per_second": 40_000.0, "device": "a card",
    "date": "2026-01-02",
}  # fmt: skip


def _recipe(name, *settings):
    return read_recipe(recipe_names._FOLDER / f"{name}.toml", settings)


def test_the_settings_are_the_authors():
    pfl = _recipe("bench-pfl-cifar10")
    assert (pfl.data.clients, pfl.cohort, pfl.data.partition) == (1000, 50, "iid")
    assert (pfl.train.rounds, pfl.train.local_epochs, pfl.train.batch_size) == (1500, 1, 10)
    assert (pfl.run.eval_every, pfl.train.augment) == (10, False)
    for name in ("bench-blazefl-cnn", "bench-blazefl-resnet18"):
        blazefl = _recipe(name)
        assert (blazefl.data.clients, blazefl.cohort) == (100, 100)
        assert blazefl.data.rule()["shards_per_client"] == 2
        train = blazefl.train
        assert (train.rounds, train.local_epochs, train.batch_size) == (5, 5, 50)
        assert (blazefl.run.eval_every, train.augment, train.batch_norm) == (1, True, "average")
    for name in COUNTS:
        train = _recipe(name).train
        assert (train.lr, train.momentum, train.weight_decay) == (0.1, 0.0, 0.0)
        assert {train.factor(round_) for round_ in (1, train.rounds)} == {1.0}
        assert train.precision == "fp32"


def test_they_are_dense_themselves_and_have_no_twin():
    names = recipe_names.recipe_names()
    assert set(COUNTS) <= set(names)
    assert not {f"{name}-dense" for name in COUNTS} & set(names)
    assert {"demo-dense", "cifar10-resnet56-dense"} <= set(names)


@pytest.mark.parametrize("name", COUNTS)
def test_estimates_count_their_parameters(name, capsys):
    totals = []
    for parametrization in ("dense", "csg"):
        settings = ["--set", f"model.parametrization={parametrization}"]
        assert main(["estimate", name, "--json", *settings]) == 0
        totals.append(json.loads(capsys.readouterr().out)["parameters"]["total"])
    assert tuple(totals) == COUNTS[name]


@pytest.mark.slow
@pytest.mark.parametrize("parametrization", ["dense", "csg"])
@pytest.mark.parametrize("name", COUNTS)
def test_two_of_their_clients_train_the_same_for_a_seed(name, parametrization, tmp_path):
    values = []
    for turn in ("one", "two"):
        recipe = _recipe(
            name, "data.name=digits", "data.clients=100", "train.clients_per_round=2",
            "train.rounds=1", "train.local_epochs=1", f"run.dir={tmp_path / turn}",
            f"model.parametrization={parametrization}", "train.lr=0.01",
        )  # fmt: skip
        folder = RunFolder(tmp_path / turn)
        folder.create(recipe, {}, [])
        run_local(recipe, lambda _row: None)
        (row,) = folder.rows()
        assert (row.clients, row.failures) == (2, 0)
        assert np.isfinite(row.test_loss)
        state = load_state(folder.checkpoints, recipe.model, recipe.train.travelling())
        values.append(state.values)
    assert np.array_equal(*values)


def test_the_table_shows_seconds_speed_and_ratios():
    found = tasks.table({"bench-pfl-cifar10": ROW})
    assert found.splitlines()[2] == (
        "| bench-pfl-cifar10 | pfl-cnn, dense | fp32 | 3 of 1,500 | 12.3 | 0.500 | 5,000 "
        "| 0.5 x 10,000 | 0.12 x 40,000 | a card, 2026-01-02 |"
    )
    assert {line.count("|") for line in found.splitlines()} == {11}


@pytest.mark.slow
def test_a_task_is_measured_and_the_page_filled(tmp_path, monkeypatch, capsys):
    page = tmp_path / "speed.md"
    page.write_text("<!-- tasks -->\nNot yet.\n<!-- end of tasks -->\n")
    monkeypatch.setattr(tasks, "SPEED", page)
    monkeypatch.setattr(tasks, "FILE", tmp_path / "tasks.json")
    monkeypatch.setattr(tasks, "LARGE_BATCH", 64)
    monkeypatch.setattr(tasks, "_SECONDS", 0.1)
    tasks.FILE.write_text(json.dumps({"tasks": {"bench-blazefl-cnn": ROW}}))
    values = ["data.clients=100", "train.clients_per_round=4"]
    settings = [part for value in values for part in ("--set", value)]
    asked = [
        "--tasks",
        "bench-pfl-cifar10",
        "--rounds",
        "2",
        "--data",
        "digits",
        "--copy",
        "digits",
    ]
    monkeypatch.setattr(sys, "argv", ["tasks", *asked, *settings])
    tasks.main()
    kept = json.loads(tasks.FILE.read_text())["tasks"]
    assert kept["bench-blazefl-cnn"] == ROW, "what was measured before stays"
    row = kept["bench-pfl-cifar10"]
    assert (row["rounds"], row["rounds_of_task"], row["data"]) == (2, 1500, "digits")
    assert row["settings"] == ["data.name=digits", *values, "train.rounds=2"]
    assert 0 < row["round_seconds"] < row["seconds"]
    speeds = ("images_per_second", "step_images_per_second", "large_images_per_second")
    assert all(row[speed] > 0 for speed in speeds)
    assert row["machine"]["torch"]
    assert "| bench-pfl-cifar10 | pfl-cnn, dense | fp32 | 2 of 1,500 |" in capsys.readouterr().out
    assert "| bench-pfl-cifar10 |" in page.read_text()
    assert "Not yet." not in page.read_text()


def test_a_bare_step_is_of_the_recipes_network(monkeypatch):
    monkeypatch.setattr(tasks, "_SECONDS", 0.0)
    built = []
    monkeypatch.setattr(tasks, "build", lambda spec: built.append(spec) or build(spec))
    recipe = _recipe("bench-blazefl-cnn", "run.device=cpu")
    assert tasks.bare_step(recipe, 4) > 0
    assert built == [recipe.model]


def test_without_results_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "FILE", tmp_path / "tasks.json")
    monkeypatch.setattr(sys, "argv", ["tasks"])
    with pytest.raises(StudyError, match="no results yet; name the images with --data"):
        tasks.main()
