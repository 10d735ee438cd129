"""Recipes of the package can be run, and a dense twin is the same recipe but for its network."""

import re
from argparse import Namespace
from dataclasses import replace

import pytest

from federation.recipe_file import read_recipe
from federation.wire_section import WireConfig
from simulations.cli import main
from simulations.estimate import estimate
from simulations.recipe_names import recipe_from, recipe_names

# what a twin has as plain FedAvg has it, beside its network
_COMPRESSED = {
    "train.clip_norm", "server.strategy", "server.options",
    "wire.uplink", "wire.downlink", "wire.deltas", "wire.predict",
}  # fmt: skip
_PLAIN = {"cifar10-compressed": _COMPRESSED, "cifar10-compressed-wide": _COMPRESSED}


def _recipe(name):
    return recipe_from(Namespace(recipe=name, set=[]))[1]


def _values(recipe):
    sections = recipe.model_dump().items()
    return {f"{section}.{key}": value for section, keys in sections for key, value in keys.items()}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_has_costs(name):
    recipe = _recipe(name)
    found = estimate(recipe)
    each = found["payload_bytes_up"] + found["payload_bytes_down"]
    assert 0 < found["total_bytes"] <= each * recipe.cohort * recipe.train.rounds
    assert (found["ratio_to_dense"] > 1) == (recipe.model.parametrization == "csg")


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_printed_with_what_its_keys_mean(name, tmp_path, capsys):
    assert main(["estimate", name, "--toml"]) == 0
    (tmp_path / "mine.toml").write_text(text := capsys.readouterr().out)
    assert read_recipe(tmp_path / "mine.toml") == _recipe(name)
    keys = [line for line in text.splitlines() if line and not line.startswith("[")]
    assert len(keys) > 60
    assert all(re.fullmatch(r"(# )?[a-z_]+ = .*  # \S.*", line) for line in keys)


@pytest.mark.parametrize("name", [n for n in recipe_names() if n.endswith("-dense")])
def test_a_twin_differs_in_its_network_alone(name):
    ours, twin = _recipe(name.removesuffix("-dense")), _recipe(name)
    assert twin.model == replace(ours.model, parametrization="dense")
    first, second = _values(ours), _values(twin)
    changed = {key for key in first if first[key] != second[key] and not key.startswith("model.")}
    assert changed == _PLAIN.get(name.removesuffix("-dense"), set())
    assert twin.server.strategy == "fedavg"
    assert twin.wire == WireConfig()
    assert twin.train.clip_norm is None
