"""The small CNNs on which other frameworks measure their speed, for 32 x 32 images."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BENCHMARK_CNNS = ("pfl-cnn", "blazefl-cnn")


class PflCnn(nn.Module):
    """Two 3 x 3 convolutions, one hidden layer and dropout: 1,626,442 parameters for 10 classes.

    The network of pfl-research's CIFAR-10 benchmark (apple/pfl-research,
    ``benchmarks/model/pytorch/cnn.py``, ``simple_cnn``; also the one of the frameworks that it is
    compared with, ``publications/pfl/compare_utils/pytorch.py``), Glorot's first weights included.
    """

    def __init__(self, *, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.dropout1 = nn.Dropout(0.25)
        self.fc1 = nn.Linear(64 * 14 * 14, 128)
        self.dropout2 = nn.Dropout(0.5)
        self.fc2 = nn.Linear(128, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, 32, 32]."""
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = self.dropout1(F.max_pool2d(x, 2))
        x = self.dropout2(F.relu(self.fc1(torch.flatten(x, 1))))
        logits: Tensor = self.fc2(x)
        return logits


class BlazeflCnn(nn.Module):
    """Two 5 x 5 convolutions and three linear layers: 62,006 parameters for 10 classes.

    The CNN of BlazeFL's benchmark (kitsuyaazuma/blazefl,
    ``examples/quickstart-fedavg/models/selector.py``, which ``benchmarks/blazefl-case`` imports),
    after PyTorch's CIFAR-10 tutorial.
    """

    def __init__(self, *, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, 32, 32]."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(torch.flatten(x, 1)))
        logits: Tensor = self.fc3(F.relu(self.fc2(x)))
        return logits


def benchmark_cnn(name: str, *, classes: int = 10) -> nn.Module:
    """One of ``BENCHMARK_CNNS`` with random weights."""
    return PflCnn(classes=classes) if name == "pfl-cnn" else BlazeflCnn(classes=classes)
