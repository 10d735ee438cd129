"""The table and the picture of the federated study, from the results in the repository."""

import shutil
import sys

import pytest

from federation.recipe import read_recipe
from simulations.studies import federated
from simulations.studies.federated_tables import table
from simulations.studies.pages import README


def test_the_readme_shows_what_was_kept(tmp_path, monkeypatch, capsys):
    readme, results = tmp_path / "README.md", tmp_path / "federated"
    shutil.copy(README, readme)
    shutil.copytree(federated.RESULTS, results)
    monkeypatch.setattr(federated, "README", readme)
    monkeypatch.setattr(federated, "RESULTS", results)
    monkeypatch.setattr(sys, "argv", ["federated"])
    federated.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 + len(list(results.glob("*.json")))
    assert readme.read_text() == README.read_text(), "the README holds the table of these results"
    assert (results / "accuracy.svg").stat().st_size > 1000


def test_ratios_are_to_the_dense_run_on_the_same_shards():
    results = federated.kept()
    dense = next(r for r in results if (r.arm, r.partition, r.seed) == ("dense", "iid", 0))
    csg = next(r for r in results if (r.arm, r.partition, r.seed) == ("csg", "iid", 0))
    up, down = csg.kilobytes_each
    row = next(
        line for line in table(results).splitlines() if f"| iid | 0 | {csg.machine} | csg |" in line
    )
    points = 100 * (csg.accuracy - dense.accuracy)
    assert f"| {points:+.2f} | {up:.1f} + {down:.1f} | {1084.4 * 2 / (up + down):.1f} |" in row


def test_rounds_without_an_evaluation_have_no_place_on_the_curve():
    small = next(r for r in federated.kept() if (r.arm, r.partition) == ("csg", "small"))
    rows = small.content["rows"]
    assert [row["test_accuracy"] is None for row in rows] == [True, False] * 10
    payload = sum(row["payload_bytes_up"] + row["payload_bytes_down"] for row in rows) / 1e6
    assert len(small.curve) == 10
    assert small.curve[-1] == (pytest.approx(payload), rows[-1]["test_accuracy"])


def test_every_arm_is_a_recipe():
    recipe_file = README.parent / "simulations" / "recipes" / "cifar10-resnet20.toml"
    for arm, settings in federated.ARMS.items():
        recipe = read_recipe(recipe_file, settings)
        assert recipe.train.rounds == 20, arm


def test_without_results_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(federated, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["federated"])
    with pytest.raises(SystemExit, match="no results yet; name the images with --data"):
        federated.main()
