"""Generators: learned, frozen and binary; what they hold, and that seeds rebuild them exactly."""

import copy
import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from csg_core import SliceGenerator, build, manifest, pack, paper_std
from csg_core.spec import ModelSpec

# Fixed once: a seeded generator must be the same bits on every machine, for ever.
DIGESTS = {
    "frozen": "1fe653cd929bbb85fb73d5965328814fac77e5b481c609c630ec492942355a95",
    "binary": "72f66abbb0fc32552770e14a4750e2f1f141a0f6566140dbd20fc76d4bf6c897",
}
SCRIPT = """
import hashlib, sys, torch
from csg_core import SliceGenerator
torch.set_num_threads(int(sys.argv[2]))
weight = SliceGenerator(12, 72, kind=sys.argv[1], seed=7).weight
print(hashlib.sha256(weight.numpy().tobytes()).hexdigest())
"""


def _digest(kind: str) -> str:
    weight = SliceGenerator(12, 72, kind=kind, seed=7).weight
    return hashlib.sha256(weight.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("kind", ["frozen", "binary"])
def test_a_seeded_generator_is_the_same_bits_everywhere(kind):
    assert _digest(kind) == DIGESTS[kind]


@pytest.mark.parametrize("kind", ["frozen", "binary"])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_seeded_generator_is_equal_across_processes_and_thread_counts(kind, threads):
    command = [sys.executable, "-c", SCRIPT, kind, str(threads)]
    found = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert found.stdout.strip() == _digest(kind)


@pytest.mark.parametrize("kind", ["frozen", "binary"])
def test_a_seeded_generator_neither_trains_nor_travels_nor_is_saved(kind):
    model = build(ModelSpec(generator=kind, generator_seed=5))
    assert not list(model.layer1[0].conv1.generator.parameters())
    saved = [name for name in model.state_dict() if "generator" in name]
    assert saved == ["layer1.0.conv1.generator.draw"]
    assert manifest(model).count("generator") == 0


@pytest.mark.parametrize(
    "there", [{"generator_seed": 12}, {"generator": "frozen"}, {"start": "paper"}]
)
def test_loading_a_draw_rebuilds_the_generator_it_describes(there):
    saved = build(ModelSpec(generator="binary", generator_seed=11))
    other = build(ModelSpec(**({"generator": "binary", "generator_seed": 11} | there)))
    x = torch.randn(2, 3, 32, 32)
    other.load_state_dict(saved.state_dict())
    assert torch.equal(
        other.layer1[0].conv1.generator.weight, saved.layer1[0].conv1.generator.weight
    )
    assert torch.equal(other.eval()(x), saved.eval()(x))


def test_a_drawn_generator_gets_its_digits_back_from_half():
    generator = SliceGenerator(4, 12, kind="frozen", seed=3)
    before = generator.weight.clone()
    assert not torch.equal(generator.half().weight.float(), before)
    assert torch.equal(generator.float().weight, before)


def test_a_draw_loads_into_a_model_without_values():
    generator = SliceGenerator(4, 12, kind="frozen", seed=3)
    there = copy.deepcopy(generator).to("meta")
    there.load_state_dict(generator.state_dict(), assign=True)
    assert torch.equal(there.weight, generator.weight)


def test_binary_values_are_two_and_balanced():
    generator = SliceGenerator(kind="binary", std=paper_std(72, "binary"))
    assert generator.weight.unique().tolist() == [-0.5, 0.5]
    assert abs(float(generator.weight.mean())) < 0.01


def test_frozen_draw_has_the_asked_deviation():
    generator = SliceGenerator(kind="frozen", std=0.3)
    assert float(generator.weight.std()) == pytest.approx(0.3, rel=0.01)
    assert float(generator.weight.mean()) == pytest.approx(0.0, abs=0.005)


def test_a_generator_taken_from_elsewhere_is_saved_but_does_not_train_or_travel():
    weight = torch.randn(12 * 12 * 9, 72)
    model = build(ModelSpec(generator="frozen"), generator_weight=weight)
    assert torch.equal(model.layer1[0].conv1.generator.weight, weight)
    assert not list(model.layer1[0].conv1.generator.parameters())
    assert "layer1.0.conv1.generator.weight" in model.state_dict()
    other = build(ModelSpec(generator="frozen"), generator_weight=weight + 1)
    assert manifest(model).fingerprint != manifest(other).fingerprint


def test_learned_generators_differ_by_seed_and_agree_on_the_same():
    first, same, other = (SliceGenerator(seed=s).weight for s in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slice_size": 0}, "slice size 0 is too small; use 1 or more"),
        ({"code_size": -1}, "code size -1 is too small"),
        ({"kernel_size": 0}, "kernel size 0 is too small"),
        ({"slice_size": 2, "code_size": 37}, "code size 37 is larger than the slice it makes"),
        ({"kind": "magic"}, "generator 'magic' is unknown; use one of learned, frozen, binary"),
        ({"seed": -3}, "seed -3 is out of range"),
        ({"std": 0.0}, "std 0.0 is no standard deviation"),
        ({"kind": "frozen", "std": 1e300}, "is no standard deviation"),
        ({"weight": torch.zeros(1296, 72)}, "is zero everywhere; give another"),
        ({"weight": torch.zeros(1296, 72, dtype=torch.int64)}, "int64 torch.strided; give floats"),
        ({"weight": torch.zeros(1296, 72).to_sparse()}, "torch.sparse_coo; give floats"),
        ({"weight": torch.zeros(3, 4)}, r"has shape \(3, 4\).* need \(1296, 72\)"),
        ({"weight": torch.full((1296, 72), torch.nan)}, "holds NaN or infinity; give a finite"),
        ({"kind": "binary", "weight": torch.zeros(1296, 72)}, "drawn from its seed"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        SliceGenerator(**arguments)
    assert "\n" not in str(caught.value)


def test_a_build_draws_on_the_cpu_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    with torch.device("meta"):  # as one that a caller has chosen
        SliceGenerator(4, 4)
        there = build(ModelSpec(width=0.25), seed=3)
    here = build(ModelSpec(width=0.25), seed=3)
    assert np.array_equal(pack(there), pack(here))
    assert torch.equal(torch.get_rng_state(), before)
    assert not seeded, "a caller's dropout on a GPU goes on"


def test_a_draw_that_describes_no_generator_is_refused():
    generator = SliceGenerator(kind="frozen")
    before = generator.draw.clone(), generator.weight.clone()
    with pytest.raises(ValueError, match="describes no generator"):
        generator.load_state_dict({"draw": torch.tensor([9, 1, 1])})
    assert torch.equal(generator.draw, before[0])
    assert torch.equal(generator.weight, before[1])


def test_a_learned_generator_starts_from_the_seed_of_the_build():
    first, other = (build(ModelSpec(), seed=s).layer1[0].conv1.generator for s in (1, 2))
    assert not torch.equal(first.weight, other.weight)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slice_size": 4.5}, r"slice size 4\.5 cannot be; use a whole number"),
        ({"code_size": "8"}, "code size '8' cannot be"),
        ({"kernel_size": (3, 3)}, r"kernel size \(3, 3\) cannot be"),
        ({"seed": 1.5}, r"seed 1\.5 cannot be; use a whole number"),
        ({"seed": True}, "seed True cannot be"),
    ],
)
def test_sizes_are_whole_numbers_of_any_kind(arguments, message):
    with pytest.raises(ValueError, match=message):
        SliceGenerator(**{"slice_size": 4, "code_size": 8, **arguments})
    numpys = SliceGenerator(np.int64(4), np.int32(8), seed=np.int64(3))
    assert torch.equal(numpys.weight, SliceGenerator(4, 8, seed=3).weight)
    with pytest.raises(ValueError, match="code_size 0 cannot be"):
        paper_std(0)
