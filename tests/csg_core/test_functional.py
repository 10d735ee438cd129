"""A network as a function of its tensors is the network."""

import copy

import pytest
import torch
from torch import nn
from torch.func import grad

from csg_core import ModelSpec, SliceGenerator, build, generate_filters
from csg_core.functional import PureNetwork


def _two_generators():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.Conv2d(12, 8, 1),
        nn.Conv2d(8, 8, 3, bias=False), nn.Flatten(), nn.LazyLinear(5),
    )  # fmt: skip
    model(torch.zeros(2, 3, 10, 10))
    generate_filters(model, SliceGenerator(4, 6))
    generate_filters(model, SliceGenerator(4, 6, 1))
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: build(ModelSpec(width=0.25, slice_size=4, code_size=12)),
        lambda: build(ModelSpec(width=0.25, slice_size=4, code_size=12, generator="binary")),
        lambda: build(ModelSpec(width=0.25, parametrization="dense")),
        lambda: build(ModelSpec(width=0.25, parametrization="fedpara")),
        _two_generators,
    ],
    ids=["learned", "binary", "dense", "parametrized", "two generators"],
)
def test_outputs_gradients_and_statistics_are_those_of_the_model(make):
    model = make().double().train()
    x = torch.randn(4, 3, 10, 10, dtype=torch.float64)
    network, before = PureNetwork(model), copy.deepcopy(model.state_dict())
    parameters = {n: p.detach().clone() for n, p in model.named_parameters()}
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    logits = network(parameters | buffers, x)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    torch.testing.assert_close(logits, model(x))
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffers[name], buffer)

    model.load_state_dict(before)
    model(x).square().sum().backward()

    def loss(tensors):
        return network(tensors | {n: b.clone() for n, b in buffers.items()}, x).square().sum()

    found = grad(loss)(parameters)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
