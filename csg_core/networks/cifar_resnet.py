"""ResNets for 32 x 32 images (He et al. 2016, section 4.2), with option-A shortcuts."""

import torch.nn.functional as F
from torch import Tensor, nn

from csg_core.networks.pooling import mean_over_pixels


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut without parameters (option A)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, channels, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.stride != 1 or self.new_channels:
            x = F.avg_pool2d(x, 1, self.stride)  # every other pixel; see mean_over_pixels
            x = F.pad(x, (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(y + x, inplace=True)


class CifarResNet(nn.Module):
    """Stem, three stages of (depth - 2) / 6 blocks, global mean, classifier.

    Args:
        depth: 6 n + 2.
        channels: of the first stage; doubled at each of the two others.
        classes: outputs.
    """

    def __init__(self, depth: int, *, channels: int = 16, classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth {depth} is no CIFAR ResNet; use 6 n + 2, as in 20, 32, 56")
        blocks = (depth - 2) // 6
        self.conv1 = _conv3x3(3, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = _stage(channels, channels, blocks, stride=1)
        self.layer2 = _stage(channels, 2 * channels, blocks, stride=2)
        self.layer3 = _stage(2 * channels, 4 * channels, blocks, stride=2)
        self.fc = nn.Linear(4 * channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, H, W]."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(mean_over_pixels(x))
        return logits


def _conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)


def _stage(in_channels: int, channels: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = Block(in_channels, channels, stride)
    return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))
