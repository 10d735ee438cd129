"""First values: the asked scale, and the best fit to kernels that are there."""

import math

import pytest
import torch
from torch import nn

from csg_core import SliceGenerator, build, dense_network, generate_filters, generated
from csg_core.spec import ModelSpec


@pytest.mark.parametrize("kind", ["learned", "frozen", "binary"])
def test_fan_in_start_gives_every_layer_hes_deviation(kind):
    model = build(ModelSpec(name="resnet56", generator=kind))
    for name, layer in generated(model).items():
        wanted = math.sqrt(2 / (9 * layer.in_channels))
        assert float(layer.weight.detach().std()) == pytest.approx(wanted, rel=0.25), name


def test_paper_start_gives_every_layer_the_same_deviation():
    model = build(ModelSpec(start="paper"))
    for layer in generated(model).values():
        assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2), rel=0.25)


def test_the_papers_start_without_a_generator_is_the_papers():
    model = dense_network("resnet20")
    generate_filters(model, start="paper")
    std = float(model.layer2[0].conv2.weight.detach().std())
    assert std == pytest.approx(math.sqrt(2), rel=0.25)


def test_the_same_seed_gives_the_same_model_and_leaves_the_global_state_alone():
    state = torch.random.get_rng_state()
    first, same, other = (build(ModelSpec(), seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(first[n], same[n]) for n in first)
    assert not torch.equal(first["layer1.0.conv1.codes"], other["layer1.0.conv1.codes"])


def _of_rank(rank: int, layout: str) -> nn.Module:
    """A network whose slice matrix has no surplus and the given rank."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 3))
    generate_filters(model, SliceGenerator(4, rank), layout=layout)
    plain = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 3))
    for source, target in zip(model, plain, strict=True):
        target.weight = nn.Parameter(source.weight.detach().clone())
        target.bias = source.bias
    return plain


@pytest.mark.parametrize("layout", ["block", "flat"])
def test_kernels_of_low_rank_are_fitted_exactly(layout):
    model = _of_rank(5, layout)
    x = torch.randn(2, 8, 9, 9)
    expected = model(x)
    report = generate_filters(model, SliceGenerator(4, 5), start="dense", layout=layout)
    assert all(done.error < 1e-5 for done in report.replaced)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-4)


def test_the_fit_is_the_best_of_its_rank():
    """Eckart and Young: the squared error is the sum of the squared remaining singular values."""
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 16, 3))
    kernels = [conv.weight.detach() for conv in model]
    slices = torch.cat([
        k.reshape(k.shape[0] // 4, 4, 2, 4, 3, 3).transpose(1, 2).reshape(-1, 144) for k in kernels
    ])  # fmt: skip
    best = torch.linalg.svdvals(slices.double())[6:].square().sum()
    generate_filters(model, SliceGenerator(4, 6), start="dense")
    missed = sum(
        float((layer.weight.detach() - k).square().sum())
        for layer, k in zip(model, kernels, strict=True)
    )
    assert missed == pytest.approx(float(best), rel=1e-4)


def test_surplus_of_slices_is_used_to_lower_the_error():
    """Width 16 in slices of 12: plain factorisation would spend its rank on zeros."""
    model = dense_network("resnet20")
    kernels = {n: m.weight.detach() for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    report = generate_filters(model, SliceGenerator(12, 72), start="dense")
    padded = []
    for done in report.replaced:
        out, channels = done.kernel_shape[:2]
        rows, columns = -(-out // 12), -(-channels // 12)
        full = torch.zeros(rows * 12, columns * 12, 3, 3)
        full[:out, :channels] = kernels[done.name]
        padded.append(
            full.reshape(rows, 12, columns, 12, 3, 3).transpose(1, 2).reshape(-1, 12 * 12 * 9)
        )
    with_zeros = torch.linalg.svdvals(torch.cat(padded).double())[72:].square().sum()
    missed = sum(
        float((layer.weight.detach() - kernels[name]).square().sum())
        for name, layer in generated(model).items()
    )
    assert missed < 0.9 * float(with_zeros)


@pytest.mark.parametrize("kind", ["frozen", "binary"])
def test_a_generator_that_does_not_train_is_kept_while_codes_are_fitted(kind):
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    generator = SliceGenerator(4, 40, kind=kind)
    weight = generator.weight.clone()
    report = generate_filters(model, generator, start="dense")
    assert torch.equal(generator.weight, weight)
    # 40 of 144 random directions hold about 40/144 of the squared norm
    assert all(0.75 < done.error < 0.95 for done in report.replaced)


def test_fewer_slices_than_the_code_size_still_train_every_direction():
    model = nn.Sequential(nn.Conv2d(4, 4, 3))
    report = generate_filters(model, SliceGenerator(4, 6), start="dense")
    assert report.replaced[0].error < 1e-5
    weight = model[0].generator.weight
    assert torch.linalg.matrix_rank(weight) == 6


def test_the_error_is_that_of_the_models_own_precision():
    model = nn.Sequential(nn.Conv2d(4, 4, 3)).bfloat16()
    kernel = model[0].weight.detach().double()
    report = generate_filters(model, SliceGenerator(4, 100), start="dense")
    missed = (model[0].weight.detach().double() - kernel).norm() / kernel.norm()
    assert report.replaced[0].error == pytest.approx(float(missed))
    assert 1e-4 < report.replaced[0].error < 1e-2


def test_kernels_that_are_not_finite_cannot_be_fitted():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3))
    with torch.no_grad():
        model[1].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"1\.weight holds NaN or infinity"):
        generate_filters(model, SliceGenerator(4, 6), start="dense")
    assert type(model[0]) is nn.Conv2d
