"""DenseNet-BC for 32 x 32 images (Huang et al. 2017, section 4): bottlenecks and compression."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csg_core.networks.pooling import mean_over_pixels

_BOTTLENECK = 4  # channels of a bottleneck, in growths


class DenseLayer(nn.Module):
    """1 x 1 bottleneck, then the 3 x 3 convolution whose output is appended to the input."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, _BOTTLENECK * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(_BOTTLENECK * growth)
        self.conv2 = nn.Conv2d(_BOTTLENECK * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x), inplace=True))
        y = self.conv2(F.relu(self.bn2(y), inplace=True))
        return torch.cat([x, y], dim=1)


class Transition(nn.Module):
    """Halves the channels and, by averaging, height and width."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, in_channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.bn(x), inplace=True)), 2)


class CifarDenseNet(nn.Module):
    """Three dense blocks of (depth - 4) / 6 bottleneck layers, two transitions, classifier.

    Args:
        depth: 6 n + 4.
        growth: channels that each layer adds; the stem has twice as many.
        classes: outputs.
    """

    def __init__(self, depth: int, growth: int, *, classes: int = 10) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth {depth} is no DenseNet-BC; use 6 n + 4, as in 40, 100")
        layers = (depth - 4) // 6
        channels = 2 * growth
        stages: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1, bias=False)]
        for stage in range(3):
            if stage:
                stages.append(Transition(channels))
                channels //= 2
            stages += [DenseLayer(channels + i * growth, growth) for i in range(layers)]
            channels += layers * growth
        self.features = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, H, W]."""
        x = F.relu(self.bn(self.features(x)), inplace=True)
        logits: Tensor = self.fc(mean_over_pixels(x))
        return logits
