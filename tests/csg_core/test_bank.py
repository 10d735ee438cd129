"""Kernels are made once per change, by one product, and are right whatever happens to the model."""

import copy
import functools
import pickle
from unittest import mock

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from csg_core import SliceGenerator, build, generate_filters, generated, refresh, unwrap
from csg_core.bank import KernelBank
from csg_core.spec import ModelSpec

SPEC = ModelSpec(slice_size=8, code_size=16)


@pytest.fixture
def products():
    """Counts how often all kernels are made."""
    with mock.patch.object(
        KernelBank, "_make_all", autospec=True, side_effect=KernelBank._make_all
    ) as counted:
        yield counted


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, passes: int = 1) -> None:
    optimizer.zero_grad()
    for _ in range(passes):
        model(torch.randn(2, 3, 16, 16)).square().mean().backward()
    optimizer.step()


def _reference(model: nn.Module, name: str) -> torch.Tensor:
    """A kernel made the straightforward way, from today's parameters."""
    layer = generated(model)[name]
    return layer.bank.make_alone(layer)


def _assert_fresh(model: nn.Module) -> None:
    for name, layer in generated(model).items():
        torch.testing.assert_close(layer.weight, _reference(model, name))


class WritesThroughData(torch.optim.Optimizer):
    """Steps as many optimisers outside torch do, so that autograd does not notice."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.data.add_(p.grad, alpha=-group["lr"])


OPTIMIZERS = {
    f"{kind.__name__} {how}": functools.partial(kind, **{how: True})
    for kind in (torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad)
    for how in ("foreach", "fused")
} | {"data": WritesThroughData, "plain": functools.partial(torch.optim.SGD, foreach=False)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_product_per_optimiser_step_under_gradient_accumulation(products, optimizer):
    model = build(SPEC)
    opt = OPTIMIZERS[optimizer](model.parameters(), lr=0.01)
    for step in range(1, 4):
        _step(model, opt, passes=3)
        assert products.call_count == step
    _assert_fresh(model)


def test_accumulated_gradients_equal_those_of_separate_graphs():
    model = build(SPEC).double().eval()
    batches = [torch.randn(2, 3, 16, 16, dtype=torch.float64) for _ in range(3)]
    for x in batches:
        model(x).square().mean().backward()
    kept = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for x in batches:
        refresh(model)
        model(x).square().mean().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(kept[name], p.grad)


def test_evaluation_makes_kernels_once(products):
    model = build(SPEC).eval()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(2, 3, 16, 16))
    assert products.call_count == 1


def test_kernels_made_without_gradients_are_not_used_for_training():
    model = build(SPEC)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            model(torch.randn(2, 3, 16, 16))
        model.zero_grad()
        model(torch.randn(2, 3, 16, 16)).square().mean().backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.load_state_dict(build(SPEC, seed=9).state_dict()),
        lambda m: m.double(),
        lambda m: nn.utils.vector_to_parameters(torch.randn(_count(m)), m.parameters()),
        lambda m: nn.init.zeros_(m.layer1[0].conv1.generator.weight),
        lambda m: setattr(
            m.layer1[0].conv1.generator,
            "weight",
            nn.Parameter(torch.randn_like(m.layer1[0].conv1.generator.weight)),
        ),
        lambda m: setattr(
            m.layer1[0].conv1, "codes", nn.Parameter(torch.randn_like(m.layer1[0].conv1.codes))
        ),
        lambda m: (m.layer1[0].conv1.generator.weight.data.zero_(), m.eval()),
        lambda m: (m.layer1[0].conv1.generator.weight.data.zero_(), refresh(m)),
    ],
)
def test_a_change_of_the_parameters_is_seen(change):
    model = build(SPEC)
    for layer in generated(model).values():
        assert layer.weight.requires_grad
    change(model)
    _assert_fresh(model)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_a_vector_that_parameters_are_views_of_is_seen_to_change():
    model = build(SPEC).eval()
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    for _ in range(3):
        vector += torch.randn_like(vector)
        nn.utils.vector_to_parameters(vector, model.parameters())
        _assert_fresh(model)


def test_unfreezing_after_a_forward_pass_is_seen():
    model = build(SPEC)
    layer = model.layer2[0].conv1
    layer.codes.requires_grad_(False)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert layer.codes.grad is None
    layer.codes.requires_grad_(True)
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    assert layer.codes.grad is not None


@pytest.mark.parametrize("changed", ["layer1.0.conv1.generator.weight", "layer2.0.conv1.codes"])
def test_a_change_between_forward_and_backward_is_an_error(changed):
    model = build(SPEC)
    loss = model(torch.randn(2, 3, 16, 16)).sum()
    with torch.no_grad():
        model.get_parameter(changed).add_(1)
    with pytest.raises(RuntimeError, match="changed in place between forward and backward"):
        loss.backward()


def test_branches_that_step_by_themselves_share_a_generator_that_does_not_train():
    model = build(ModelSpec(slice_size=8, code_size=16, generator="frozen"))
    first, second = (generated(model)[name] for name in ("layer1.0.conv1", "layer2.0.conv1"))
    losses = [layer.weight.square().sum() for layer in (first, second)]
    losses[0].backward()
    with torch.no_grad():
        first.codes.add_(1)
    losses[1].backward()
    assert second.codes.grad.any()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_keep_one_shared_generator_of_their_own(copied):
    model = build(SPEC)
    x = torch.randn(2, 3, 16, 16)
    model(x).sum().backward()
    twin = copied(model)
    assert twin.layer1[0].conv1.generator is not model.layer1[0].conv1.generator
    assert {id(layer.bank.generator) for layer in generated(twin).values()} == {
        id(twin.layer1[0].conv1.generator)
    }
    assert torch.equal(twin.eval()(x), model.eval()(x))
    with torch.no_grad():
        twin.layer1[0].conv1.generator.weight.zero_()
    assert not torch.equal(twin(x), model(x))


def test_moves_of_dtype_keep_the_generator_shared_and_listed_once():
    model = build(SPEC).to(torch.float64)
    assert [n for n in model.state_dict() if n.endswith("generator.weight")] == [
        "layer1.0.conv1.generator.weight"
    ]
    assert sum(p is model.layer1[0].conv1.generator.weight for p in model.parameters()) == 1
    assert model(torch.randn(1, 3, 16, 16, dtype=torch.float64)).dtype == torch.float64


def test_a_submodule_called_by_itself_uses_todays_kernels():
    model = build(SPEC)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(2, 16, 8, 8)
    before = model.eval().layer1(x)
    model.train()
    _step(model, opt)
    assert not torch.equal(model.eval().layer1(x), before)
    _assert_fresh(model)


def test_gradients_agree_with_finite_differences():
    model = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.Tanh(), nn.Conv2d(5, 4, 3))
    generate_filters(model, SliceGenerator(3, 4))
    model.double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    weight, first, second = model[0].generator.weight, model[0].codes, model[2].codes

    def outputs(*_: torch.Tensor) -> torch.Tensor:
        refresh(model)  # gradcheck varies its inputs through .data
        return model(x)

    assert torch.autograd.gradcheck(outputs, (weight, first, second))
    assert torch.autograd.gradgradcheck(outputs, (weight, first, second))


@pytest.mark.parametrize("layout", ["block", "flat"])
def test_torch_func_sees_the_parameters_it_is_given(layout):
    model = build(ModelSpec(slice_size=8, code_size=16, layout=layout)).eval()
    x = torch.randn(2, 3, 16, 16)
    other = build(ModelSpec(slice_size=8, code_size=16, layout=layout), seed=3).eval()
    one_by_one = torch.func.vmap(lambda image: model(image[None])[0])(x)
    torch.testing.assert_close(one_by_one, model(x), atol=1e-4, rtol=1e-4)
    called = torch.func.functional_call(model, dict(other.named_parameters()), (x,))
    torch.testing.assert_close(called, other(x))
    stacked = {n: torch.stack([p, q]) for (n, p), q in
               zip(model.named_parameters(), other.parameters(), strict=True)}  # fmt: skip
    both = torch.func.vmap(lambda p: torch.func.functional_call(model, p, (x,)))(stacked)
    torch.testing.assert_close(both[0], model(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both[1], other(x), atol=1e-4, rtol=1e-4)


def test_a_traced_network_follows_its_parameters():
    model = build(SPEC).eval()
    x = torch.randn(2, 3, 16, 16)
    traced = torch.jit.trace(model, x)
    with torch.no_grad():
        next(model.parameters()).mul_(0.5)
        model.layer1[0].conv1.codes.mul_(-1)
    torch.testing.assert_close(traced(x), model(x))


def test_data_parallel_replicas_use_their_own_parameters():
    model = build(SPEC).eval()
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    replica = _replicate(model)
    with torch.no_grad():
        model.layer1[0].conv1.codes.zero_()
    torch.testing.assert_close(replica(x), expected)


def _replicate(model: nn.Module) -> nn.Module:
    """What DataParallel's replicate does for one device, which itself needs a GPU."""
    originals = list(model.modules())
    replicas = [m._replicate_for_data_parallel() for m in originals]
    for original, replica in zip(originals, replicas, strict=True):
        for name, child in original._modules.items():
            replica._modules[name] = replicas[originals.index(child)]
        for name, parameter in original._parameters.items():
            setattr(replica, name, None if parameter is None else parameter.clone())
    return replicas[0]


def test_autocast_generates_in_full_precision():
    model = build(SPEC)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(torch.randn(2, 3, 16, 16)).float().square().mean()
        assert model.layer1[0].conv1.weight.dtype == torch.float32
    loss.backward()
    _assert_fresh(model)


def test_channels_last_gives_the_same_outputs():
    model = build(SPEC).eval()
    x = torch.randn(2, 3, 16, 16)
    expected = model(x)
    model.to(memory_format=torch.channels_last)
    found = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_compiled_training_equals_eager_training():
    eager, compiled = build(SPEC), build(SPEC)
    step = torch.compile(compiled, fullgraph=True)
    batches = torch.randn(3, 2, 3, 16, 16)
    for model, call in ((eager, eager), (compiled, step)):
        opt = torch.optim.SGD(model.parameters(), lr=0.01)
        for x in batches:
            opt.zero_grad()
            call(x).square().mean().backward()
            opt.step()
    for (name, p), q in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-4, rtol=1e-3, msg=name)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(eager.eval()(x), compiled.eval()(x), atol=1e-3, rtol=1e-3)


def test_distributed_data_parallel_trains_as_the_model_alone(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        alone, inside = build(SPEC), build(SPEC)
        wrapped = nn.parallel.DistributedDataParallel(inside)
        for model in (alone, wrapped):
            rng = torch.Generator().manual_seed(0)
            opt = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(3):
                opt.zero_grad()
                model(torch.randn(2, 3, 16, 16, generator=rng)).square().mean().backward()
                opt.step()
        for expected, found in zip(alone.parameters(), inside.parameters(), strict=True):
            torch.testing.assert_close(found, expected)
        assert unwrap(wrapped) is inside
    finally:
        torch.distributed.destroy_process_group()


def test_layers_taken_out_of_a_model_are_let_go(products):
    model = build(SPEC)
    model.layer3 = nn.Identity()
    model.fc = nn.Identity()
    model.to(torch.bfloat16)
    model(torch.randn(2, 3, 16, 16, dtype=torch.bfloat16)).sum().backward()
    (bank,) = {layer.bank for layer in generated(model).values()}
    assert len(bank._made.kernels) == len(generated(model)) == 12
    assert products.call_count == 1


def test_a_layer_whose_codes_are_computed_does_not_disturb_the_others():
    model = build(SPEC)
    nn.utils.prune.l1_unstructured(model.layer1[0].conv1, "codes", amount=0.5)
    opt = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        _step(model, opt)
    _assert_fresh(model)


def test_parts_of_a_model_may_be_of_another_type():
    model = build(SPEC)
    model.layer3.double()
    middle = model.layer2(model.layer1(torch.randn(2, 16, 8, 8)))
    model.layer3(middle.double()).sum().backward()
    layer = model.layer3[0].conv1
    assert layer.weight.dtype == layer.codes.grad.dtype == torch.float64
    assert model.layer1[0].conv1.generator.weight.grad.dtype == torch.float32


def test_gradients_of_several_outputs_at_once():
    model = build(SPEC)
    out, weight = model(torch.randn(1, 3, 16, 16))[0, :3], model.layer1[0].conv1.generator.weight
    batched = torch.autograd.grad(out, weight, torch.eye(3), True, is_grads_batched=True)[0]
    one_by_one = [torch.autograd.grad(value, weight, retain_graph=True)[0] for value in out]
    torch.testing.assert_close(batched, torch.stack(one_by_one))


def test_shapes_without_values_and_shallow_copies():
    model = build(SPEC)
    layer = model.layer1[0].conv1
    torch.testing.assert_close(copy.copy(layer).weight, layer.weight)
    model.to("meta")
    assert model(torch.randn(2, 3, 16, 16, device="meta")).shape == (2, 10)
