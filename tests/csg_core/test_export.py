"""Out of the method: folded networks, safetensors and ONNX compute what the model computes."""

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import parametrize

from csg_core import build, dense_network, fold, generated, to_onnx, to_safetensors
from csg_core.export import extra_in, from_safetensors
from csg_core.modules import generators
from csg_core.spec import ModelSpec

SPEC = ModelSpec(width=0.5)


def _trained_a_little():
    model = build(SPEC)
    opt = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        opt.zero_grad()
        model(torch.randn(8, 3, 32, 32)).square().mean().backward()
        opt.step()
    return model.eval()


def test_folding_leaves_the_model_and_returns_a_plain_one():
    model = _trained_a_little()
    x = torch.randn(4, 3, 32, 32)
    plain = fold(model)
    assert not generated(plain)
    assert not generators(plain)
    assert len(generated(model)) == 18
    assert generators(model)
    torch.testing.assert_close(plain(x), model(x))


def test_a_folded_state_dict_loads_into_the_dense_network():
    model = _trained_a_little()
    dense = dense_network(SPEC.name, width=SPEC.width)
    dense.load_state_dict(fold(model).state_dict())
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(dense.eval()(x), model(x))


def test_folding_a_compiled_model_folds_the_model_inside():
    model = _trained_a_little()
    assert not generated(fold(torch.compile(model)))


def test_safetensors_hold_the_folded_weights():
    model = _trained_a_little()
    state = safetensors.torch.load(to_safetensors(fold(model)))
    torch.testing.assert_close(state["layer1.0.conv1.weight"], model.layer1[0].conv1.weight)


@pytest.mark.slow
def test_onnx_agrees_with_the_model_at_any_batch_size():
    model = _trained_a_little()
    session = onnxruntime.InferenceSession(to_onnx(model), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        x = torch.randn(batch, 3, 32, 32)
        (logits,) = session.run(["logits"], {"images": x.numpy()})
        np.testing.assert_allclose(logits, model(x).detach().numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_onnx_takes_images_of_other_channels():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    content = to_onnx(model, image_size=(9, 7), channels=1)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    x = torch.randn(3, 1, 9, 7)
    (logits,) = session.run(["logits"], {"images": x.numpy()})
    np.testing.assert_allclose(logits, model(x).detach().numpy(), atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="takes no images of 3 channels and 32 x 32 pixels"):
        to_onnx(model)


def test_what_is_no_tensor_is_named():
    class Noted(nn.Linear):
        def get_extra_state(self):
            return {"note": 1}

    with pytest.raises(ValueError, match="_extra_state is a dict, for which safetensors has no"):
        to_safetensors(Noted(2, 2))


class _Twice(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class _Half(nn.Module):
    def forward(self, tensor):
        return tensor / 2


def test_folding_keeps_what_a_parametrized_convolution_does():
    model = nn.Sequential(_Twice(3, 8, 3), nn.Conv2d(8, 8, 3))
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    model[0].register_buffer("scale", torch.ones(1))
    for name in ("weight", "bias", "scale"):
        parametrize.register_parametrization(model[0], name, _Half())
    x = torch.randn(2, 3, 8, 8)
    plain, outputs = fold(model), model(x)
    torch.testing.assert_close(plain(x), outputs)
    assert type(plain[0]) is _Twice
    assert [name for name, _ in plain.named_parameters()] == [
        "0.weight", "0.bias", "1.weight", "1.bias"
    ]  # fmt: skip
    assert [name for name, _ in plain.named_buffers()] == ["0.scale"]
    assert len(calls) == 2
    torch.testing.assert_close(model(x), outputs)  # which is as it was


def test_a_generated_convolution_alone_folds():
    layer = _trained_a_little().layer1[0].conv1
    plain = fold(layer)
    assert type(plain) is nn.Conv2d
    torch.testing.assert_close(plain.weight, layer.weight)


def test_extra_tensors_may_be_one_tensor_twice():
    tensor = torch.arange(3.0)
    state = safetensors.torch.load(to_safetensors(build(SPEC), SPEC, {"a": tensor, "b": tensor}))
    assert torch.equal(extra_in(state)["a"], extra_in(state)["b"])


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ("[" * 200_000, "cannot be read"),
        ("[]", "cannot be read"),
        ('{"slice_size":256,"code_size":65536,"kernel_size":1}', "a generator of 4,294,967,296 nu"),
        ('{"classes":0}', "classes 0 cannot be"),
        ('{"name":"densenet40-48","width":16,"classes":100000}', "the checkpoint is not of dens"),
        ('{"name":"resnet110","width":16}', "the checkpoint is not of resnet110"),
    ],
)
def test_a_description_that_cannot_be_is_refused_before_it_is_built(
    described, message, monkeypatch
):
    state = safetensors.torch.load(to_safetensors(build(SPEC), SPEC))
    monkeypatch.setattr("csg_core.spec.build", lambda *_, **__: pytest.fail("it is built"))
    with pytest.raises(ValueError, match=message):
        from_safetensors(state, {"csg_core.spec": described})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("bn1.bias", lambda t: t.double() + 1e300, "bn1.bias holds NaN or infinity"),
        ("bn1.bias", lambda t: t * float("nan"), "bn1.bias holds NaN or infinity"),
        ("bn1.bias", lambda t: t.to(torch.float8_e4m3fn), "float8_e4m3fn; save it as float32"),
        ("bn1.running_var", lambda t: -t, "bn1.running_var holds a negative variance"),
        ("bn1.bias", lambda t: t.long(), "bn1.bias is torch.float32 in the network"),
    ],
)
def test_values_that_cannot_be_are_refused(name, change, message):
    state = safetensors.torch.load(to_safetensors(build(SPEC), SPEC))
    state[name] = change(state[name])
    with pytest.raises(ValueError, match=message):
        from_safetensors(state, {"csg_core.spec": json.dumps(SPEC.to_dict())})


def test_hooks_would_be_lost_and_are_named():
    model = _trained_a_little()
    handle = model.layer1[0].conv1.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1 has hooks, which would be lost"):
        fold(model)
    handle.remove()
    fold(model)


def test_a_generator_of_another_seed_than_described_is_refused():
    spec = ModelSpec(width=0.25, generator="frozen", generator_seed=1)
    state = safetensors.torch.load(to_safetensors(build(spec), spec))
    other = json.dumps(replace(spec, generator_seed=2).to_dict())
    with pytest.raises(ValueError, match=r"by the description and \[1, 1, \d+\] in the checkp"):
        from_safetensors(state, {"csg_core.spec": other})
