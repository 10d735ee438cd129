"""Any CNN takes generated filters, says what became of it, and folds back to itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from csg_core import (
    SliceGenerator,
    build,
    count_trainable,
    dense_network,
    fold,
    generate_filters,
    generated,
    generators,
)
from csg_core.layout import LAYOUTS
from csg_core.spec import ModelSpec
from simulations.studies.any_cnn import convert


def _small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.Conv2d(12, 12, 3, padding=1, groups=3),
        nn.Conv2d(12, 5, 1),
    )


def _zeroed() -> SliceGenerator:
    generator = SliceGenerator(4, 6)
    nn.init.zeros_(generator.weight)
    return generator


# torch says so once a process, of a copy of its own for kernels of even size
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@settings(deadline=None, max_examples=60)
@given(
    channels=st.integers(4, 20),
    out=st.integers(1, 20),
    kernel=st.integers(1, 5),
    slice_size=st.integers(1, 9),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    padding=st.sampled_from(["same", "valid", 0, 1, (2, 1)]),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    bias=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
)
def test_any_convolution_converts_to_its_own_shape_and_folds_to_the_same_outputs(
    channels, out, kernel, slice_size, stride, dilation, padding, mode, bias, layout
):
    if padding == "same":
        stride = 1
    conv = nn.Conv2d(channels, out, kernel, stride=stride, padding=padding, dilation=dilation,
                     padding_mode=mode, bias=bias)  # fmt: skip
    model = nn.Sequential(conv)
    x = torch.randn(2, channels, 12, 12)
    shape = conv(x).shape
    generator = SliceGenerator(slice_size, min(4, slice_size**2 * kernel**2), kernel)
    generate_filters(model, generator, layout=layout)
    assert model[0].weight.shape == conv.weight.shape
    assert model(x).shape == shape
    plain = fold(model)
    assert type(plain[0]) is nn.Conv2d
    assert torch.equal(plain(x), model(x))


def test_the_report_says_what_was_replaced_and_what_was_left_and_why():
    model = _small()
    before = count_trainable(model)
    report = generate_filters(model, SliceGenerator(4, 6))
    assert [done.name for done in report.replaced] == ["2"]
    assert report.replaced[0].kernel_shape == (12, 8, 3, 3)
    assert report.replaced[0].codes == 6
    reasons = {left.name: left.reason for left in report.left}
    assert reasons["0"] == "has only 3 input channels"
    assert "3 groups" in reasons["3"]
    assert reasons["4"] == "is 1 x 1; the generator makes 3 x 3"
    assert report.parameters_before == before
    assert report.parameters_after == count_trainable(model)
    assert report.parameters_after == before - 12 * 8 * 9 + 6 * 6 + 4 * 4 * 9 * 6
    assert "generated 2: 12x8x3x3 from 6 codes" in str(report)


def test_named_and_chosen_convolutions_are_taken_even_the_stem():
    by_name, by_function = _small(), _small()
    generate_filters(by_name, SliceGenerator(4, 6), select=["0", "2"])
    generate_filters(by_function, SliceGenerator(4, 6), select=lambda name, _: name in {"0", "2"})
    assert list(generated(by_name)) == list(generated(by_function)) == ["0", "2"]


def test_two_generators_of_different_kernel_sizes_live_side_by_side():
    model = build(ModelSpec(name="densenet40-36"))
    report = generate_filters(model, SliceGenerator(12, 36, 1))
    assert len(report.replaced) == 20
    assert len(generators(model)) == 2
    assert sum(name.endswith("generator.weight") for name in model.state_dict()) == 2
    x = torch.randn(1, 3, 32, 32)
    model.eval()
    torch.testing.assert_close(fold(model)(x), model(x))


def test_a_convolution_used_in_two_places_stays_one():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(4, 4, 3, padding=1)
            self.second = self.first

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x))

    model = Twice()
    generate_filters(model, SliceGenerator(4, 6))
    assert model.first is model.second
    plain = fold(model)
    assert plain.first is plain.second


def test_what_cannot_be_replaced_faithfully_is_left():
    class Scaled(nn.Conv2d):
        pass

    model = nn.Module()
    model.plain = nn.Conv2d(4, 4, 3)
    model.subclass = Scaled(4, 4, 3)
    model.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    model.hooked = nn.Conv2d(4, 4, 3)
    model.hooked.register_forward_hook(lambda *_: None)
    model.tied = nn.Conv2d(4, 4, 3)
    model.twin = nn.Conv2d(4, 4, 3)
    model.tied.weight = model.twin.weight
    model.frozen = nn.Conv2d(4, 4, 3).requires_grad_(False)
    model.wide = nn.Conv2d(4, 4, (3, 5))
    model.masked = nn.Conv2d(4, 4, 3)
    model.masked.weight.register_hook(lambda gradient: 0 * gradient)
    model.patched = nn.Conv2d(4, 4, 3)
    model.patched.forward = lambda x: x
    model.complex = nn.Conv2d(4, 4, 3, dtype=torch.complex64)
    model.block = nn.Sequential(nn.Conv2d(4, 4, 3))
    model.block.order = [model.block[0]]
    report = generate_filters(model, SliceGenerator(4, 6))
    assert [done.name for done in report.replaced] == ["plain"]
    reasons = {left.name: left.reason for left in report.left}
    assert "is a Scaled" in reasons["subclass"]
    assert "is a ParametrizedConv2d" in reasons["normed"]
    assert "has hooks" in reasons["hooked"]
    assert "has hooks" in reasons["masked"]
    assert "has a forward of its own" in reasons["patched"]
    assert "has a weight of torch.complex64" in reasons["complex"]
    assert "is also in the list block.order, where it would stay" in reasons["block.0"]
    assert reasons["tied"] == reasons["twin"] == "shares its weight with another module"
    assert reasons["frozen"] == "is frozen"
    assert reasons["wide"] == "is 3 x 5; the generator makes 3 x 3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"select": ["3"]}, "convolution 3 cannot be generated: has 3 groups; only ungrouped"),
        ({"select": ["22"]}, "the model has no convolution '22'; did you mean '2'"),
        ({"select": []}, "no convolution of this model can be generated"),
        ({"select": ["4"]}, "convolution 4 cannot be generated: is 1 x 1"),
        ({"layout": "spiral"}, "layout 'spiral' is unknown; use one of block, flat"),
        ({"start": "cold"}, "start 'cold' is unknown; use one of fan_in, paper, dense"),
        ({"seed": -1}, "seed -1 is out of range; use 0 to 2"),
        ({"seed": None}, "seed None cannot be; use a whole number"),
        ({"generator": 72}, "generator 72 is none; give a SliceGenerator"),
        ({"generator": _zeroed()}, "weight has a root mean square of 0; give it finite values"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line_and_changes_nothing(arguments, message):
    model = _small()
    before = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=message) as caught:
        generate_filters(model, **{"generator": SliceGenerator(4, 6), **arguments})
    assert "\n" not in str(caught.value)
    assert [type(m) for m in model.modules()] == before


def test_a_convolution_in_two_places_goes_by_either_name():
    model = nn.Module()
    model.first = model.second = nn.Conv2d(4, 4, 3)
    generate_filters(model, SliceGenerator(4, 6), select=["second"])
    assert model.first is model.second
    assert list(generated(model)) == ["first"]


def test_a_network_that_is_generated_already_is_told_so():
    model = _small()
    generate_filters(model, SliceGenerator(4, 6))
    with pytest.raises(ValueError, match="its others are generated already"):
        generate_filters(model, SliceGenerator(4, 6))


def test_a_function_that_chooses_leaves_what_cannot_be_generated():
    model = _small()
    report = generate_filters(model, SliceGenerator(4, 6), select=lambda *_: True)
    assert list(generated(model)) == ["0", "2"]
    assert {left.name for left in report.left} == {"3", "4"}


@pytest.mark.parametrize("container", [nn.Sequential, nn.ModuleList])
def test_containers_keep_the_children_they_had(container):
    convs = [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)]
    model = container(*convs) if container is nn.Sequential else container(convs)
    generate_filters(model, SliceGenerator(4, 6))
    assert len(model) == 2


def test_a_network_cut_off_before_its_head_keeps_its_generator():
    model = build(ModelSpec())
    body = nn.Sequential(*list(model.children())[:-1])
    assert not any(isinstance(m, nn.Linear) for m in body.modules())
    assert generators(body)
    body(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in body.parameters())


def test_one_generator_can_serve_two_models_but_not_one_model_twice():
    generator = SliceGenerator(4, 6)
    first, second = _small(), _small()
    generate_filters(first, generator)
    generate_filters(second, generator)
    assert generators(first)["2.generator"] is generators(second)["2.generator"]
    with pytest.raises(ValueError, match="makes filters of the model already"):
        generate_filters(first, generator, select=["0"])
    third = _small().double()
    generate_filters(third, generator)
    assert generator.weight.dtype == torch.float32
    assert third(torch.randn(1, 3, 8, 8).double()).dtype == torch.float64


def test_a_network_without_values_is_refused():
    with torch.device("meta"):
        model = dense_network("resnet20", width=0.25)
    with pytest.raises(ValueError, match=r"no values \(device meta\); model.to_empty first"):
        generate_filters(model)


def test_mixed_dtypes_are_refused():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3).double())
    with pytest.raises(ValueError, match="differ in device or dtype"):
        generate_filters(model)


# How many convolutions the slices make, counted by hand in the networks' definitions.
REPLACED = {
    "resnet18": 16,
    "resnet50": 16,
    "densenet121": 58,
    "mobilenet_v2": 34,
    "shufflenet_v2_x1_0": 36,
    "deeplabv3_resnet50": 20,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REPLACED)
def test_torchvision_networks_convert_and_fold(name):
    model, report = convert(name)
    assert len(report.replaced) == REPLACED[name]
    assert report.parameters_after < report.parameters_before
    model.eval()
    with torch.no_grad():
        x = torch.randn(1, 3, 64, 64)
        outputs, plain = model(x), fold(model)(x)
    if isinstance(outputs, dict):
        outputs, plain = outputs["out"], plain["out"]
    assert torch.isfinite(outputs).all()
    torch.testing.assert_close(plain, outputs)


def test_a_network_that_grows_is_told():
    small = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    assert "these are more; for so small a network" in str(generate_filters(small))
    assert "these are more" not in str(generate_filters(dense_network("resnet20")))


def test_convolutions_are_chosen_by_name_and_not_themselves():
    model = nn.Sequential(nn.Conv2d(16, 16, 3))
    with pytest.raises(ValueError, match="select holds a Conv2d; give names, or a function"):
        generate_filters(model, select=[model[0]])
