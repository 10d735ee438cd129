"""The networks of the paper and of others' benchmarks, dense, by name."""

import math
import re

from torch import nn

from csg_core.networks.benchmark_cnns import BENCHMARK_CNNS, benchmark_cnn
from csg_core.networks.cifar_densenet import CifarDenseNet
from csg_core.networks.cifar_resnet import CifarResNet
from csg_core.networks.from_torchvision import IMAGENET_NETWORKS, imagenet_network

CIFAR_RESNETS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
CIFAR_DENSENETS = ("densenet40-36", "densenet40-48")
NETWORKS = CIFAR_RESNETS + CIFAR_DENSENETS + IMAGENET_NETWORKS + BENCHMARK_CNNS

__all__ = ["NETWORKS", "CifarDenseNet", "CifarResNet", "dense_network", "usual_classes"]


def dense_network(name: str, *, width: float = 1.0, classes: int | None = None) -> nn.Module:
    """A network with ordinary convolutions and random weights.

    Args:
        name: one of ``NETWORKS``.
        width: multiplier of the channels, for narrow controls: a CIFAR ResNet starts with
            round(16 * width) channels, a DenseNet grows by round(growth * width). torchvision's
            networks and the benchmarks' come in width 1 only.
        classes: outputs; None means 10 for CIFAR networks and 1,000 for ImageNet networks.

    Raises:
        ValueError: if there is no such network, or not in this width.
    """
    if not 0 < width < math.inf:
        raise ValueError(f"width {width} is not positive; use 1 for the network as published")
    classes = usual_classes(name) if classes is None else classes
    if classes < 1:
        raise ValueError(f"classes {classes} cannot be; use 1 or more")
    if name in IMAGENET_NETWORKS + BENCHMARK_CNNS:
        if width != 1.0:
            raise ValueError(f"width {width}: {name} comes in width 1 only")
        make = imagenet_network if name in IMAGENET_NETWORKS else benchmark_cnn
        return make(name, classes=classes)
    if name in CIFAR_RESNETS:
        depth = int(name.removeprefix("resnet"))
        return CifarResNet(depth, channels=_scaled(16, width), classes=classes)
    if name in CIFAR_DENSENETS:
        depth, growth = map(int, re.findall(r"\d+", name))
        return CifarDenseNet(depth, _scaled(growth, width), classes=classes)
    raise ValueError(f"network {name!r} is unknown; use one of {', '.join(NETWORKS)}")


def usual_classes(name: str) -> int:
    """Outputs of a network as published: 1,000 for ImageNet networks, 10 for the others."""
    return 1000 if name in IMAGENET_NETWORKS else 10


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))
