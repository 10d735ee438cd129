"""Clients whose models are stacked: one step of all by ``torch.func``, the other way to a cohort.

The steps of ``client.replicas`` are many branches of one graph; here each operation works on all
models at once, which vmap makes a grouped convolution of where it is one. What is trained is the
same (https://docs.pytorch.org/tutorials/intermediate/ensembling.html).

Shape letters: N models, B images of a batch, H height, W width.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from client.replicas import Batch
from csg_core.evaluation import Precision, autocast
from csg_core.images import ImageSet
from federation.sections import TrainConfig


class Stacked:
    """Copies of a model that step together, by SGD with momentum and weight decay alone."""

    def __init__(
        self,
        model: nn.Module,
        count: int,
        data: ImageSet,
        *,
        train: TrainConfig,
        precision: Precision,
    ) -> None:
        assert (train.clip_norm, train.generator_lr) == (None, 1), "plain steps"
        self._model = copy.deepcopy(model).train()
        of_all = stack_module_state([self._model] * count)
        self.parameters: dict[str, Tensor] = {
            name: values.detach() for name, values in of_all[0].items()
        }
        self._buffers = of_all[1]
        self._momentum = [torch.zeros_like(p) for p in self.parameters.values()]
        self._data, self._train, self._precision = data, train, precision
        self._lr = next(model.parameters()).new_zeros(())
        self._graph: torch.cuda.CUDAGraph | None = None
        self._images: list[Tensor] = []  # the batches that the graph steps on
        self._labels: list[Tensor] = []

    def set_lr(self, lr: float) -> None:
        """The learning rate of the steps to come."""
        self._lr.fill_(lr)

    def step(self, batches: Sequence[Batch]) -> Tensor:
        """One step of each model on its batch, all of one size; the losses before it, [N]."""
        images_NBHW3 = torch.stack([images for images, _ in batches])
        labels_NB = torch.stack([labels for _, labels in batches])
        with torch.enable_grad(), autocast(images_NBHW3.device, self._precision):
            step = vmap(grad_and_value(self._loss), randomness="different")
            gradients, losses_N = step(self.parameters, self._buffers, images_NBHW3, labels_NB)
        self._descend([gradients[name] for name in self.parameters])
        losses: Tensor = losses_N.detach()
        return losses

    def _loss(
        self,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        images_BHW3: Tensor,
        labels_B: Tensor,
    ) -> Tensor:
        inputs = self._data.normalise(images_BHW3)
        outputs = functional_call(self._model, (parameters, buffers), (inputs,))
        return F.cross_entropy(outputs, labels_B)

    @torch.no_grad()
    def _descend(self, gradients: list[Tensor]) -> None:
        parameters = list(self.parameters.values())
        if self._train.weight_decay:
            decay = self._train.weight_decay
            gradients = list(torch._foreach_add(gradients, parameters, alpha=decay))
        torch._foreach_mul_(self._momentum, self._train.momentum)
        torch._foreach_add_(self._momentum, gradients)
        torch._foreach_sub_(parameters, torch._foreach_mul(self._momentum, self._lr))

    def capture(self, batches: Sequence[Batch]) -> None:
        """From now on ``replay`` steps as one CUDA graph."""
        self._images = [images.clone() for images, _ in batches]
        self._labels = [labels.clone() for _, labels in batches]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.step(list(zip(self._images, self._labels, strict=True)))

    def replay(self, batches: Sequence[Batch]) -> None:
        """A step on batches of the sizes that were captured."""
        assert self._graph is not None, "capture first"
        torch._foreach_copy_(self._images, [images for images, _ in batches])
        torch._foreach_copy_(self._labels, [labels for _, labels in batches])
        self._graph.replay()
