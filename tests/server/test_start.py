"""A run begins with another model, or with another network's generator."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from csg_core import build, manifest, pack
from csg_core.codecs import codec_named
from csg_core.payload import payload_bytes
from federation.recipe import RecipeError
from federation.sections import ServerConfig
from server.checkpoints import CheckpointError, write_checkpoint
from server.record import RunFolder
from server.start import started
from server.state import load_state
from simulations.cli import main
from simulations.estimate import estimate
from simulations.local_engine import run_local

DELTAS = {"uplink": "ecsq", "downlink": "ecsq", "deltas": True}


@pytest.fixture
def checkpoint(tiny, tmp_path):
    """A model's checkpoint; sections of the recipe that describes it."""

    def make(name="other.safetensors", seed=7, **sections):
        recipe = tiny(**sections)
        model = build(recipe.model, seed=seed)
        write_checkpoint(tmp_path / name, model, recipe.model, {})
        return str(tmp_path / name), pack(model)

    return make


def _ran(recipe, tmp_path):
    """A run, the state that it began with and the one it came to."""
    settings = {"dir": str(tmp_path / "run"), "checkpoint_every": 1}
    recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update=settings)})
    folder = RunFolder(Path(recipe.run.dir))
    folder.create(recipe, {}, [])
    run_local(recipe, lambda _row: None)
    groups = recipe.train.travelling()
    return folder, load_state(folder.checkpoints, recipe.model, groups)


def test_the_record_tells_which_file_it_was(tmp_path, checkpoint):
    network = {"width": 0.25, "slice_size": 4, "code_size": 12}
    path, _ = checkpoint(seed=0, model=network)
    settings = [f"model.{key}={value}" for key, value in network.items()]
    settings += [f"server.start_from={path}", f"run.dir={tmp_path / 'run'}"]
    settings += ["data.clients=2", "data.images=40", "train.rounds=1"]
    assert main(["run", "demo", *(part for value in settings for part in ("--set", value))]) == 0
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert RunFolder(tmp_path / "run").environment()["start_from sha256"] == digest


def test_what_a_dense_model_says_of_a_generator_is_not_looked_at(tiny, checkpoint):
    path, values = checkpoint(seed=0, model={"parametrization": "dense", "code_size": 36})
    recipe = tiny(model={"parametrization": "dense"}, server={"start_from": path})
    np.testing.assert_array_equal(started(recipe), values)


@pytest.mark.parametrize("wire", [{}, DELTAS], ids=["whole models", "deltas"])
def test_clients_train_from_the_model_that_is_named(tiny, tmp_path, checkpoint, wire):
    path, values = checkpoint()
    recipe = tiny(wire=wire, train={"rounds": 1, "lr": 1e-7}, server={"start_from": path})
    folder, state = _ran(recipe, tmp_path)
    size = len(values) - manifest(build(recipe.model)).count("statistics")  # which do move
    near = 1e-3 if wire else 1e-5  # in float16, where deltas are sent
    np.testing.assert_allclose(state.values[:size], values[:size], rtol=near, atol=near)
    (row,) = folder.rows()
    assert row.failures == 0
    parts = manifest(build(recipe.model)).parts
    whole = payload_bytes(parts, codec_named("fp16" if wire else "fp32"))
    assert row.payload_bytes_down == 4 * whole


def test_another_networks_generator_serves_and_need_not_train(tiny, tmp_path, checkpoint):
    path, other = checkpoint(model={"name": "resnet32"})
    recipe = tiny(
        wire={**DELTAS, "generator_until": 0},
        train={"rounds": 3},
        server={"start_from": path, "start_with": "generator"},
    )
    folder, state = _ran(recipe, tmp_path)
    found = manifest(build(recipe.model))
    size = found.count("generator")
    assert np.array_equal(state.values[:size], other[:size].astype(np.float16).astype(np.float32))
    first = pack(build(recipe.model, seed=recipe.run.seed))
    assert not np.array_equal(state.values[size:], first[size:])
    rows = folder.rows()
    assert all(row.failures == 0 for row in rows)
    whole = payload_bytes(found.parts, codec_named("fp16"))
    assert rows[0].payload_bytes_down == 4 * whole
    assert rows[1].payload_bytes_down < 4 * whole / 5, "the generator came with the first model"
    plain = recipe.model_copy(update={"server": ServerConfig()})
    more = estimate(recipe)["total_bytes"] - estimate(plain)["total_bytes"]
    assert more == 4 * (whole - payload_bytes(found.parts, codec_named("none"))), (
        "round 1 takes a whole model"
    )


def test_a_run_that_is_resumed_needs_the_file_no_more(tiny, tmp_path, checkpoint):
    path, _ = checkpoint()
    recipe = tiny(train={"rounds": 1}, server={"start_from": path})
    folder, state = _ran(recipe, tmp_path)
    Path(path).unlink()
    longer = folder.recipe().model_copy(
        update={"train": recipe.train.model_copy(update={"rounds": 2})}
    )
    run_local(longer, lambda _row: None)
    assert len(folder.rows()) == 2
    again = load_state(folder.checkpoints, recipe.model, recipe.train.travelling())
    assert not np.array_equal(again.values, state.values)


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        ({"name": "resnet32"}, {}, "whose name is 'resnet32'; the recipe's is 'resnet20'"),
        ({"parametrization": "dense"}, {}, "whose parametrization is 'dense'"),
        ({"code_size": 10}, {"with": "generator"}, "whose code_size is 10; the recipe's is 12"),
        ({"parametrization": "dense"}, {"with": "generator"}, "is resnet20 dense, without a gen"),
        ({}, {"with": "generator", "generator": "frozen"}, "s=4 d=12 frozen, which learns no gen"),
        ({}, {"with": "generator", "parametrization": "dense"}, "dense, which learns no generator"),
    ],
)
def test_a_checkpoint_without_what_is_wanted_is_named(tiny, checkpoint, theirs, ours, said):
    path, _ = checkpoint(model=theirs)
    model = {key: value for key, value in ours.items() if key != "with"}
    server = {"start_from": path, "start_with": ours.get("with", "model")}
    with pytest.raises(CheckpointError, match=said) as raised:
        started(tiny(model=model, server=server))
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["densenet40-36", "pfl-cnn"])
def test_a_generator_fits_networks_that_call_it_otherwise(tiny, checkpoint, name):
    path, other = checkpoint()
    width = 0.25 if name.startswith("densenet") else 1.0
    recipe = tiny(
        model={"name": name, "width": width},
        server={"start_from": path, "start_with": "generator"},
    )
    size = manifest(build(recipe.model)).count("generator")
    assert np.array_equal(started(recipe)[:size], other[:size])


def test_what_never_travels_has_to_be_the_seeds(tiny, checkpoint):
    flocora = {"parametrization": "flocora", "options": {"rank": 2}}
    path, values = checkpoint(model=flocora, seed=7)
    server = {"start_from": path}
    same = tiny(model=flocora, server=server, run={"seed": 7})
    assert np.array_equal(started(same), values)
    with pytest.raises(
        CheckpointError, match=r"never travels, and is not the one that run\.seed=0"
    ):
        started(tiny(model=flocora, server=server))
    other = {**flocora, "options": {"rank": 2, "alpha": 1.0}}
    with pytest.raises(CheckpointError, match="whose options is"):
        started(tiny(model=other, server=server, run={"seed": 7}))


def test_a_value_that_cannot_be_sent_is_found_before_the_run(tiny, tmp_path):
    recipe = tiny(server={"start_from": str(tmp_path / "large.safetensors")})
    model = build(recipe.model)
    with torch.no_grad():
        model.fc.weight[0, 0] = 1e5
    write_checkpoint(tmp_path / "large.safetensors", model, recipe.model, {})
    with pytest.raises(CheckpointError, match=r"large.safetensors: holds a value of 100000; 65504"):
        started(recipe)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"server": {"start_with": "generator"}}, "goes with server.start_from; set that too"),
        (
            {
                "server": {"start_from": "x"},
                "train": {"batch_norm": "local"},
                "data": {"holdout": 0.1},
            },
            "has clients begin with norms of the seed's",
        ),
        ({"wire": {"deltas": True, "generator_until": True}}, "generator_until"),
        ({"wire": {"deltas": True, "generator_until": -1}}, "generator_until"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tiny, sections, said):
    with pytest.raises(RecipeError, match=said):
        tiny(**sections)
