"""Copies of a model that train at once, each on its own batch; on a GPU, in streams of their own.

A small network's kernels leave most of a GPU idle, and Python takes longer to ask for a kernel than
the GPU does to run it. So a step of all replicas is captured as one CUDA graph, in which each is a
branch, and played back from then on (https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/).

Shape letters: B images of a batch, H height, W width.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from client.tensors import ClientTensors, Reached, reached
from csg_core import generators
from csg_core.evaluation import Precision, autocast
from csg_core.images import ImageSet
from federation.sections import TrainConfig

Batch = tuple[Tensor, Tensor]  # images [B, H, W, 3] (uint8) and labels [B]
# the first replica of a step, sizes of batches, and whether generators are left as they are
_Key = tuple[int, tuple[int, ...], bool]
_EAGER = 3  # steps on batches of the same sizes before they are captured
_MOST_GRAPHS = 256


class Replica:
    """A model in training: its parameters, their momentum, and what FedProx pulls them to.

    Args:
        model: the replica's own.
        train: settings of SGD.
        mu: of FedProx.
        lr: learning rate, a scalar that may change between steps.
    """

    def __init__(self, model: nn.Module, *, train: TrainConfig, mu: float, lr: Tensor) -> None:
        self.model = model.train()
        self.tensors = ClientTensors(model, train)
        self._parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        makers = {id(generator.weight) for generator in generators(model).values()}
        self._is_maker = [id(p) in makers for p in self._parameters]
        self._places = list(range(len(self._parameters)))  # of those that train now
        fraction = train.generator_lr
        own = [fraction if maker else 1.0 for maker in self._is_maker]
        self._fractions = own if fraction != 1 else []
        self._momentum = [torch.zeros_like(p) for p in self._parameters] if train.momentum else []
        self._anchors = [torch.zeros_like(p) for p in self._parameters] if mu else []
        self._train, self._mu, self._lr = train, mu, lr
        self._values = values_of(model)

    def hold(self, *, generators: bool) -> None:
        """From now on leave generators as they are, or train everything."""
        self._places = [
            place for place, maker in enumerate(self._is_maker) if not (generators and maker)
        ]

    @torch.no_grad()
    def begin(self, values: list[Tensor]) -> None:
        """Take over a model's values, with no momentum yet."""
        torch._foreach_copy_(self._values, values)
        if self._momentum:
            torch._foreach_zero_(self._momentum)
        if self._anchors:
            torch._foreach_copy_(self._anchors, [p.detach() for p in self._parameters])

    def step(self, data: ImageSet, batch: Batch, precision: Precision) -> Tensor:
        """One step of SGD; the loss before it."""
        images_BHW3, labels_B = batch
        with torch.enable_grad(), autocast(images_BHW3.device, precision):
            loss = F.cross_entropy(self.model(data.normalise(images_BHW3)), labels_B)
        training = [self._parameters[place] for place in self._places]
        found = torch.autograd.grad(loss, training, allow_unused=True)
        pairs = zip(self._places, found, strict=True)
        self._descend({place: gradient for place, gradient in pairs if gradient is not None})
        return loss.detach()

    @torch.no_grad()
    def _descend(self, found: Mapping[int, Tensor]) -> None:
        """A step by gradients, which have the places of their parameters."""
        gradients, train = list(found.values()), self._train
        parameters = [self._parameters[place] for place in found]
        if self._mu:  # the gradient of mu/2 |w - w_t|^2 (Li et al., 2020, equation 2)
            away = torch._foreach_sub(parameters, [self._anchors[place] for place in found])
            gradients = list(torch._foreach_add(gradients, away, alpha=self._mu))
        if train.clip_norm is not None:
            norm = torch.nn.utils.get_total_norm(gradients)
            scale = (train.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            gradients = list(torch._foreach_mul(gradients, scale))
        if train.weight_decay:
            gradients = list(torch._foreach_add(gradients, parameters, alpha=train.weight_decay))
        if train.momentum:
            momentum = [self._momentum[place] for place in found]
            torch._foreach_mul_(momentum, train.momentum)
            torch._foreach_add_(momentum, gradients)
            gradients = momentum
        steps = list(torch._foreach_mul(gradients, self._lr))
        if self._fractions:
            torch._foreach_mul_(steps, [self._fractions[place] for place in found])
        torch._foreach_sub_(parameters, steps)


class Replicas:
    """Replicas of a model that step together, on the images of ``data``."""

    def __init__(
        self,
        model: nn.Module,
        count: int,
        data: ImageSet,
        *,
        train: TrainConfig,
        mu: float,
        precision: Precision,
    ) -> None:
        self._device = device = data.images.device
        self._lr = next(model.parameters()).new_zeros(())
        self._replicas = [
            Replica(copy.deepcopy(model), train=train, mu=mu, lr=self._lr) for _ in range(count)
        ]
        self.data, self.mu, self._precision = data, mu, precision
        self._held = False
        cuda = device.type == "cuda"
        self._capture = _Capture(device) if cuda else None
        self._streams = [torch.cuda.Stream(device) for _ in range(count)] if cuda else []
        self._seen: Counter[_Key] = Counter()
        self._graphs: dict[_Key, _Graph] = {}

    def __len__(self) -> int:
        return len(self._replicas)

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas)

    def __getitem__(self, place: int) -> Replica:
        return self._replicas[place]

    def set_lr(self, lr: float) -> None:
        """The learning rate of the steps to come."""
        self._lr.fill_(lr)

    def hold(self, *, generators: bool) -> None:
        """In the steps to come leave generators as they are, or train everything."""
        self._held = generators
        for replica in self._replicas:
            replica.hold(generators=generators)

    def reached(self, count: int) -> list[Reached]:
        """What the first ``count`` replicas have come to."""
        return reached([replica.tensors for replica in self._replicas[:count]])

    def step(self, first: int, batches: Sequence[Batch]) -> Tensor:
        """One step of each replica from the ``first`` on for which there is a batch; its losses."""
        if self._capture is None:
            return self.step_uncaptured(first, batches)
        with torch.cuda.device(self._device):
            return self._replayed(first, batches, self._capture)

    def _replayed(self, first: int, batches: Sequence[Batch], capture: "_Capture") -> Tensor:
        key = (first, tuple(len(labels_B) for _, labels_B in batches), self._held)
        if key not in self._graphs:
            self._seen[key] += 1
            if self._seen[key] <= _EAGER or len(self._graphs) == _MOST_GRAPHS:
                return self.step_uncaptured(first, batches)
            self._graphs[key] = _Graph(partial(self.step_uncaptured, first), batches, capture)
        return self._graphs[key](batches)

    def step_uncaptured(self, first: int, batches: Sequence[Batch]) -> Tensor:
        """The same kernel by kernel, as on a CPU."""
        losses = []
        with ExitStack() as joined:  # whatever a branch raises, what comes next waits for all
            for place, batch in enumerate(batches, first):
                with self._branch(place, joined):
                    step = self._replicas[place].step(self.data, batch, self._precision)
                    losses.append(step)
        return torch.stack(losses)

    @contextmanager
    def _branch(self, place: int, joined: ExitStack) -> Iterator[None]:
        if self._capture is None:
            yield
            return
        stream, trunk = self._streams[place], torch.cuda.current_stream()
        stream.wait_stream(trunk)
        joined.callback(trunk.wait_stream, stream)
        with torch.cuda.stream(stream):
            yield


def values_of(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a model, in an order that is the same for all like it."""
    return [*model.parameters(), *model.buffers()]


class _Capture:
    """What all graphs of a device share: the memory of their tensors, and a stream to begin on."""

    def __init__(self, device: torch.device) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)


class _Graph:
    """A step as it was captured, on batches of the same sizes, which are copied into its own."""

    def __init__(
        self, step: Callable[[Sequence[Batch]], Tensor], batches: Sequence[Batch], capture: _Capture
    ) -> None:
        self._images = [images_BHW3.clone() for images_BHW3, _ in batches]
        self._labels = [labels_B.clone() for _, labels_B in batches]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=capture.pool, stream=capture.stream):
            self._losses = step(list(zip(self._images, self._labels, strict=True)))

    def __call__(self, batches: Sequence[Batch]) -> Tensor:
        torch._foreach_copy_(self._images, [images_BHW3 for images_BHW3, _ in batches])
        torch._foreach_copy_(self._labels, [labels_B for _, labels_B in batches])
        self._graph.replay()
        return self._losses.clone()
