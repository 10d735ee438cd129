"""Clients of this process are handed arrays in place of bytes, and nothing but time tells."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from client.app import make_app
from client.job import Job
from client.local import LocalClient
from client.shard import Shards
from csg_core import build, manifest, pack
from csg_core.payload import Passed, PayloadError
from server.downlink import Downlink
from server.record import RunFolder
from server.state import load_state
from simulations import local_engine
from simulations.local_engine import run_local

app = make_app()  # a client's, as a user may have one


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a recipe in a folder of its own, as it is or by bytes; rows and the last state."""

    def go(recipe, on_round=lambda _row: None, *, passes, name=None):
        path = tmp_path / (name or f"passes-{passes}")
        section = recipe.run.model_copy(update={"dir": str(path)})
        recipe = recipe.model_copy(update={"run": section})
        folder = RunFolder(path)
        if not path.exists():
            folder.create(recipe, {}, [])
        with monkeypatch.context() as changed:
            if not passes:
                changed.setattr(local_engine, "CLIENT_APP", "another")
            run_local(recipe, on_round)
        rows = [_timeless(row) for row in folder.rows()]
        return rows, load_state(folder.checkpoints, recipe.model, recipe.train.travelling())

    return go


def _timeless(row):
    parts = [{**part, "seconds": 0.0} for part in row.contributions]
    return replace(row, seconds=0.0, contributions=parts)


@pytest.fixture
def passed(monkeypatch):
    """The lengths of all payloads that clients were handed as arrays."""
    found, receive = [], LocalClient._receive

    def noting(self, payload, *rest, **more):
        found.extend([len(payload)] * isinstance(payload, Passed))
        return receive(self, payload, *rest, **more)

    monkeypatch.setattr(LocalClient, "_receive", noting)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"data": {"partition": "dirichlet"}, "run": {"cohort": 3}},
        {"model": {"parametrization": "dense"}, "train": {"momentum": 0.0}},
        {"server": {"strategy": "fedavgm", "options": {"server_momentum": 0.5}}},
        {"server": {"strategy": "krum", "options": {"num_malicious_nodes": 1}}},
        {"data": {"clients": 10}, "train": {"rounds": 1}},
        {"server": {"strategy": "fedprox", "options": {"proximal_mu": 0.1}}},
        {"train": {"batch_norm": "local"}, "data": {"holdout": 0.1}},
    ],
    ids=["plain", "at once", "dense", "fedavgm", "krum", "ten", "fedprox", "own norms"],
)
def test_rounds_are_to_the_last_bit_those_of_bytes(tiny, run, passed, sections):
    recipe = tiny(**sections)
    rows, state = run(recipe, passes=True)
    handed = len(passed)
    by_bytes, wanted = run(recipe, passes=False)
    assert handed == len(passed) > 0
    assert rows == by_bytes  # bytes among all else
    assert np.array_equal(state.values, wanted.values)
    for found, others in ((state.carried, wanted.carried), (state.clients, wanted.clients)):
        assert {n: a.tobytes() for n, a in found.items()} == {
            n: a.tobytes() for n, a in others.items()
        }


@pytest.mark.slow
def test_a_run_goes_on_from_where_it_was_by_bytes_or_by_arrays(tiny, run, monkeypatch):
    """And a client that fails is left out of one as of the other."""
    fit = LocalClient.fit

    def failing(self, job):
        if (job.round_, job.partition) == (2, 1):
            raise OSError("the disk is gone")
        return fit(self, job)

    monkeypatch.setattr(LocalClient, "fit", failing)
    recipe = tiny(train={"rounds": 3})
    rows, whole = run(recipe, passes=True)
    assert [row.failures for row in rows] == [0, 1, 0]

    def interrupt(row):
        if row.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, interrupt, passes=False)
    mixed, parts = run(recipe, passes=True, name="passes-False")
    assert mixed == rows
    assert np.array_equal(whole.values, parts.values)


@pytest.mark.parametrize(
    ("run", "wanted"),
    [
        ({}, True),
        ({"cohort": 3}, True),
        ({"workers": 2}, False),
        ({"client_app": f"{__name__}:app"}, False),
    ],
    ids=["one by one", "at once", "workers", "another client"],
)
def test_clients_of_this_process_alone_take_arrays(tiny, monkeypatch, run, wanted):
    found = []
    monkeypatch.setattr(local_engine, "serve", lambda _recipe, grid, _tell: found.append(grid))
    run_local(tiny(run=run), lambda _row: None)
    assert found[0].in_process == wanted


def test_what_is_passed_is_checked(tiny):
    recipe = tiny()
    client, model = LocalClient(recipe), build(recipe.model, seed=recipe.run.seed)
    downlink = Downlink(recipe, manifest(model), pack(model))
    payload = downlink.pass_on(pack(model), 1)
    shard = Shards(recipe, client.device)[0]
    trained = client.train(Job(payload=payload, shard=shard, round_=1, partition=0))
    update = trained.payload
    assert isinstance(update, Passed)
    size = update.values.numel()
    assert update.opened(size, "update", 1, downlink.version) is update.values
    for wanted in (("model", 1, 1), ("update", 2, 1), ("update", 1, 2)):
        with pytest.raises(PayloadError, match="update of round 1, version 1; expected"):
            update.opened(size, *wanted)
    with pytest.raises(PayloadError, match="model of round 1, version 1; expected model of rou"):
        client.train(Job(payload=payload, shard=shard, round_=2, partition=0))
    broken = torch.full_like(payload.values, float("nan"))
    job = Job(payload=replace(payload, values=broken), shard=shard, round_=1, partition=0)
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        client.train(job)
