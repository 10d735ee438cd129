"""Copies of a model that train at once, each on its own batch; on a GPU, in streams of their own.

A small network's kernels leave most of a GPU idle, and Python takes longer to ask for a kernel than
the GPU does to run it. So a step of all replicas is captured as one CUDA graph, in which each is a
branch, and played back from then on (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/).

Shape letters: B images of a batch, H height, W width.
"""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csg_core import generators
from csg_core.evaluation import Precision, autocast
from csg_core.images import ImageSet
from federation.sections import TrainConfig

Batch = tuple[Tensor, Tensor]  # images [B, H, W, 3] (uint8) and labels [B]
_Key = tuple[int, tuple[int, ...]]  # the first replica of a step, and sizes of batches
_T = TypeVar("_T")
_EAGER = 3  # steps on batches of the same sizes before they are captured
_MOST_GRAPHS = 256


class Replica:
    """A model in training: its parameters, their momentum, and what FedProx pulls them to.

    Args:
        model: the replica's own.
        still: names of parameters that do not train.
        train: settings of SGD.
        mu: of FedProx.
        lr: learning rate, a scalar that may change between steps.
    """

    def __init__(
        self, model: nn.Module, *, still: Collection[str], train: TrainConfig, mu: float, lr: Tensor
    ) -> None:
        self.model = model.train()
        named = model.named_parameters()
        self._parameters: list[Tensor] = [
            p for name, p in named if p.requires_grad and name not in still
        ]
        makers = {id(generator.weight) for generator in generators(model).values()}
        self._fractions = [train.generator_lr if id(p) in makers else 1.0 for p in self._parameters]
        self._momentum = [torch.zeros_like(p) for p in self._parameters]
        self._anchors = [torch.zeros_like(p) for p in self._parameters] if mu else []
        self._train, self._mu, self._lr = train, mu, lr

    def begin(self, model: nn.Module) -> None:
        """Take over a model's values, with no momentum yet."""
        _copy(model, self.model)
        torch._foreach_zero_(self._momentum)
        if self._anchors:
            torch._foreach_copy_(self._anchors, [p.detach() for p in self._parameters])

    def hand_over(self, model: nn.Module) -> None:
        """Give a model the values that training came to."""
        _copy(self.model, model)

    def step(self, data: ImageSet, batch: Batch, precision: Precision) -> Tensor:
        """One step of SGD; the loss before it."""
        images_BHW3, labels_B = batch
        with torch.enable_grad(), autocast(images_BHW3.device, precision):
            loss = F.cross_entropy(self.model(data.normalise(images_BHW3)), labels_B)
        self._descend(torch.autograd.grad(loss, self._parameters, allow_unused=True))
        return loss.detach()

    @torch.no_grad()
    def _descend(self, found: Sequence[Tensor | None]) -> None:
        gradients = [gradient for gradient in found if gradient is not None]

        def used(tensors: Sequence[_T]) -> list[_T]:
            return [t for t, gradient in zip(tensors, found, strict=True) if gradient is not None]

        parameters, train = used(self._parameters), self._train
        if self._mu:  # the gradient of mu/2 |w - w_t|^2 (Li et al., 2020, equation 2)
            away = torch._foreach_sub(parameters, used(self._anchors))
            gradients = list(torch._foreach_add(gradients, away, alpha=self._mu))
        if train.clip_norm is not None:
            norm = torch.nn.utils.get_total_norm(gradients)
            scale = (train.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            gradients = list(torch._foreach_mul(gradients, scale))
        if train.weight_decay:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=train.weight_decay))
        if train.momentum:
            momentum = used(self._momentum)
            torch._foreach_mul_(momentum, train.momentum)
            torch._foreach_add_(momentum, gradients)
            gradients = momentum
        steps = list(torch._foreach_mul(gradients, self._lr))
        torch._foreach_mul_(steps, used(self._fractions))
        torch._foreach_sub_(parameters, steps)


class Replicas:
    """Replicas of a model that step together, on the images of ``data``."""

    def __init__(
        self,
        model: nn.Module,
        count: int,
        data: ImageSet,
        *,
        still: Collection[str],
        train: TrainConfig,
        mu: float,
        precision: Precision,
    ) -> None:
        self._device = device = data.images.device
        self._lr = next(model.parameters()).new_zeros(())
        self._replicas = [
            Replica(copy.deepcopy(model), still=still, train=train, mu=mu, lr=self._lr)
            for _ in range(count)
        ]
        self._data, self._precision = data, precision
        self._cuda = device.type == "cuda"
        self._streams = [torch.cuda.Stream(device) for _ in range(count)] if self._cuda else []
        self._seen: Counter[_Key] = Counter()
        self._graphs: dict[_Key, _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle() if self._cuda else None

    def __len__(self) -> int:
        return len(self._replicas)

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas)

    def __getitem__(self, place: int) -> Replica:
        return self._replicas[place]

    def set_lr(self, lr: float) -> None:
        """The learning rate of the steps to come."""
        self._lr.fill_(lr)

    def step(self, first: int, batches: Sequence[Batch]) -> Tensor:
        """One step of each replica from the ``first`` on for which there is a batch; its losses."""
        if not self._cuda:
            return self.step_uncaptured(first, batches)
        with torch.cuda.device(self._device):
            return self._replayed(first, batches)

    def _replayed(self, first: int, batches: Sequence[Batch]) -> Tensor:
        key = (first, tuple(len(labels_B) for _, labels_B in batches))
        if key not in self._graphs:
            self._seen[key] += 1
            if self._seen[key] <= _EAGER or len(self._graphs) == _MOST_GRAPHS:
                return self.step_uncaptured(first, batches)
            self._graphs[key] = _Graph(partial(self.step_uncaptured, first), batches, self._pool)
        return self._graphs[key](batches)

    def step_uncaptured(self, first: int, batches: Sequence[Batch]) -> Tensor:
        """The same kernel by kernel, as on a CPU."""
        losses = []
        try:
            for place, batch in enumerate(batches, first):
                with self._branch(place):
                    step = self._replicas[place].step(self._data, batch, self._precision)
                    losses.append(step)
        finally:  # whatever a branch raises, what comes next waits for all of them
            for stream in self._streams[first : first + len(batches)]:
                torch.cuda.current_stream().wait_stream(stream)
        return torch.stack(losses)

    @contextmanager
    def _branch(self, place: int) -> Iterator[None]:
        if not self._cuda:
            yield
            return
        stream = self._streams[place]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            yield


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> None:
    """Parameters and buffers of one model into another like it."""
    torch._foreach_copy_(
        [*target.parameters(), *target.buffers()], [*source.parameters(), *source.buffers()]
    )


class _Graph:
    """A step as it was captured, on batches of the same sizes, which are copied into its own."""

    def __init__(
        self, step: Callable[[Sequence[Batch]], Tensor], batches: Sequence[Batch], pool: object
    ) -> None:
        self._own = [tensor.clone() for batch in batches for tensor in batch]
        own: list[Batch] = list(zip(self._own[::2], self._own[1::2], strict=True))
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):  # type: ignore[arg-type]
            self._losses = step(own)

    def __call__(self, batches: Sequence[Batch]) -> Tensor:
        for own, tensor in zip(self._own, (t for batch in batches for t in batch), strict=True):
            own.copy_(tensor)
        self._graph.replay()
        return self._losses.clone()
