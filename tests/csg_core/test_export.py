"""Out of the method: folded networks, safetensors and ONNX compute what the model computes."""

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch

from csg_core import build, dense_network, fold, generated, to_onnx, to_safetensors
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
