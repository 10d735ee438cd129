"""Whole runs whose clients train several at a time: nearly what one after another comes to."""

import time

import numpy as np
import pytest
import torch

from client import app as client_app
from client.app import Worker
from client.local_clients import LocalClients
from csg_core import build, pack
from federation.recipe import RecipeError
from server.record import RunFolder
from server.state import load_state
from simulations.clients_together import at_once
from simulations.local_engine import clients_at_once, run_local
from simulations.run import deployed

pytestmark = pytest.mark.slow

# in steps so fine that it changes little where a level rounds the other way
_FINE = "ecsq:step=0.2,codes=0.2,fine=0.2"
LOSSY = {"uplink": _FINE, "downlink": _FINE, "deltas": True}
SMALL = {"lr": 1e-3, "rounds": 3}


@pytest.fixture
def run(tmp_path):
    """Runs a recipe in a folder of its own; the folder and the state at the end."""

    def go(recipe, name="run", on_round=lambda _row: None):
        section = recipe.run.model_copy(update={"dir": str(tmp_path / name)})
        recipe = recipe.model_copy(update={"run": section})
        folder = RunFolder(tmp_path / name)
        if not folder.path.exists():
            folder.create(recipe, {}, [])
        run_local(recipe, on_round)
        return folder, load_state(folder.checkpoints, recipe.model, recipe.train.travelling())

    return go


@pytest.fixture
def trained(monkeypatch):
    """The sizes of the cohorts that trained."""
    sizes, train = [], LocalClients.train
    monkeypatch.setattr(
        LocalClients, "train", lambda self, jobs: sizes.append(len(jobs)) or train(self, jobs)
    )
    return sizes


@pytest.fixture
def trouble(monkeypatch):
    """Has client 1 do something when it is given its work of round 2."""

    def cause(what):
        job = Worker.job

        def troubled(self, message, context):
            found = job(self, message, context)
            if found[1].partition == 1 and found[1].round_ == 2:
                what()
            return found

        monkeypatch.setattr(Worker, "job", troubled)

    return cause


def _raises():
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("wire", "near"), [({}, 0.005), (LOSSY, 0.05)], ids=["floats", "lossy deltas"]
)
def test_rounds_are_nearly_those_of_one_after_another(tiny, run, trained, wire, near):
    sections = {"data": {"partition": "dirichlet"}, "train": SMALL, "wire": wire}
    alone, first = run(tiny(**sections), "alone")
    assert not trained
    together, second = run(tiny(**sections, run={"cohort": 3}), "together")
    assert trained == [3] * 3  # the fourth client trains alone
    for one, other in zip(alone.rows(), together.rows(), strict=True):
        assert (other.clients, other.failures) == (4, 0)
        assert other.train_loss == pytest.approx(one.train_loss, rel=0.01)
        assert other.test_loss == pytest.approx(one.test_loss, rel=0.02)
        assert other.payload_bytes_up == pytest.approx(one.payload_bytes_up, rel=0.01)
        assert other.payload_bytes_down == pytest.approx(one.payload_bytes_down, rel=0.01)
        parts = [[p["partition"] for p in row.contributions] for row in (one, other)]
        assert parts[0] == parts[1]
    start = pack(build(alone.recipe().model, seed=alone.recipe().run.seed))
    moved, apart = (np.linalg.norm(first.values - v) for v in (start, second.values))
    assert apart < near * moved


def test_what_clients_keep_and_a_resumed_run_come_to_the_same_bits(tiny, run, trained):
    recipe = tiny(train={"batch_norm": "local", "rounds": 3}, data={"holdout": 0.1},
                  run={"cohort": 4}, wire=LOSSY)  # fmt: skip
    _, whole = run(recipe, "whole")
    assert trained == [4] * 3

    def interrupt(row):
        if row.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, "parts", interrupt)
    folder, parts = run(recipe, "parts")
    assert [row.round for row in folder.rows()] == [1, 2, 3]
    assert np.array_equal(whole.values, parts.values)
    assert set(whole.clients) == {0, 1, 2, 3}
    assert {n: a.tobytes() for n, a in whole.clients.items()} == {
        n: a.tobytes() for n, a in parts.clients.items()
    }


def test_a_client_that_raises_is_named_and_the_others_stand(tiny, run, trained, trouble, caplog):
    trouble(_raises)
    folder, _ = run(tiny(run={"cohort": 4}))
    assert [row.failures for row in folder.rows()] == [0, 1]
    assert folder.rows()[1].failed == {"client 1": "raised OSError: the disk is gone"}
    assert [part["partition"] for part in folder.rows()[1].contributions] == [0, 2, 3]
    assert trained == [4, 3]
    assert "client 1 raised" in caplog.text
    assert "the disk is gone" in caplog.text


@pytest.mark.parametrize(
    ("run", "wanted"),
    [({"cohort": 3}, 3), ({"cohort": 9}, 4), ({"workers": 2}, 2), ({"device": "cpu"}, 1)],
)
def test_how_many_train_at_the_same_time_is_known_before_the_run(tiny, run, wanted):
    assert clients_at_once(tiny(run=run)) == wanted


def test_a_cohort_in_which_one_hangs_is_late_as_a_whole(tiny, run, trouble):
    trouble(lambda: time.sleep(600))
    server = {"round_timeout": 10.0, "min_clients": 1}
    began = time.monotonic()
    folder, _ = run(tiny(run={"cohort": 2}, server=server))
    late = "did not answer within 10 s"
    assert folder.rows()[1].failed == {"client 0": late, "client 1": late}
    assert folder.rows()[1].clients == 2
    assert time.monotonic() - began < 200


def test_clients_that_cannot_train_at_once_train_one_by_one(tiny, run, monkeypatch, caplog):
    _, alone = run(tiny(), "alone")

    tried = []

    def batched(*_):
        tried.append(1)
        raise RuntimeError("out of memory")

    monkeypatch.setattr("client.local_clients.Replicas.step", batched)
    folder, state = run(tiny(run={"cohort": 4}), "together")
    assert [row.failures for row in folder.rows()] == [0, 0]
    assert np.array_equal(alone.values, state.values)
    assert "4 clients cannot train at once, and train one by one; at most 2" in caplog.text
    assert "2 clients cannot train at once, and train one by one; at most 1" in caplog.text
    assert "out of memory" in caplog.text
    assert len(tried) == 2, "in the second round two at once, and then none any more"


def test_one_that_raises_in_training_fails_alone(tiny, run, caplog):
    """A ResNet-18 needs two images of 32 x 32 for its last norms; the second shard has one."""
    model = {"name": "resnet18", "parametrization": "dense", "width": 1.0}
    data, train = {"clients": 2, "images": 3}, {"rounds": 1, "batch_size": 2}
    folder, _ = run(tiny(model=model, data=data, train=train, run={"cohort": 2}))
    (row,) = folder.rows()
    assert row.clients == 1
    (reason,) = row.failed.values()
    assert "Expected more than 1 value per channel" in reason
    assert "of 2 clients at once one raised; they train one by one" in caplog.text


def test_a_reply_that_cannot_be_made_is_that_clients_failure_alone(tiny, run, monkeypatch):
    keep = client_app.keep

    def kept(context, recipe, partition, *more):
        if partition == 1:
            raise OSError("no space left")
        keep(context, recipe, partition, *more)

    monkeypatch.setattr("client.app.keep", kept)
    folder, _ = run(tiny(run={"cohort": 4}, server={"min_clients": 1}))
    assert [row.failures for row in folder.rows()] == [1, 1]
    assert "no space left" in folder.rows()[0].failed["client 1"]


def test_ten_clients_train_at_once_on_a_gpu_unless_the_recipe_says(tiny, monkeypatch):
    for device, count in (("cpu", 1), ("cuda", 10)):
        monkeypatch.setattr(
            "simulations.clients_together.device_of", lambda _, d=device: torch.device(d)
        )
        assert at_once(tiny()) == count
        assert at_once(tiny(run={"cohort": 3})) == 3
        assert at_once(tiny(run={"client_app": "mine:app"})) == 1


def test_a_cohort_is_not_for_a_superlink_of_the_environment(tiny, monkeypatch):
    monkeypatch.setenv("CSG_SUPERLINK", "127.0.0.1:1")
    assert deployed(tiny()).run.engine == "flower"
    with pytest.raises(RecipeError, match=r"CSG_SUPERLINK: run.cohort 2 goes with run.engine"):
        deployed(tiny(run={"cohort": 2}))
