"""What every peer is given, in plain PyTorch: network, images, shards, training, evaluation.

Written as a user of any of them would: a DataLoader over the client's images, augmentation of
whole batches in ``collate_fn``, SGD, float32. Needs torch and numpy only, which the peers'
environments have.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

_PADDING = 4
_TEST_BATCH = 500
Batches = Iterable[tuple[Tensor, Tensor]]


class Block(nn.Module):
    """Two convolutions beside a shortcut that skips pixels and pads channels."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(out + F.pad(shortcut, (0, 0, 0, 0, 0, self.more)))


class ResNet20(nn.Module):
    """The ResNet-20 for CIFAR-10 of He et al. (2016), section 4.2; 269,722 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), Block(16, 16, 1), Block(16, 16, 1))
        self.layer2 = nn.Sequential(Block(16, 32, 2), Block(32, 32, 1), Block(32, 32, 1))
        self.layer3 = nn.Sequential(Block(32, 64, 2), Block(64, 64, 1), Block(64, 64, 1))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The work of all arms, a folder: ``work.json``, images, labels and shards, first values."""

    folder: Path
    rounds: int
    clients: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    seed: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of(cls, folder: Path) -> "Work":
        """The work in a folder."""
        return cls(folder=folder, **json.loads((folder / "work.json").read_text()))

    def network(self) -> ResNet20:
        """The network with the first values that all arms begin with."""
        network = ResNet20()
        network.load_state_dict(self.first())
        return network

    def first(self) -> dict[str, Tensor]:
        """The first values, by name."""
        values: dict[str, Tensor] = torch.load(self.folder / "first.pt", weights_only=True)
        return values

    def shard(self, client: int) -> TensorDataset:
        """Images and labels of a client."""
        rows = np.load(self.folder / f"shard-{client}.npy")
        return self._images("train", rows)

    def test(self) -> TensorDataset:
        """The test images and their labels."""
        return self._images("test", np.s_[:])

    def _images(self, split: str, rows: np.ndarray | slice) -> TensorDataset:
        images = np.load(self.folder / f"{split}-images.npy", mmap_mode="r")[rows]
        labels = np.load(self.folder / f"{split}-labels.npy")[rows]
        return TensorDataset(torch.from_numpy(np.array(images)), torch.from_numpy(labels))

    def loader(self, client: int, generator: torch.Generator | None = None) -> DataLoader[Any]:
        """Shuffled, augmented batches of a client."""
        shard = self.shard(client)
        return DataLoader(
            shard, self.batch_size, shuffle=True, collate_fn=self.augmented, generator=generator
        )

    def test_loader(self) -> DataLoader[Any]:
        """Batches of the test images."""
        return DataLoader(self.test(), _TEST_BATCH, collate_fn=self.collated)

    def augmented(self, items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """A batch, every image cropped at random out of black margins, half of them mirrored."""
        images, labels = zip(*items, strict=True)
        padded = F.pad(torch.stack(images), (_PADDING,) * 4)
        places = torch.randint(0, 2 * _PADDING + 1, (len(images), 2)).tolist()
        cropped = torch.stack(
            [image[:, y : y + 32, x : x + 32] for image, (y, x) in zip(padded, places, strict=True)]
        )
        mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
        return self._scaled(torch.where(mirrored, cropped.flip(3), cropped)), torch.stack(labels)

    def collated(self, items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """A batch as it is."""
        images, labels = zip(*items, strict=True)
        return self._scaled(torch.stack(images)), torch.stack(labels)

    def _scaled(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (self.mean, self.std))
        return (images.float() / 255 - mean) / std

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """SGD for one client's local epoch; its momentum begins at zero."""
        return torch.optim.SGD(
            network.parameters(),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


def train(
    network: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    *,
    channels_last: bool = False,
    bf16: bool = False,
) -> None:
    """One local epoch."""
    memory = torch.channels_last if channels_last else torch.contiguous_format
    network.to(memory_format=memory).train()  # type: ignore[call-overload]
    for images, labels in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(network(images.to(memory_format=memory)), labels)
        loss.backward()
        optimizer.step()


def accuracy(network: nn.Module, batches: Batches) -> float:
    """The fraction of images that are classified correctly."""
    network.eval()
    correct = seen = 0
    with torch.no_grad():
        for images, labels in batches:
            correct += int((network(images).argmax(dim=1) == labels).sum())
            seen += len(labels)
    return correct / seen


def report(round_: int, seconds: float, test_accuracy: float | None) -> None:
    """Tell the study of a round; bare steps have no accuracy."""
    row = {"round": round_, "seconds": seconds, "test_accuracy": test_accuracy}
    print(json.dumps(row), flush=True)
