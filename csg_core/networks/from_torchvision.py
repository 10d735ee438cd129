"""torchvision's networks, with random weights; the one place that imports torchvision.

Beside a CPU build of torch, the compiled operators of torchvision's usual build cannot be loaded,
and its import fails on the first operator it registers a rule for. Declaring the two operators
concerned lets data sets, transforms and models work; only detection would need them to run.
"""

import functools
import importlib
from types import ModuleType

import torch
from torch import nn

IMAGENET_NETWORKS = ("resnet18", "resnet34", "resnet50", "densenet121")


def torchvision() -> ModuleType:
    """The torchvision package, imported so that it works beside a CPU build of torch.

    Raises:
        ModuleNotFoundError: if torchvision is not installed.
    """
    return _import_torchvision()[0]


def imagenet_network(name: str, *, classes: int = 1000) -> nn.Module:
    """One of ``IMAGENET_NETWORKS`` with random weights, for images [N, 3, 224, 224]."""
    try:
        models = torchvision().models
    except ModuleNotFoundError as error:
        raise ValueError(
            f"network {name!r} is torchvision's, which is not installed; "
            "install the extra csg-fl[torchvision]"
        ) from error
    network: nn.Module = models.get_model(name, weights=None, num_classes=classes)
    return network


@functools.cache
def _import_torchvision() -> tuple[ModuleType, torch.library.Library | None]:
    try:
        return importlib.import_module("torchvision"), None
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
    # The declarations last as long as the Library object, which the cache keeps.
    operators = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return importlib.import_module("torchvision"), operators
