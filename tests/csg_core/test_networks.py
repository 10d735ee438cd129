"""The trainable counts of the reference tables, exactly, dense and generated."""

import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from csg_core import NETWORKS, build, count_trainable, dense_network
from csg_core.spec import ModelSpec

_BATCH = 5  # no size of a kernel
REFERENCE = {
    ("resnet20", None): 269_722,
    ("resnet20", (12, 72)): 115_426,
    ("resnet20", (16, 72)): 176_698,
    ("resnet20", (16, 128)): 312_218,
    ("resnet56", None): 853_018,
    ("resnet56", (12, 72)): 160_450,
    ("resnet56", (16, 72)): 197_530,
    ("resnet56", (16, 128)): 347_162,
    ("densenet40-36", None): 1_542_682,
    ("densenet40-36", (12, 36)): 772_858,
    ("densenet40-36", (12, 48)): 796_186,
    ("densenet40-36", (12, 72)): 842_842,
    ("densenet40-48", None): 2_733_130,
    ("densenet40-48", (12, 36)): 1_328_266,
    ("densenet40-48", (12, 48)): 1_357_642,
    ("densenet40-48", (12, 72)): 1_416_394,
    ("resnet18", None): 11_689_512,
    ("resnet50", None): 25_557_032,
    ("pfl-cnn", None): 1_626_442,  # apple/pfl-research, benchmarks/model/pytorch/cnn.py
    ("blazefl-cnn", None): 62_006,  # kitsuyaazuma/blazefl, examples/quickstart-fedavg
}


@pytest.mark.parametrize(("row", "expected"), REFERENCE.items())
def test_counts_of_the_reference_tables(row, expected):
    name, sizes = row
    if sizes is None:
        spec = ModelSpec(name=name, parametrization="dense")
    else:
        spec = ModelSpec(name=name, slice_size=sizes[0], code_size=sizes[1])
    assert count_trainable(build(spec)) == expected


@pytest.mark.parametrize("name", [n for n in NETWORKS if "110" not in n])
def test_every_network_makes_logits_dense_and_generated(name):
    side = 64 if name in {"resnet18", "resnet34", "resnet50", "densenet121"} else 32
    kernel_size = 5 if name == "blazefl-cnn" else 3
    for parametrization in ("dense", "csg"):
        spec = ModelSpec(
            name=name, parametrization=parametrization, kernel_size=kernel_size, classes=7
        )
        model = build(spec).eval()
        with torch.no_grad():
            assert model(torch.randn(2, 3, side, side)).shape == (2, 7)


class _Meetings(TorchDispatchMode):
    """Operators in which feature maps in channels_last meet others that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        maps = [
            a for a in args if isinstance(a, torch.Tensor) and a.dim() == 4 and len(a) == _BATCH
        ]
        if len({a.stride(1) == 1 for a in maps}) > 1:
            self.found.append(str(operator))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["resnet20", "densenet40-36"])
def test_gradients_come_in_the_memory_format_of_activations(name):
    """Else backward passes of activations take many times as long on a CPU."""
    model = build(ModelSpec(name=name, width=0.5, slice_size=4, code_size=12))
    model.to(memory_format=torch.channels_last)
    images = torch.randn(_BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    with _Meetings() as meetings:
        model(images).logsumexp(dim=1).mean().backward()
    assert meetings.found == []


def test_narrow_controls_have_narrow_channels():
    assert dense_network("resnet20", width=11 / 16).conv1.out_channels == 11
    assert count_trainable(dense_network("resnet20", width=11 / 16)) == 128_017
    assert dense_network("densenet40-36", width=0.5).features[1].conv2.out_channels == 18


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet21"}, "network 'resnet21' is unknown; use one of resnet20"),
        ({"name": "resnet20", "width": 0}, "width 0 is not positive"),
        ({"name": "resnet18", "width": 0.5}, "resnet18 comes in width 1 only"),
        ({"name": "pfl-cnn", "width": 2}, "pfl-cnn comes in width 1 only"),
    ],
)
def test_networks_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        dense_network(**arguments)


def test_the_benchmarks_cnns_have_the_shapes_of_their_sources():
    shapes = {
        name: {key: tuple(t.shape) for key, t in dense_network(name).state_dict().items()}
        for name in ("pfl-cnn", "blazefl-cnn")
    }
    weights = {name: [s for s in found.values() if len(s) > 1] for name, found in shapes.items()}
    assert weights == {
        "pfl-cnn": [(32, 3, 3, 3), (64, 32, 3, 3), (128, 12_544), (10, 128)],
        "blazefl-cnn": [(6, 3, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)],
    }
    assert all(sum(len(s) == 1 for s in found.values()) == len(weights[name])
               for name, found in shapes.items())  # fmt: skip


def test_their_dropout_is_for_training_only():
    model, images = dense_network("pfl-cnn"), torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_torchvision_is_imported_only_where_it_is_used():
    script = (
        "import sys, csg_core, client.training, federation.sources, server.checkpoints\n"
        "csg_core.build(csg_core.ModelSpec())\n"
        "sys.exit('torchvision' in sys.modules or 'sklearn' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_network_has_an_output():
    with pytest.raises(ValueError, match="classes 0 cannot be; use 1 or more"):
        dense_network("resnet20", classes=0)
