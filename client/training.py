"""Local training over an ImageSet, whole batches at a time."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from csg_core.evaluation import Precision, autocast
from csg_core.images import ImageSet, random_crop_and_flip

CROP_PADDING = 4


@dataclass(frozen=True, slots=True)
class Losses:
    """Training losses of a pass, nats an example: mean, first step's and last step's."""

    mean: float
    first: float
    last: float

    @classmethod
    def of(cls, steps: Sequence[float], examples: Sequence[int]) -> "Losses":
        """From the loss of every step, and how many examples it was the mean of."""
        weighted = sum(loss * count for loss, count in zip(steps, examples, strict=True))
        return cls(weighted / sum(examples), steps[0], steps[-1])

    @classmethod
    def over(cls, passes: Sequence["Losses"]) -> "Losses":
        """Of several passes: the mean of the last, the first step's and the last step's."""
        return cls(passes[-1].mean, passes[0].first, passes[-1].last)


def train_epoch(
    model: Callable[[Tensor], Tensor],
    data: ImageSet,
    optimizer: torch.optim.Optimizer,
    *,
    batch_size: int,
    rng: torch.Generator,
    rows: Tensor | None = None,
    precision: Precision = "fp32",
    augment: bool = True,
    before_step: Callable[[], None] | None = None,
    after_step: Callable[[], None] | None = None,
) -> Losses:
    """One pass over ``data`` in the order, with the augmentation and dropout that ``rng`` draws.

    ``rows``, int64 [M], narrows it to these images. ``before_step`` is called when gradients are
    there, ``after_step`` when the parameters have changed.
    """
    device = data.images.device
    rows = (torch.arange(len(data)) if rows is None else rows).to(device)
    losses: list[Tensor] = []
    examples: list[int] = []
    with drawing_as(rng, device):
        for chosen in epoch_batches(rows, batch_size, rng):
            images = data.images[chosen]
            if augment:
                images = random_crop_and_flip(images, padding=CROP_PADDING, rng=rng)
            with autocast(device, precision):
                loss = F.cross_entropy(model(data.normalise(images)), data.labels[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if before_step is not None:
                before_step()
            optimizer.step()
            if after_step is not None:
                after_step()
            losses.append(loss.detach())
            examples.append(len(chosen))
    return Losses.of(torch.stack(losses).tolist(), examples)


def epoch_batches(rows: Tensor, batch_size: int, rng: torch.Generator) -> tuple[Tensor, ...]:
    """The rows of each batch of an epoch, in the order that ``rng`` draws.

    The last batch may be smaller; if it is a single image after others, it is left out, as the
    statistics of one image mislead batch normalisation.
    """
    order = rows[torch.randperm(len(rows), generator=rng)]
    batches: tuple[Tensor, ...] = order.split(batch_size)
    lone = len(batches) > 1 and len(batches[-1]) == 1 < batch_size
    return batches[:-1] if lone else batches


@contextmanager
def drawing_as(rng: torch.Generator, device: torch.device) -> Iterator[None]:
    """Have torch's global generators, of which dropout draws, follow from ``rng``, which stays."""
    seed = int(torch.randint(2**63 - 1, (), generator=rng.clone_state()))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
