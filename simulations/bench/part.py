"""What the parts of the benchmark have in common."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csg_core.evaluation import Precision, autocast
from simulations.pages import DOCS

RESULTS = Path(__file__).parent / "results"
SPEED = DOCS / "speed.md"
CLASSES = 10
WARM_UP = 3


class Part(Protocol):
    """A module that measures something; what it finds is kept as JSON."""

    NEEDS_IMAGES: bool

    def measure(self, images: str | None) -> Any:
        """Figures, made of what JSON has; ``images`` is the folder of CIFAR-10. None: not here."""

    def tables(self, found: Any) -> Mapping[str, str]:
        """Markdown by the name of its place in the page on speed."""


def batch(
    size: int, *, channels_last: bool = True, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Random images, float32 [size, 3, 32, 32], and labels, int64 [size]."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, 32, 32, generator=rng)
    labels = torch.randint(0, CLASSES, (size,), generator=rng)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    return images.to(device), labels.to(device)


def training_step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    precision: Precision,
    *,
    compiled: bool = False,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
) -> Callable[[], None]:
    """One step of SGD as clients make it, on the same images again and again."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=momentum, weight_decay=weight_decay)
    forward = torch.compile(model) if compiled else model

    def step() -> None:
        with autocast(images.device, precision):
            loss = F.cross_entropy(forward(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def time_in_turn(calls: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, again and again; all calls see the same load of the machine."""
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return seconds
