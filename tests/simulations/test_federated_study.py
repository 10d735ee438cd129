"""The table and the picture of the federated study, from the results in the repository."""

import copy
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from csg_core.spec import SHAPE_OF_GENERATOR
from federation.recipe_file import read_recipe
from server.record import RunFolder
from server.rows import RoundRow
from simulations.command import StudyError
from simulations.estimate import estimate
from simulations.pages import README
from simulations.recipe_names import recipe_from
from simulations.studies import federated, federated_arms
from simulations.studies.federated_pictures import best, draw_frontier
from simulations.studies.federated_tables import Result, cheapest_table, short_table, table

COMPRESSED = "csg56-small-clip-momentum-ecsq-predict"


@pytest.mark.slow
def test_the_readme_shows_what_was_kept(tmp_path, monkeypatch, capsys):
    readme, page, results = (tmp_path / name for name in ("README.md", "results.md", "federated"))
    shutil.copy(README, readme)
    shutil.copy(federated.PAGE, page)
    shutil.copytree(federated.RESULTS, results)
    monkeypatch.setattr(federated, "README", readme)
    monkeypatch.setattr(federated, "PAGE", page)
    monkeypatch.setattr(federated, "RESULTS", results)
    monkeypatch.setattr(sys, "argv", ["federated"])
    before = federated.PAGE.read_text()
    federated.main()
    printed = capsys.readouterr().out
    for run in results.glob("*.json"):
        arm, shards, seed = run.stem.rsplit("-", 2)
        row = rf"\| {shards} \| {seed[4:]} \| [^|]+ \| {arm}( \[\d\])*( \(\d+ failed\))? \|"
        assert re.search(row, printed), run.stem
    assert readme.read_text() == README.read_text(), "the README holds the table of these results"
    assert page.read_text() == before, "so does the page of all results"
    assert not any(
        result.remarks
        for result in federated.kept()
        if result.arm in federated_arms.SHORT.get(result.partition, ())
    ), "the README has no place for remarks"
    for picture in ("accuracy.svg", "brief.svg", "frontier.svg"):
        assert (results / picture).stat().st_size > 1000


def test_the_frontier_is_of_networks_that_none_of_a_kind_beats_in_both(tmp_path):
    results = federated.on_frontiers(federated.kept())
    assert {("small", "ecsq"), ("iid", "ecsq-predict")} <= {(r.partition, r.codec) for r in results}
    draw_frontier(results, tmp_path / "frontier.svg")
    drawn = (tmp_path / "frontier.svg").read_text()
    for result in results:
        assert f"<!-- {result.network} -->" in drawn
    assert list(best([(3, 0.5), (1, 0.4), (2, 0.3), (4, 0.5), (5, 0.6)])) == [
        (1, 0.4), (3, 0.5), (5, 0.6)
    ]  # fmt: skip


def test_payloads_are_counted_and_failures_shown():
    own = ("flocora-int8", "small")
    result = next(r for r in federated.kept() if (r.arm, r.partition) == own)
    assert [row["failures"] for row in result.content["rows"]].count(1) == result.failures == 1
    up = [row["payload_bytes_up"] for row in result.content["rows"][1:]]
    assert result.kilobytes_each[0] == pytest.approx(max(up) / 10 / 1e3)
    assert "| flocora-int8 [1] (1 failed) |" in table([result])


def test_remarks_of_results_are_told_below_the_table():
    named = {(r.arm, r.partition, r.seed): r for r in federated.kept()}
    freeze, low, today = (
        named[arm, "small", seed]
        for arm, seed in [("csg-ecsq-freeze", 0), ("csg-ecsq-low", 0), ("csg-ecsq", 1)]
    )
    shown = table([today, freeze, low]).splitlines()
    assert [line.split(" | ")[3] for line in shown[2:5]] == [
        "csg-ecsq", "csg-ecsq-freeze [1] [2]", "csg-ecsq-low [1]"
    ]  # fmt: skip
    assert shown[5:] == ["", f"[1] {freeze.remarks[0]}.", "", f"[2] {freeze.remarks[1]}."]


def test_a_run_of_another_arm_is_neither_kept_nor_gone_on_with(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(federated, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(federated, "csg", lambda _arguments: pytest.fail("it was run"))
    folder = RunFolder(tmp_path / "csg-small-seed7")
    folder.create(tiny(train={"clip_norm": 2.0}), {"code": "of then"}, [])
    folder.append(RoundRow(
        round=1, clients=4, failures=0, train_loss=2.0, test_loss=1.5, test_accuracy=0.3,
        payload_bytes_up=1, payload_bytes_down=2, seconds=1.0, models=4, updates=4,
    ))  # fmt: skip
    options = SimpleNamespace(runs=tmp_path, seed=7, data="x", set=[], copy="a copy", again=False)
    for outcome in ("stopped", "completed"):
        folder.write_summary({"outcome": outcome})
        with pytest.raises(StudyError, match=r"csg-small-seed7 is of another arm .*clip_norm=2"):
            federated._run("csg", "small", options)
    assert not (tmp_path / "results").exists()


def test_a_run_that_is_done_is_kept_and_not_run_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(federated, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(federated, "csg", lambda _arguments: pytest.fail("it is done"))
    folder = RunFolder(tmp_path / "csg-small-seed7")
    values = [*federated_arms.ARMS["csg"], *federated_arms.PARTITIONS["small"], "run.seed=7"]
    folder.create(read_recipe(federated.RECIPE, values), {"code": "of then"}, [])
    folder.append(RoundRow(
        round=1, clients=4, failures=0, train_loss=2.0, test_loss=1.5, test_accuracy=0.3,
        payload_bytes_up=1, payload_bytes_down=2, seconds=1.0, models=4, updates=4,
    ))  # fmt: skip
    folder.write_summary({"outcome": "completed"})
    options = SimpleNamespace(runs=tmp_path, seed=7, data="x", set=[], copy="a copy", again=False)
    federated._run("csg", "small", options)
    federated._run("csg", "small", options)
    assert capsys.readouterr().err == "csg-small-seed7 is kept; --again runs it anew\n"
    kept = json.loads((tmp_path / "results" / "csg-small-seed7.json").read_text())
    assert kept["environment"] == {"code": "of then"}
    assert (kept["rows"][0]["models"], kept["rows"][0]["updates"]) == (4, 4)


def test_a_generator_is_taken_from_a_run_of_the_study(tmp_path, monkeypatch):
    monkeypatch.setattr(federated, "RESULTS", tmp_path / "results")
    ran = []

    def run(arguments):
        recipe = read_recipe(federated.RECIPE, [v for v in arguments[2:] if v != "--set"])
        ran.append(recipe)
        folder = RunFolder(Path(recipe.run.dir))
        folder.create(recipe, {"code": "of then"}, [])
        folder.append(RoundRow(
            round=1, clients=4, failures=0, train_loss=2.0, test_loss=1.5, test_accuracy=0.3,
            payload_bytes_up=1, payload_bytes_down=2, seconds=1.0, models=4, updates=4,
        ))  # fmt: skip
        folder.write_summary({"outcome": "completed"})

    monkeypatch.setattr(federated, "csg", run)
    options = SimpleNamespace(runs=tmp_path, seed=7, data="x", set=[], copy="a copy", again=False)
    for arm in ("csg-donated-ecsq", "csg-donated-ecsq-never"):
        federated._run(arm, "small", options)
    donor, first, second = ran
    assert (donor.data.name, donor.run.dir) == ("digits", str(tmp_path / "donor"))
    for recipe in (first, second):
        assert recipe.server.start_from == str(tmp_path / federated.DONOR)
        for key in SHAPE_OF_GENERATOR:
            assert getattr(recipe.model, key) == getattr(donor.model, key)
        assert recipe.model.name != donor.model.name
    kept = json.loads((tmp_path / "results" / "csg-donated-ecsq-small-seed7.json").read_text())
    assert kept["recipe"]["server"]["start_from"] == federated.DONOR
    config = tmp_path / "donor" / "config.toml"
    config.write_text(config.read_text().replace("rounds = 15", "rounds = 16"))
    with pytest.raises(StudyError, match=r"donor is of another arm \(train.rounds=16, now 15\)"):
        federated._run("csg-donated", "small", options)


def test_what_is_kept_is_run_anew_if_asked_for_and_replaced(tmp_path, monkeypatch, capsys):
    result = next(r for r in federated.kept() if (r.arm, r.partition) == ("dense", "small"))
    monkeypatch.setattr(federated, "RESULTS", tmp_path)
    (tmp_path / "dense-small-seed0.json").write_text(json.dumps(result.content))

    def run(arguments):
        assert arguments[:2] == ["run", str(federated.RECIPE)]
        folder = RunFolder(tmp_path / "runs" / "dense-small-seed0")
        values = [value for value in arguments[2:] if value != "--set"]
        folder.create(read_recipe(federated.RECIPE, values), result.content["environment"], [])
        folder.append(RoundRow(
            round=1, clients=4, failures=0, train_loss=2.0, test_loss=1.5, test_accuracy=0.3,
            payload_bytes_up=10**6, payload_bytes_down=0, seconds=1.0, models=4, updates=4,
        ))  # fmt: skip

    monkeypatch.setattr(federated, "csg", run)
    options = SimpleNamespace(
        runs=tmp_path / "runs", seed=0, data="x", set=[], copy="a copy", again=True
    )
    federated._run("dense", "small", options)
    before, now = capsys.readouterr().err.splitlines()
    assert before.startswith(f"dense-small-seed0, before: {100 * result.accuracy:.2f} %, ")
    assert now.startswith("dense-small-seed0, now: 30.00 %, 1.00 MB, ")
    assert len(json.loads((tmp_path / "dense-small-seed0.json").read_text())["rows"]) == 1
    RunFolder(tmp_path / "runs" / "dense-small-seed0").write_summary({"outcome": "completed"})
    federated._run("dense", "small", options)
    said, *_ = capsys.readouterr().err.splitlines()
    assert said.endswith("is complete, and kept; to run it anew, name another folder with --runs")


def test_the_arm_of_the_fewest_bytes_is_named_where_it_changes():
    content = next(r for r in federated.kept() if r.arm == "csg").content

    def result(arm, *reached):
        rows = [{"payload_bytes_up": 10**6, "payload_bytes_down": 0, "test_accuracy": accuracy}
                for accuracy in reached]  # fmt: skip
        return Result("iid", arm, 0, content | {"rows": rows})

    slow, fast = result("slow", 0.31, 0.31, 0.46), result("fast", 0.26, 0.36, 0.41)
    assert cheapest_table([slow, fast]).splitlines()[2:] == [
        "| iid | 0 | 20 to 25 % | fast | 1.00 |",
        "| iid | 0 | 30 % | slow | 1.00 |",
        "| iid | 0 | 35 to 40 % | fast | 2.00 to 3.00 |",
        "| iid | 0 | 45 % | slow | 3.00 |",
    ]


def test_what_was_kept_is_of_the_arms_as_they_are_now():
    for result in federated.kept():
        values = [*federated_arms.ARMS[result.arm], *federated_arms.PARTITIONS[result.partition],
                  f"run.seed={result.seed}"]  # fmt: skip
        assert not federated.differences(result.content["recipe"], values), result


def test_a_result_of_another_arm_is_not_taken_for_this_one(monkeypatch):
    monkeypatch.setitem(federated_arms.ARMS, "csg-clip", ("train.clip_norm=2", "train.lr=0.1"))
    monkeypatch.setattr(federated, "csg", lambda _arguments: pytest.fail("it was run"))
    options = SimpleNamespace(
        runs=federated.RESULTS, seed=0, data="x", set=[], copy="a copy", again=False
    )
    with pytest.raises(StudyError, match=r"lr=0\.05, now 0\.1, train\.clip_norm=1\.0, now 2\.0"):
        federated._run("csg-clip", "small", options)
    monkeypatch.setitem(federated_arms.ARMS, "csg-clip", ())
    with pytest.raises(StudyError, match=r"of another arm \(train\.clip_norm=1\.0, now None\)"):
        federated._run("csg-clip", "small", options)
    monkeypatch.setitem(federated_arms.ARMS, "csg", ("train.clip_norm=1",))
    with pytest.raises(StudyError, match=r"of another arm \(train\.clip_norm=None, now 1\.0\)"):
        federated._run("csg", "small", options)
    federated._run("dense", "small", options)


def test_recipes_of_few_bytes_are_the_arms_that_were_measured():
    for name, arm in (
        ("cifar10-compressed", COMPRESSED),
        ("cifar10-compressed-dense", "dense56"),
        ("cifar10-compressed-wide", "csg-wide-clip-momentum-ecsq-predict"),
    ):
        _, recipe = recipe_from(SimpleNamespace(recipe=name, set=[]))
        values = [*federated_arms.ARMS[arm], *federated_arms.PARTITIONS["iid"]]
        assert not federated.differences(recipe.model_dump(), values)
        assert (federated.RESULTS / f"{arm}-iid-seed0.json").exists()


def test_payloads_are_about_as_large_as_was_estimated():
    compared = 0
    for result in federated.kept():
        codec = result.arm.partition("-ecsq")[2]
        if "ecsq" not in result.arm or codec in ("-sparse", "-seldom", "-freeze", "-never"):
            continue
        values = [*federated_arms.ARMS[result.arm], *federated_arms.PARTITIONS[result.partition]]
        found = estimate(read_recipe(federated.RECIPE, values))
        expected = (found["payload_bytes_up"] + found["payload_bytes_down"]) / 1e3
        assert expected == pytest.approx(sum(result.kilobytes_each), rel=0.2), result
        compared += 1
    assert compared > 30


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
    recipes = {}
    for arm, settings in federated_arms.ARMS.items():
        recipe = read_recipe(federated.RECIPE, settings)
        assert recipe.train.rounds == 20, arm
        other = recipes.setdefault(recipe.model_dump_json(), arm)
        assert other == arm, "the same under two names"


@pytest.mark.parametrize(("frontier", "dense_twice"), [("ecsq", 2), ("ecsq-predict", 1)])
def test_frontier_names_what_it_runs(frontier, dense_twice, monkeypatch):
    ran = []
    monkeypatch.setattr(federated, "_run", lambda arm, partition, _: ran.append((arm, partition)))
    arguments = ["--data", "x", "--partitions", "small", "--arms", "csg", f"frontier-{frontier}"]
    monkeypatch.setattr(sys, "argv", ["federated", *arguments])
    monkeypatch.setattr(federated, "fill", lambda *_: None)
    monkeypatch.setattr(federated, "draw", lambda *_, **__: None)
    monkeypatch.setattr(federated, "draw_frontier", lambda *_: None)
    federated.main()
    arms = [arm for arm, partition in ran if partition == "small"]
    assert len(arms) == len(ran) == len(set(arms)) == 1 + dense_twice * 12 + 54
    clip = "clip" if frontier == "ecsq" else "clip-momentum"
    deep = f"csg56-32-s16-d72-{clip}-{frontier}"
    assert {"csg", f"dense-narrow-{clip}-{frontier}", deep} < set(arms)
    recipe = read_recipe(federated.RECIPE, federated_arms.ARMS[deep])
    assert recipe.train.clip_norm == 1
    model = recipe.model
    assert (model.name, model.width, model.slice_size, model.code_size) == ("resnet56", 2, 16, 72)


def test_how_runs_are_run_can_be_set_and_what_they_are_cannot(monkeypatch, capsys):
    for setting in ("train.lr=1", "run.seed=5", "run.eval_every=3"):
        monkeypatch.setattr(sys, "argv", ["federated", "--set", setting])
        with pytest.raises(SystemExit):
            federated.main()
        assert f"{setting} would make it another arm; run.cohort, " in capsys.readouterr().err


def test_points_are_to_a_run_of_the_same_machine_and_depth():
    kept = federated.kept()
    dense, csg = (
        next(r for r in kept if (r.arm, r.partition, r.seed) == (arm, "small", 0))
        for arm in ("dense", "csg")
    )
    elsewhere = copy.deepcopy(csg)
    elsewhere.content["environment"]["device"] = "another GPU"
    deeper = copy.deepcopy(csg)
    deeper.content["recipe"]["model"]["name"] = "resnet56"
    rows = table([dense, csg, elsewhere, deeper]).splitlines()[3:]
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    points, fewer = ([row[place] for row in cells] for place in (7, 9))
    assert points == [f"{100 * (csg.accuracy - dense.accuracy):+.2f}", "", ""]
    ratio = f"{sum(dense.kilobytes_each) / sum(csg.kilobytes_each):.1f}"
    assert fewer == [ratio, ratio, ""]


def test_an_arm_that_was_not_kept_has_no_row():
    kept = [r for r in federated.kept() if (r.arm, r.partition) == ("csg", "iid")]
    arms = {"iid": ("dense", "csg"), "dirichlet": ("csg",)}
    rows = short_table(kept, arms).splitlines()[2:]
    assert len(rows) == 1
    assert rows[0].startswith("| iid | CSG ResNet-20")
    assert rows == short_table(kept, {"iid": ("csg",)}).splitlines()[2:]


def test_every_row_of_the_short_table_was_kept():
    kept = {(result.partition, result.arm) for result in federated.kept()}
    assert {(shards, arm) for shards, arms in federated_arms.SHORT.items() for arm in arms} <= kept


def test_kernels_codecs_and_training_are_named_for_a_reader():
    shards = "dirichlet"
    arms = ("flocora-int8", "csg56-small-clip-momentum-ecsq-predict", "dense56")
    rows = short_table(federated.kept(), {shards: arms}).splitlines()[2:]
    names = ["FLoCoRA ResNet-20, rank 8 | `int8` | FedAvg",
             "CSG ResNet-56, codes of 36 | `ecsq-predict` | clipped, momentum",
             "dense ResNet-56 | float32 | FedAvg"]  # fmt: skip
    for row, name in zip(rows, names, strict=True):
        assert row.startswith(f"| {shards} | {name} |")
    tiny = short_table(federated.kept(), {"iid": ("csg56-tiny-clip-momentum-ecsq-predict",)})
    assert "| iid | CSG ResNet-56, codes of 18 for slices of 8 |" in tiny


def test_without_results_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(federated, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["federated"])
    with pytest.raises(StudyError, match="no results yet; name the images with --data"):
        federated.main()
