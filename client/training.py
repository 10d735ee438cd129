"""Local training and evaluation over an ImageSet, whole batches at a time."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csg_core.images import ImageSet, random_crop_and_flip

Precision = Literal["fp32", "bf16"]
_CROP_PADDING = 4


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean cross entropy (nats) and the fraction of examples classified correctly."""

    loss: float
    accuracy: float
    examples: int


def train_epoch(
    model: Callable[[Tensor], Tensor],
    data: ImageSet,
    optimizer: torch.optim.Optimizer,
    *,
    batch_size: int,
    rng: torch.Generator,
    precision: Precision = "fp32",
    augment: bool = True,
    after_step: Callable[[], None] | None = None,
) -> float:
    """One pass over ``data`` in the order and with the augmentation that ``rng`` draws.

    The last batch may be smaller; a last batch of a single image is left out, as batch
    normalisation cannot train on one.

    Returns:
        Mean training loss per example.
    """
    device = data.images.device
    total = torch.zeros((), device=device)
    seen = 0
    for chosen in torch.randperm(len(data), generator=rng).to(device).split(batch_size):
        if len(chosen) == 1 < len(data):
            continue
        images = data.images[chosen]
        if augment:
            images = random_crop_and_flip(images, padding=_CROP_PADDING, rng=rng)
        with autocast(device, precision):
            loss = F.cross_entropy(model(data.normalise(images)), data.labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if after_step is not None:
            after_step()
        total += loss.detach() * len(chosen)
        seen += len(chosen)
    return float(total) / max(seen, 1)


def evaluate(
    model: nn.Module, data: ImageSet, *, batch_size: int = 500, precision: Precision = "fp32"
) -> Evaluation:
    """Loss and accuracy of ``model`` over ``data``; leaves the model in its mode."""
    device = data.images.device
    was_training = model.training
    model.eval()
    loss = torch.zeros((), device=device, dtype=torch.float64)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    with torch.inference_mode(), autocast(device, precision):
        for images, labels in zip(
            data.images.split(batch_size), data.labels.split(batch_size), strict=True
        ):
            logits = model(data.normalise(images)).float()
            loss += F.cross_entropy(logits, labels, reduction="sum").double()
            correct += (logits.argmax(dim=1) == labels).sum()
    model.train(was_training)
    return Evaluation(float(loss) / len(data), float(correct) / len(data), len(data))


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """bfloat16 autocast, or none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
