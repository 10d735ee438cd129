"""The averages of the study of averaging are the means they are named after."""

import json
import sys

import numpy as np
import pytest

from csg_core import build, generated, manifest, pack, unpack
from server.record import RunFolder
from server.state import load_state
from simulations.command import StudyError
from simulations.local_engine import run_local
from simulations.studies import averaging
from simulations.studies.averaging import WAYS, Averages, Study, factors, run, table


@pytest.fixture
def study(tiny):
    return Study(tiny(train={"rounds": 1}))


def _moved(values, seed, size=0.3):
    rng = np.random.default_rng(seed)
    return (values * (1 + size * rng.normal(size=values.size))).astype(np.float32)


def test_the_mean_of_equal_models_is_that_model(study):
    averages = Averages(study.found)
    for weight in (1, 3):
        averages.add(study.first, weight)
    np.testing.assert_allclose(averages.parameters, study.first, atol=1e-6)
    np.testing.assert_allclose(averages.kernels, study.first, atol=1e-4)


def test_slices_are_averaged_and_the_factors_are_the_best_of_their_size(study):
    averages = Averages(study.found)
    models = [_moved(study.first, seed) for seed in (1, 2)]
    for model, weight in zip(models, (1, 3), strict=True):
        averages.add(model, weight)
    slices = [codes @ weight.T for codes, weight in (factors(m, study.found) for m in models)]
    mean = (slices[0] + 3 * slices[1]) / 4
    np.testing.assert_allclose(averages.slices_SV, mean, atol=1e-5)
    codes, weight = factors(averages.kernels, study.found)
    error = np.linalg.norm(codes @ weight.T - mean)
    lengths = np.linalg.svd(mean, compute_uv=False)
    assert error == pytest.approx(np.linalg.norm(lengths[weight.shape[1] :]), rel=1e-3)
    codes, weight = factors(averages.parameters, study.found)
    assert np.linalg.norm(codes @ weight.T - mean) > 1.1 * error


def test_exact_slices_stand_where_the_generators_would(study):
    """Of slices that the model makes itself, the accuracy is the model's."""
    codes, weight = factors(study.first, study.found)
    model = build(study.recipe.model, seed=0)
    assert manifest(model) == study.found
    unpack(model, study.first)
    assert len(generated(model)) > 10
    own = study.accuracy(study.first)
    assert study.accuracy_of_slices(study.first, codes @ weight.T) == own
    assert pack(model).size == study.first.size


@pytest.mark.slow
def test_a_run_goes_on_from_the_way_it_is_averaged_in_and_the_table_says_so(tiny):
    recipe = tiny(train={"rounds": 4})
    rows = {way: run(recipe, way, every=2) for way in WAYS}
    for found in rows.values():
        assert [row["round"] for row in found] == [2, 4]
        assert all(0 <= row["off_kernels"] < row["off_parameters"] for row in found)
    assert rows["parameters"] != rows["kernels"]
    result = {"shards": "iid", "way": "kernels", "rows": rows["kernels"][:1]}
    cells = [cell.strip() for cell in table([result]).splitlines()[-1].split("|")[1:-1]]
    first = rows["kernels"][0]
    assert cells[:3] == ["iid", "kernels", "2"]
    assert cells[4] == f"{100 * first['off_kernels']:.2f} %"
    assert cells[7] == f"{100 * first['accuracy_exact']:.2f} %"


def test_the_command_keeps_what_it_ran_and_fills_the_page(tmp_path, monkeypatch, capsys):
    page = tmp_path / "page.md"
    names = ("averaging", "averaging-where")
    page.write_text("".join(f"<!-- {name} -->\n<!-- end of {name} -->\n" for name in names))
    monkeypatch.setattr(averaging, "PAGE", page)
    monkeypatch.setattr(averaging, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["averaging"])
    with pytest.raises(StudyError, match="no results yet; name the images with --data"):
        averaging.main()
    command = ["averaging", "--data", "digits", "--images", "40", "--rounds", "3", "--every", "2",
               "--shards", "iid", "--ways", "kernels"]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    averaging.main()
    (path,) = (tmp_path / "results").glob("*.json")
    assert path.name == "iid-kernels.json"
    assert [row["round"] for row in json.loads(path.read_text())["rows"]] == [2, 3]
    shown = page.read_text()
    assert shown.count("| iid | kernels |") == 2
    assert "resnet20, ten clients, 40 images of digits, 3 rounds, batches of 32; " in shown
    capsys.readouterr()
    averaging.main()  # kept, and not run again
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "argv", [*command, "--batch-size", "16"])
    with pytest.raises(StudyError, match="is of other settings; remove it to run these"):
        averaging.main()
    for option in ("--every", "--rounds", "--images"):
        monkeypatch.setattr(sys, "argv", [*command, option, "0"])
        with pytest.raises(SystemExit):
            averaging.main()
        assert f"{option}: '0' is no whole number from 1 on" in capsys.readouterr().err


def test_a_round_gives_what_the_engine_gives(tiny, tmp_path):
    recipe = tiny(train={"rounds": 1}, run={"dir": str(tmp_path / "run")})
    folder = RunFolder(tmp_path / "run")
    folder.create(recipe, {}, [])
    run_local(recipe, lambda _row: None)
    state = load_state(folder.checkpoints, recipe.model, recipe.train.travelling())
    study = Study(recipe)
    averages = study.round(study.first, 1)
    np.testing.assert_allclose(averages.parameters, state.values, atol=1e-6)
    assert np.abs(state.values - study.first).max() > 0.01
