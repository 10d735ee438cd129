"""The checkpoints that the paper's authors released: CIFAR ResNets with generated filters.

Their keys start with ``module.`` and repeat the generator, ``CLG.weight`` or ``CSG.weight``, under
every block; their slices lie ``flat``.
"""

import math
import re
from collections.abc import Mapping

from torch import Tensor, nn

from csg_core.spec import ModelSpec, restore

_GENERATOR_KEYS = ("CLG.weight", "CSG.weight")
_TELLING = ("layer1.0.conv1.generator.weight", "conv1.weight", "fc.weight")
_RENAMED = (
    (r"^stage_(\d+)\.(\d+)\.code$", r"layer\1.\2.conv1.codes"),
    (r"^stage_(\d+)\.(\d+)\.code2$", r"layer\1.\2.conv2.codes"),
    (r"^stage_(\d+)\.(\d+)\.bn_a\.", r"layer\1.\2.bn1."),
    (r"^stage_(\d+)\.(\d+)\.bn_b\.", r"layer\1.\2.bn2."),
    (r"^conv_1_3x3\.", "conv1."),
    (r"^bn_1\.", "bn1."),
    (r"^classifier\.", "fc."),
    (r"^(?:CLG|CSG)\.weight$", "layer1.0.conv1.generator.weight"),
)


def is_released(state: Mapping[str, Tensor]) -> bool:
    """Whether these tensors are named as in the released checkpoints."""
    return any(name.removeprefix("module.") in _GENERATOR_KEYS for name in state)


def from_released(state: Mapping[str, Tensor]) -> tuple[ModelSpec, nn.Module]:
    """The description and the model of a released checkpoint, in float32.

    Args:
        state: the tensors under ``net``, in single or half precision.

    Raises:
        ValueError: if the tensors are not those of a CIFAR ResNet with generated filters.
    """
    named: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = _rename(key.removeprefix("module."))
        if name.endswith((".CLG.weight", ".CSG.weight")):
            continue  # the same generator again, under a block
        named[name] = tensor.float() if tensor.is_floating_point() else tensor
    spec = _spec_of(named)
    return spec, restore(spec, named)


def _rename(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name, count = re.subn(pattern, replacement, name)
        if count:
            break
    return name


def _spec_of(named: Mapping[str, Tensor]) -> ModelSpec:
    weight, stem, head = (tuple(named[n].shape) if n in named else () for n in _TELLING)
    blocks = {m[1] for n in named if (m := re.match(r"layer1\.(\d+)\.conv1\.codes$", n))}
    if len(weight) != 2 or 0 in weight or len(stem) != 4 or len(head) != 2 or not blocks:
        raise ValueError("the checkpoint has a generator but is not of a CIFAR ResNet")
    return ModelSpec(
        name=f"resnet{6 * len(blocks) + 2}",
        slice_size=math.isqrt(weight[0] // 9),
        code_size=weight[1],
        layout="flat",
        start="paper",
        width=stem[0] / 16,
        classes=head[0],
    )
