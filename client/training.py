"""Local training and evaluation over an ImageSet, whole batches at a time."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
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

    The last batch may be smaller; if it were a single image, it is left out, as batch
    normalisation cannot train on one.

    Returns:
        Mean training loss per example.
    """
    device = data.images.device
    total = torch.zeros((), device=device)
    seen = 0
    for chosen in torch.randperm(len(data), generator=rng).to(device).split(batch_size):
        if len(chosen) == 1 < batch_size:
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
    """Loss and accuracy of ``model`` over ``data``; leaves every module in its mode."""
    device = data.images.device
    loss = torch.zeros((), device=device, dtype=torch.float64)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    with evaluating(model), torch.inference_mode(), autocast(device, precision):
        for images, labels in zip(
            data.images.split(batch_size), data.labels.split(batch_size), strict=True
        ):
            logits = model(data.normalise(images)).float()
            loss += F.cross_entropy(logits, labels, reduction="sum").double()
            correct += (logits.argmax(dim=1) == labels).sum()
    return Evaluation(float(loss) / len(data), float(correct) / len(data), len(data))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """bfloat16 autocast, or none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
