"""Central training, without federation: the figure that a federated one is measured against."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from client.training import train_epoch
from csg_core.evaluation import Precision, evaluate
from csg_core.images import ImageSet
from federation.sections import lr_factor

Schedule = Literal["cosine", "step"]
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """SGD with momentum. The released code's CIFAR-10 recipe is 200 epochs, batch 192 (128 for
    DenseNets) and the ``step`` schedule; the other values are the defaults.

    Attributes:
        epochs: passes over the training images.
        batch_size: images of a step.
        lr, momentum, weight_decay: of SGD.
        schedule: ``cosine`` to zero over all steps, or ``step``: a tenth from half of the epochs
            on, a hundredth from three quarters on.
        precision: ``fp32``, or ``bf16`` autocast.
        augment: whether images are shifted and mirrored at random.
        seed: of the order and the augmentation.
    """

    epochs: int = 10
    batch_size: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Schedule = "cosine"
    precision: Precision = "fp32"
    augment: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)} is not a positive number")
        for name in ("momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} {getattr(self, name)} cannot be; use 0 or more")
        if self.momentum >= 1:
            raise ValueError(f"momentum {self.momentum} cannot be; use a number below 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed} is out of range; use 0 to 2**63 - 1")


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to; accuracy is a fraction of 1, seconds are of training alone."""

    epoch: int
    train_loss: float
    test_loss: float
    test_accuracy: float
    seconds: float


def train_centrally(
    model: nn.Module, train: ImageSet, test: ImageSet, settings: Settings
) -> Iterator[Epoch]:
    """Train ``model`` in place, on the device of ``train``, and yield after every epoch.

    Raises:
        ValueError: if the loss is no longer a number.
    """
    model.to(train.images.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    steps = settings.epochs * math.ceil(len(train) / settings.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(settings.schedule, step / steps)
    )
    rng = torch.Generator().manual_seed(settings.seed)
    model.train()
    for epoch in range(1, settings.epochs + 1):
        started = time.perf_counter()
        losses = train_epoch(
            model,
            train,
            optimizer,
            batch_size=settings.batch_size,
            rng=rng,
            precision=settings.precision,
            augment=settings.augment,
            after_step=schedule.step,
        )
        seconds = time.perf_counter() - started
        if not math.isfinite(losses.mean):
            raise ValueError(f"the loss is {losses.mean} in epoch {epoch}; lower lr {settings.lr}")
        result = evaluate(model, test, precision=settings.precision)
        yield Epoch(epoch, losses.mean, result.loss, result.accuracy, seconds)
