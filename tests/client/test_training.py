"""Local training learns, repeats itself for a seed, and evaluation counts every image."""

import pytest
import torch

from client.training import Losses, train_epoch
from csg_core import build, pack
from csg_core.evaluation import evaluate
from csg_core.images import ImageSet
from csg_core.spec import ModelSpec
from federation.sources import load_digits

SPEC = ModelSpec(width=0.5, slice_size=8, code_size=24)


def _first(count: int) -> ImageSet:
    data = load_digits(train=True)
    return ImageSet(data.images[:count], data.labels[:count], 10, data.mean, data.std)


def _trained(seed: int, precision: str = "fp32", spec: ModelSpec = SPEC) -> torch.nn.Module:
    model = build(spec)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rng = torch.Generator().manual_seed(seed)
    train_epoch(model, _first(300), opt, batch_size=64, rng=rng, precision=precision)
    return model


def test_losses_of_a_pass_are_the_mean_of_its_images_and_those_of_its_ends():
    assert Losses.of([4.0, 2.0, 1.0], [3, 3, 2]) == Losses(2.5, 4.0, 1.0)


def test_training_repeats_itself_bit_by_bit_for_a_seed():
    assert (pack(_trained(1)) == pack(_trained(1))).all()
    assert (pack(_trained(1)) != pack(_trained(2))).any()


def test_dropout_repeats_itself_too_and_leaves_torchs_own_numbers_alone():
    spec = ModelSpec(name="pfl-cnn", parametrization="dense")
    before = torch.get_rng_state()
    first = pack(_trained(1, spec=spec))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert (pack(_trained(1, spec=spec)) == first).all()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_generated_network_learns_digits(precision):
    # small, as bf16 takes ten times as long where the processor has none
    model = build(ModelSpec(width=0.25, slice_size=4, code_size=12))
    data, rng = load_digits(train=True), torch.Generator().manual_seed(0)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for lr in (0.05, 0.05, 0.005):
        opt.param_groups[0]["lr"] = lr
        train_epoch(model, data, opt, batch_size=8, rng=rng, precision=precision, augment=False)
    assert evaluate(model, load_digits(train=False)).accuracy > 0.85


def test_evaluation_counts_every_image_whatever_the_batch():
    model, data = build(SPEC), _first(101)
    whole, parts = evaluate(model, data, batch_size=101), evaluate(model, data, batch_size=20)
    assert whole.examples == parts.examples == 101
    assert whole.accuracy == parts.accuracy
    assert whole.loss == pytest.approx(parts.loss, rel=1e-4)
    assert model.training


def test_batches_of_one_image_train_all_of_them():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    steps = []
    data, rng = _first(5), torch.Generator()
    train_epoch(model, data, opt, batch_size=1, rng=rng, after_step=lambda: steps.append(1))
    assert len(steps) == 5


@pytest.mark.parametrize(("images", "steps"), [(1, 1), (9, 1), (10, 2)])
def test_a_single_image_is_left_out_only_after_others(images, steps):
    model, taken = build(SPEC), []
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    data, rng = _first(images), torch.Generator()
    train_epoch(model, data, opt, batch_size=8, rng=rng, after_step=lambda: taken.append(1))
    assert len(taken) == steps


def test_evaluation_leaves_every_module_in_its_mode_even_after_an_error():
    model, data = build(SPEC), _first(20)
    model.bn1.eval()
    evaluate(model, data)
    assert model.training
    assert model.layer1.training
    assert not model.bn1.training
    model.fc = torch.nn.Linear(3, 10)
    with pytest.raises(RuntimeError):
        evaluate(model, data)
    assert model.training
