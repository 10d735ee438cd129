"""Rivals' kernels: their sizes are those of their papers, they train, travel, fold and resume."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from csg_core import ModelSpec, build, count_trainable, dense_network, fold, manifest, pack, unpack
from csg_core.spec import parametrizations
from federation.recipe import RecipeError, recipe_of
from server.checkpoints import read_checkpoint, write_checkpoint
from simulations.rivals.fedpara import fedpara, rank_of, size_of

RIVALS = ("fedpara", "flocora")


def _spec(name, **options):
    return ModelSpec(name="resnet20", parametrization=name, options=options, classes=10)


def test_they_are_known_by_their_entry_points():
    assert set(parametrizations()) >= {"csg", "dense", *RIVALS}


def test_fedpara_has_the_rank_and_the_size_of_the_paper():
    conv = nn.Conv2d(256, 256, 3, bias=False)  # 589,824 values
    assert rank_of(conv, 0.0) == 16  # R^2 = 256
    assert size_of(conv, 16) == 2 * 16 * (256 + 256 + 16 * 9)
    largest = rank_of(conv, 1.0)
    assert size_of(conv, largest) <= conv.weight.numel() < size_of(conv, largest + 1)


def test_fedpara_reaches_any_rank_and_begins_with_hes_deviation():
    conv = nn.Sequential(nn.Conv2d(64, 64, 3, bias=False))
    fedpara(conv, {"gamma": 0.0}, seed=0)
    kernel = conv[0].weight.detach()
    assert torch.linalg.matrix_rank(kernel.flatten(1)) > 60  # of 64; one sum of 8 x 8 has 8
    assert kernel.square().mean().sqrt() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.3)


def test_flocora_begins_as_the_dense_network_and_keeps_its_kernels():
    model, dense = build(_spec("flocora", rank=4), seed=3), build(_spec("dense"), seed=3)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.eval()(x), dense.eval()(x))
    frozen = [m.parametrizations.weight.original for m in model.modules()
              if parametrize.is_parametrized(m)]  # fmt: skip
    assert len(frozen) == 19
    assert not any(kernel.requires_grad for kernel in frozen)
    assert not any(e.name.endswith("weight.original") for e in manifest(model).entries)


@pytest.mark.parametrize("name", RIVALS)
def test_a_step_changes_all_that_travels_and_nothing_else(name):
    model = build(_spec(name), seed=1)
    assert count_trainable(model) < count_trainable(build(_spec(name).dense_twin()))
    still = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = pack(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # an adapter that is zero hides the other from the first step
        optimizer.zero_grad()
        model(torch.randn(4, 3, 32, 32)).square().mean().backward()
        optimizer.step()
    after, at = pack(model), 0
    for entry in manifest(model).entries:
        changed = (before != after)[at : at + entry.size]
        assert changed.any(), entry.name
        at += entry.size
    for n, p in model.named_parameters():
        if n in still:
            torch.testing.assert_close(p, still[n])


@pytest.mark.parametrize("name", RIVALS)
def test_the_seed_makes_the_model_and_what_travels_completes_it(name):
    one, other = build(_spec(name), seed=1), build(_spec(name), seed=1)
    np.testing.assert_array_equal(pack(one), pack(other))
    sent = pack(one) * np.float32(1.5)
    unpack(one, sent)
    unpack(other, sent)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(one.eval()(x), other.eval()(x))


@pytest.mark.parametrize("name", RIVALS)
def test_a_checkpoint_brings_the_model_back_and_it_folds_to_a_plain_network(tmp_path, name):
    spec = _spec(name)
    model = build(spec, seed=5).eval()
    write_checkpoint(tmp_path / "a.safetensors", model, spec)
    again, restored = read_checkpoint(tmp_path / "a.safetensors")
    assert again == spec
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(restored.eval()(x), model(x))
    plain = fold(model)
    torch.testing.assert_close(plain(x), model(x))
    assert plain.state_dict().keys() == dense_network("resnet20").state_dict().keys()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"parametrization": "lokr"}, "is unknown; use one of csg, dense, fedpara, flocora"),
        ({"options": {"rank": 4}}, "csg takes none"),
        ({"parametrization": "fedpara", "options": {"gamma": "much"}}, "options.gamma"),
    ],
)
def test_a_recipe_that_asks_for_another_is_refused(model, message):
    with pytest.raises(RecipeError, match=message):
        recipe_of({"model": model}, "recipe")


@pytest.mark.parametrize(
    ("name", "options"),
    [("fedpara", {"gamma": 2}), ("fedpara", {"rank": 2}), ("flocora", {"rank": 1.5}),
     ("flocora", {"alpha": 0})],
)  # fmt: skip
def test_options_that_cannot_be_are_named(name, options):
    with pytest.raises(ValueError, match=f"model.options .*: {name} takes"):
        build(_spec(name, **options))


def test_one_that_is_not_installed_here_is_named(monkeypatch):
    """As in a client's image, which has no simulations."""
    import sys

    monkeypatch.setitem(sys.modules, "simulations.rivals.fedpara", None)
    with pytest.raises(ValueError, match="parametrization 'fedpara' cannot be imported here"):
        build(_spec("fedpara"))
