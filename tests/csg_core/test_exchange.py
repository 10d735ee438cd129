"""What travels, in which order, as one array, and that models which differ refuse each other."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from csg_core import build, exchanged, manifest, pack, split, to_safetensors, unpack, unwrap
from csg_core.entries import GROUPS, KernelGrid
from csg_core.exchange import Exchanged, finite_rows, stacked
from csg_core.modules import generators
from csg_core.spec import ModelSpec

SPECS = st.builds(
    ModelSpec,
    name=st.sampled_from(["resnet20", "densenet40-36"]),
    parametrization=st.sampled_from(["csg", "dense"]),
    slice_size=st.integers(4, 16),
    code_size=st.integers(1, 40),
    generator=st.sampled_from(["learned", "frozen", "binary"]),
    layout=st.sampled_from(["block", "flat"]),
    width=st.sampled_from([0.25, 0.5]),
)


@settings(deadline=None, max_examples=15)
@given(SPECS)
def test_unpacking_what_another_model_packed_makes_them_equal(spec):
    source, target = build(spec, seed=1), build(spec, seed=2)
    assert manifest(source) == manifest(target)
    unpack(target, pack(source))
    assert np.array_equal(pack(target), pack(source))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(target.eval()(x), source.eval()(x))


def test_order_and_groups_of_a_generated_resnet():
    model = build(ModelSpec())
    entries = list(exchanged(model))
    assert [GROUPS.index(e.group) for e in entries] == sorted(
        GROUPS.index(e.group) for e in entries
    )
    assert entries[0].name == "layer1.0.conv1.generator.weight"
    assert entries[0].shape == (1296, 72)
    counted = manifest(model)
    assert counted.count("generator") == 93_312
    assert counted.count("codes") == 19_656
    assert counted.count("norms") == 1_376
    assert counted.count("head") == 650
    assert counted.count("other") == 432
    assert counted.count("statistics") == 1_376
    assert counted.size == 115_426 + 1_376
    names = [e.name for e in entries]
    assert len(names) == len(set(names))
    assert not any("num_batches_tracked" in name for name in names)


def test_the_head_is_the_last_linear_layer():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2), nn.ReLU())
    groups = {entry.name: entry.group for entry in manifest(model).entries}
    assert groups["2.weight"] == groups["2.bias"] == "head"
    assert groups["0.weight"] == "other"
    assert "head" not in {part.group for part in manifest(nn.Conv2d(3, 4, 3)).parts}


def test_what_does_not_train_does_not_travel():
    model = build(ModelSpec())
    model.fc.weight.requires_grad_(False)
    assert "fc.weight" not in {e.name for e in exchanged(model)}
    assert "fc.bias" in {e.name for e in exchanged(model)}


def test_kernels_are_told_to_codecs():
    """Of the generator, whose columns are slices of kernels, and of plain convolutions."""
    model = build(ModelSpec(name="resnet20", classes=10, slice_size=4, code_size=12), seed=0)
    grids = {entry.name: entry.grid for entry in manifest(model).entries if entry.grid.spatial}
    assert grids.pop("conv1.weight") == KernelGrid((3, 3))
    assert list(grids.values()) == [KernelGrid((3, 3), 12)]
    dense = build(ModelSpec(name="resnet20", classes=10, parametrization="dense"), seed=0)
    sides = {part.grid.sides for part in manifest(dense).parts if part.grid.spatial}
    assert sides == {(3, 3)}


def test_split_gives_every_tensor_in_its_shape():
    model = build(ModelSpec())
    parts = split(pack(model), tuple(exchanged(model)))
    for entry, tensor in exchanged(model).items():
        assert np.array_equal(parts[entry], tensor.detach().numpy())


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"name": "resnet32"}, r"layer1\.3\.conv1\.codes is absent here and codes \(4, 72\) there"),
        (
            {"slice_size": 16},
            r"generator\.weight is generator \(1296, 72\) here and .*2304, 72\) there",
        ),
        (
            {"code_size": 36},
            r"generator\.weight is generator \(1296, 72\) here and .*1296, 36\) there",
        ),
        (
            {"generator": "frozen"},
            r"generator\.weight is generator \(1296, 72\) here and absent there",
        ),
        (
            {"layout": "flat"},
            r"kernel layer1\.0\.conv1 is 16 x 16 block by .* here and .*flat.* there",
        ),
        ({"classes": 7}, r"fc\.weight is head \(10, 64\) here and head \(7, 64\) there"),
        (
            {"parametrization": "dense"},
            r"generator\.weight is generator \(1296, 72\) here and absent",
        ),
    ],
)
def test_models_that_do_not_match_refuse_each_other_by_name(other, named):
    here, there = manifest(build(ModelSpec())), manifest(build(ModelSpec(**other)))
    assert here.fingerprint != there.fingerprint
    assert re.search(named, here.difference(there))


def test_seeds_of_frozen_generators_are_part_of_the_fingerprint():
    first, same, other = (
        manifest(build(ModelSpec(generator="binary", generator_seed=s), seed=i))
        for i, s in enumerate([1, 1, 2])
    )
    assert first.difference(same) is None
    assert first.fingerprint == same.fingerprint
    assert re.search(r'"seed": 1.* here and .*"seed": 2.* there', first.difference(other))


def test_a_generator_that_is_kept_from_training_is_part_of_the_fingerprint():
    made = [build(ModelSpec(width=0.25), seed=seed) for seed in (0, 0, 5)]
    for model in made:
        (generator,) = generators(model).values()
        generator.weight.requires_grad_(requires_grad=False)
    first, same, other = map(manifest, made)
    assert first.difference(same) is None
    assert "sha256" in first.difference(other)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: a[:-1], r"packed array is float32 \(116801,\); this model needs float32"),
        (lambda a: a.astype(np.float64), "packed array is float64"),
        (lambda a: a.tolist(), "packed is a list; give an array, as pack does"),
        (lambda a: a.reshape(1, -1), r"\(1, 116802\)"),
        (lambda a: np.where(np.arange(a.size) == 5, np.nan, a).astype("f4"),
         r"generator\.weight holds"),
        (lambda a: np.where(np.arange(a.size) == a.size - 1, np.inf, a).astype("f4"),
         r"layer3\.2\.bn2\.running_var holds NaN or infinity"),
    ],
)  # fmt: skip
def test_a_bad_array_is_refused_and_nothing_is_written(damage, message):
    model = build(ModelSpec())
    before = pack(model).copy()
    with pytest.raises(ValueError, match=message):
        unpack(model, damage(before * 2))
    assert np.array_equal(pack(model), before)


def test_unpacking_keeps_no_tie_to_the_array():
    model = build(ModelSpec())
    packed = pack(model).copy()
    unpack(model, packed)
    packed[:] = 0
    assert model.layer1[0].conv1.generator.weight.abs().sum() > 0


def test_wrapped_models_exchange_what_the_model_inside_does():
    model = build(ModelSpec())
    for wrapped in (nn.DataParallel(model), torch.compile(model)):
        assert unwrap(wrapped) is model
        assert manifest(wrapped) == manifest(model)
        assert np.array_equal(pack(wrapped), pack(model))


def test_only_the_norms_buffers_travel():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.register_buffer("pixel_mean", torch.zeros(3))

    names = {e.name for e in exchanged(Scaled()) if e.group == "statistics"}
    assert names == {"norm.running_mean", "norm.running_var"}


def test_values_that_overflow_the_models_dtype_are_refused():
    model = build(ModelSpec()).half()
    before = pack(model).copy()
    with pytest.raises(ValueError, match="holds NaN or infinity; nothing was written"):
        unpack(model, np.full_like(before, 1e6))
    assert np.array_equal(pack(model), before)


def test_a_model_with_nothing_to_exchange_packs_to_nothing():
    model = nn.Linear(2, 2).requires_grad_(False)
    assert pack(model).shape == (0,)
    unpack(model, pack(model))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("groups", [GROUPS, ("norms",), ()])
def test_models_that_are_alike_are_packed_as_the_rows_of_one_array(count, groups):
    models = [build(ModelSpec(), seed=seed) for seed in range(count)]
    for model in models:
        model.to(memory_format=torch.channels_last)
    rows = stacked([Exchanged(model, groups) for model in models])
    assert rows.dtype == torch.float32
    assert np.array_equal(rows.numpy(), [pack(model, groups) for model in models])
    rows.zero_()
    assert all(pack(model, groups).any() for model in models if groups), "a copy"


def test_rows_that_hold_no_numbers_are_told_from_others():
    values = torch.ones(4, 5)
    values[1, 4], values[2, 0], values[3, 2] = float("nan"), float("inf"), float("-inf")
    assert finite_rows(values) == [True, False, False, False]
    assert finite_rows(values[:, :0]) == [True] * 4


def test_a_generator_that_left_with_its_layer_is_missed_and_can_be_brought_back():
    model = build(ModelSpec(width=0.25))
    first = model.layer1[0].conv1
    model.layer1[0].conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    for using in (manifest, pack, to_safetensors):
        with pytest.raises(ValueError, match="is no module of the model") as caught:
            using(model)
    exec(str(caught.value).partition(": ")[2], {"model": model})
    assert manifest(model).count("generator") == first.generator.weight.numel()


def test_groups_may_come_one_by_one():
    model = build(ModelSpec(width=0.25))
    assert pack(model, (group for group in ["head", "codes"])).size > 0


def test_what_makes_a_tensor_travels_with_its_group():
    model = build(ModelSpec(width=0.25))
    before = manifest(model)
    nn.utils.parametrizations.weight_norm(model.fc)
    nn.utils.parametrizations.weight_norm(model.layer1[0].conv1, "codes")
    nn.utils.parametrizations.orthogonal(model.layer1[0].conv1.generator, "weight")
    after = manifest(model)
    assert after.count("generator") == before.count("generator")
    assert after.count("other") == before.count("other")
    assert [e.name for e in after.entries if e.group == "head"] == [
        "fc.bias", "fc.parametrizations.weight.original0", "fc.parametrizations.weight.original1",
    ]  # fmt: skip
    alone = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    assert {entry.group for entry in manifest(alone).entries} == {"head"}


@pytest.mark.parametrize("groups", [["norm"], "norms"])
def test_unknown_groups_are_named(groups):
    with pytest.raises(ValueError, match="give a list of generator, codes, norms"):
        manifest(build(ModelSpec(width=0.25)), groups)


def test_an_array_longer_than_its_entries_is_not_split():
    entries = list(exchanged(build(ModelSpec(width=0.25)), ["head"]))
    with pytest.raises(ValueError, match="packed array has shape"):
        split(np.zeros(10_000, np.float32), entries)


def test_a_complex_tensor_is_named_rather_than_halved():
    model = nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(ValueError, match=r"0\.weight is complex"):
        pack(model)
