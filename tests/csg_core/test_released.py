"""The authors' checkpoints load, in both key spellings and in half precision."""

import pytest
import torch

from csg_core import from_released, is_released
from csg_core.evaluation import evaluate
from federation.image_files import load_parquet


@pytest.fixture
def state(shared):
    file = shared / "reference" / "acl-resnet20-slice16-code72.t7"
    return torch.load(file, map_location="cpu", weights_only=True)["net"]


def test_accuracy_on_the_original_images(state, shared):
    spec, model = from_released(state)
    assert (spec.name, spec.slice_size, spec.code_size, spec.layout) == ("resnet20", 16, 72, "flat")
    data = load_parquet(shared / "data" / "cifar10-original-train-first1000.parquet")
    assert evaluate(model, data).accuracy >= 0.986


@pytest.mark.slow
def test_accuracy_on_the_jpeg_test_set(state, shared):
    _, model = from_released(state)
    data = load_parquet(shared / "data" / "cifar10-jpeg" / "test.parquet")
    assert evaluate(model, data).accuracy == pytest.approx(0.7986, abs=5e-5)


def test_the_other_spelling_and_half_precision_give_the_same_network(state):
    x = torch.randn(4, 3, 32, 32)
    expected = from_released(state)[1].eval()(x)
    spelled = {k.removeprefix("module.").replace("CLG", "CSG"): v for k, v in state.items()}
    assert is_released(spelled)
    assert torch.equal(from_released(spelled)[1].eval()(x), expected)
    halved = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    model = from_released(halved)[1].eval()
    assert model.layer1[0].conv1.generator.weight.dtype == torch.float32
    torch.testing.assert_close(model(x), expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"module.fc_extra.weight": torch.zeros(1)}, "fc_extra.weight is absent in the network"),
        ({"module.stage_1.0.code": torch.zeros(2, 72)}, r"layer1\.0\.conv1\.codes is \(1, 72\)"),
        ({"module.bn_1.weight": torch.full((16,), torch.nan)}, r"bn1\.weight holds NaN"),
        ({"module.bn_1.weight": torch.ones(16, dtype=torch.complex64)}, "complex64"),
        ({"module.bn_1.weight": torch.ones(16, dtype=torch.int64)}, "torch.int64"),
        ({"module.bn_1.weight": torch.ones(16).to_sparse()}, "torch.sparse_coo"),
        ({"module.CLG.weight": torch.zeros(3)}, "not of a CIFAR ResNet"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(state, change, message):
    with pytest.raises(ValueError, match=message):
        from_released(state | change)
