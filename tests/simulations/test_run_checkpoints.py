"""What a run has saved whenever it breaks off: checkpoints, their rows, the best model."""

import json

import pytest

from server import rounds
from server.checkpoints import CheckpointError
from server.record import RunFolder
from simulations.cli import main
from simulations.local_engine import run_local

LOCAL = {"train": {"batch_norm": "local"}, "data": {"holdout": 0.1}}


def test_a_run_without_its_checkpoints_keeps_its_record(tiny, run):
    folder, _ = run(tiny())
    record, best = folder.path / "rounds.jsonl", folder.checkpoints / "best.safetensors"
    before = record.read_bytes(), best.read_bytes()
    for path in folder.checkpoints.glob("round-*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"holds no checkpoint, while rounds\.jsonl"):
        run_local(folder.recipe(), lambda _row: None)
    assert (record.read_bytes(), best.read_bytes()) == before


def test_a_run_that_cannot_be_resumed_is_not_said_to_go_on(tiny, run, capsys):
    folder, _ = run(tiny())
    (folder.path / "summary.json").unlink()
    for path in folder.checkpoints.glob("round-*"):
        path.write_bytes(b"")
    assert main(["resume", str(folder.path)]) == 1
    said = capsys.readouterr()
    assert "holds no checkpoint to go on from; start the run anew" in said.err
    assert "goes on from there" not in said.out


def test_a_checkpoint_without_its_rows_is_not_resumed(tiny, run):
    folder, _ = run(tiny())
    record = folder.path / "rounds.jsonl"
    record.write_bytes(torn := record.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="does not hold rounds 1 to 2"):
        run_local(folder.recipe(), lambda _row: None)
    assert record.read_bytes() == torn
    assert folder.summary()["outcome"].startswith("stopped: ")


@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (LOCAL, {}, "train.batch_norm = 'average': the run began"),
        ({}, LOCAL, "train.batch_norm = 'local': the run began"),
        ({}, {"wire": {"deltas": True}}, "wire.deltas = true: the run began without"),
    ],
)
def test_a_recipe_that_the_checkpoint_cannot_go_on_by_is_named(tiny, run, before, now, message):
    folder, _ = run(tiny(**before))
    where = {"dir": str(folder.path)}
    with pytest.raises(ValueError, match=message):
        run_local(tiny(run=where, **now), lambda _row: None)
    assert [row.round for row in folder.rows()] == [1, 2]
    run_local(tiny(run=where, **before), lambda _row: None)


@pytest.mark.slow
def test_more_rounds_are_trained_if_asked_for_and_that_the_recipe_changed_is_told(
    tiny, run, capsys
):
    folder, _ = run(tiny())
    (folder.path / "summary.json").unlink()
    assert main(["resume", str(folder.path)]) == 0
    assert "config.toml" not in capsys.readouterr().err
    config = folder.path / "config.toml"
    assert main(["resume", str(folder.path)]) == 2
    assert "its 2 rounds are complete" in capsys.readouterr().err
    config.write_text(config.read_text().replace("rounds = 2", "rounds = 3"))
    assert main(["resume", str(folder.path)]) == 0
    assert f"{config} was changed since the run began" in capsys.readouterr().err
    assert [row.round for row in folder.rows()] == [1, 2, 3]
    config.write_text("\n")
    assert main(["resume", str(folder.path)]) == 2
    assert f"{config}: is empty; bring back the run's recipe" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["write_checkpoint", "save_state", "Rounds._promote"])
def test_the_best_model_is_there_whenever_a_run_breaks_off(tiny, tmp_path, monkeypatch, stage):
    """Also if rounds are not as good when they are run again, as with clients elsewhere."""
    from server.checkpoints import read_with_extra

    accuracies = {1: 0.5, 2: 0.3, 3: 0.6, 4: 0.2}
    monkeypatch.setattr(
        rounds.Rounds, "_evaluate", lambda _self, round_, _values: (1.0, accuracies[round_])
    )
    owner, _, name = stage.rpartition(".")
    place = getattr(rounds, owner) if owner else rounds
    real = getattr(place, name)

    def breaking(*arguments):
        if folder.rows() and folder.rows()[-1].round == 4:
            raise CheckpointError("the power is gone")
        return real(*arguments)

    folder = RunFolder(tmp_path / "run")
    recipe = tiny(run={"dir": str(folder.path), "checkpoint_every": 2}, train={"rounds": 4})
    folder.create(recipe, {}, [])
    with monkeypatch.context() as broken:
        broken.setattr(place, name, breaking)
        with pytest.raises(CheckpointError):
            run_local(recipe, lambda _row: None)
    accuracies |= {3: 0.4, 4: 0.4}
    run_local(recipe, lambda _row: None)
    names = {path.name for path in folder.checkpoints.iterdir()}
    assert names == {f"{name}.safetensors" for name in ("round-000002", "round-000004", "best")}
    best = int(read_with_extra(folder.checkpoints / "best.safetensors")[2]["round"])
    assert best == folder.summary()["best_round"] == (3 if owner else 1)


@pytest.mark.slow
def test_a_best_model_that_is_lost_with_the_newest_checkpoint_is_told(
    tiny, tmp_path, monkeypatch, caplog
):

    accuracies = {1: 0.1, 2: 0.8, 3: 0.3, 4: 0.9}
    monkeypatch.setattr(
        rounds.Rounds, "_evaluate", lambda _self, round_, _values: (1.0, accuracies[round_])
    )
    folder = RunFolder(tmp_path / "run")
    recipe = tiny(run={"dir": str(folder.path)}, train={"rounds": 4})
    folder.create(recipe, {}, [])
    run_local(recipe, lambda _row: None)
    run_local(recipe, lambda _row: None)
    assert "no longer there" not in caplog.text
    newest = folder.checkpoints / "round-000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-9])
    accuracies[4] = 0.2
    run_local(recipe, lambda _row: None)
    assert "the model of round 2, the best so far, is no longer there; only a bet" in caplog.text
    assert not (folder.checkpoints / "best.safetensors").exists()


def test_a_damaged_next_best_model_does_not_take_the_place_of_the_best(tiny, run):
    folder, _ = run(tiny())
    best, following = (folder.checkpoints / f"{n}.safetensors" for n in ("best", "best-next"))
    before = best.read_bytes()
    following.write_bytes(before[:-9])
    run_local(folder.recipe(), lambda _row: None)
    assert best.read_bytes() == before
    assert not following.exists()


@pytest.mark.slow
def test_the_card_is_of_the_round_that_made_the_file(tiny, run, capsys):
    from server.checkpoints import read_with_extra
    from simulations.cli import main

    folder, _ = run(tiny(train={"rounds": 3}))
    (folder.path / "summary.json").unlink()
    found = int(read_with_extra(folder.checkpoints / "best.safetensors")[2]["round"])
    assert main(["export", str(folder.path)]) == 0
    card = (folder.path / "export" / "README.md").read_text()
    accuracy = folder.rows()[found - 1].test_accuracy
    assert f"**Rounds**: {found} of 3" in card
    exported = folder.path / "export" / "model.safetensors"
    capsys.readouterr()
    assert main(["evaluate", str(exported), "--data", "digits", "--json"]) == 0, "as a dense one"
    plain = json.loads(capsys.readouterr().out)["accuracy"]
    assert plain == pytest.approx(folder.rows()[found - 1].test_accuracy, abs=0.01)
    assert f"{100 * accuracy:.2f} %" in card
