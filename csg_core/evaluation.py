"""Loss and accuracy of a model over an ImageSet, and the precision that its passes run in."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csg_core.images import ImageSet

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean cross entropy (nats) and the fraction of examples classified correctly."""

    loss: float
    accuracy: float
    examples: int


def evaluate(
    model: nn.Module,
    data: ImageSet,
    *,
    rows: Tensor | None = None,
    batch_size: int = 500,
    precision: Precision = "fp32",
) -> Evaluation:
    """Loss and accuracy of ``model`` over ``data``; leaves every module in its mode.

    ``rows``, int64 [M], narrows it to these images.

    Raises:
        ValueError: if there are no images.
    """
    device = data.images.device
    rows = torch.arange(len(data)) if rows is None else rows
    if not len(rows):
        raise ValueError("there are no images to evaluate on")
    loss = torch.zeros((), device=device, dtype=torch.float64)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    with evaluating(model), torch.inference_mode(), autocast(device, precision):
        for chosen in rows.to(device).split(batch_size):
            labels = data.labels[chosen]
            logits = model(data.normalise(data.images[chosen])).float()
            loss += F.cross_entropy(logits, labels, reduction="sum").double()
            correct += (logits.argmax(dim=1) == labels).sum()
    return Evaluation(float(loss) / len(rows), float(correct) / len(rows), len(rows))


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


def fastest_precision(device: torch.device) -> Precision:
    """``bf16`` where the device has instructions for it, else ``fp32``."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # the question is of the current one
            supported = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if supported else "fp32"
    if device.type == "cpu":
        tests = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        if any(getattr(torch.cpu, test, lambda: False)() for test in tests):
            return "bf16"
    return "fp32"
