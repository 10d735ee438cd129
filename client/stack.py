"""The models of several clients as one stack, and the steps of SGD that they take together.

Shape letters: C clients of the stack, c those of one step, B images of a batch, H height, W width.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad_and_value, vmap

from csg_core import SliceGenerator
from csg_core.evaluation import Precision, autocast
from csg_core.functional import PureNetwork
from federation.sections import TrainConfig

Tensors = dict[str, Tensor]  # by their names in the model
# losses [c], with gradients [c, ...] and buffers as they are after the step
_Step = Callable[..., tuple[Tensors, tuple[Tensor, Tensors]]]


def own_tensors(model: nn.Module) -> Tensors:
    """The tensors, the model's own, that differ from client to client: all that may change."""
    makers = [name for name, m in model.named_modules() if isinstance(m, SliceGenerator)]
    drawn = {f"{name}.{tensor}" for name in makers for tensor in ("weight", "draw")}
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    return parameters | {n: b for n, b in model.named_buffers() if n not in drawn}


def stepper(network: PureNetwork, precision: Precision) -> _Step:
    """Losses and gradients of c clients, each of its own tensors on its own batch.

    Its arguments are the tensors that train [c, ...], the others of a client's own [c, ...], those
    that all share, images [c, B, 3, H, W] and labels [c, B].
    """

    def loss(
        trained: Tensors, others: Tensors, shared: Tensors, images_B3HW: Tensor, labels_B: Tensor
    ) -> tuple[Tensor, Tensors]:
        others = {name: tensor.clone() for name, tensor in others.items()}  # norms write into them
        with autocast(images_B3HW.device, precision):
            logits = network({**shared, **others, **trained}, images_B3HW)
            return F.cross_entropy(logits, labels_B), others

    one = grad_and_value(loss, has_aux=True)
    return vmap(one, in_dims=(0, 0, None, 0, 0), randomness="different")


class Stack:
    """C models in training, their momentum, and what FedProx pulls them to.

    Args:
        models: ``own_tensors`` of each client's model, whose values are taken over.
        shared: the other tensors of the network.
        parameters: names of those that train this round.
        step: of ``stepper``.
        train: settings of SGD.
        lr: learning rate of the round.
        mu: of FedProx.
    """

    def __init__(
        self,
        models: Sequence[Mapping[str, Tensor]],
        shared: Tensors,
        *,
        parameters: Sequence[str],
        step: _Step,
        train: TrainConfig,
        lr: float,
        mu: float,
    ) -> None:
        stacked = {
            name: torch.stack([model[name] for model in models]).contiguous() for name in models[0]
        }
        self._trained = {name: stacked.pop(name) for name in parameters}
        self._others, self._shared = stacked, shared
        self._momentum = [torch.zeros_like(t) for t in self._trained.values()]
        self._anchors = [t.clone() for t in self._trained.values()] if mu else []
        self._gradients, self._train, self._lr, self._mu = step, train, lr, mu

    def model(self, row: int) -> Tensors:
        """The tensors of one client's model."""
        return {name: tensor[row] for name, tensor in (self._trained | self._others).items()}

    @torch.no_grad()
    def step(self, at: slice, images_cB3HW: Tensor, labels_cB: Tensor) -> Tensor:
        """One step of the clients ``at``, each on its own batch; their losses [c]."""
        trained = {name: tensor[at] for name, tensor in self._trained.items()}
        others = {name: tensor[at] for name, tensor in self._others.items()}
        found, (losses_c, changed) = self._gradients(
            trained, others, self._shared, images_cB3HW, labels_cB
        )
        for name, tensor in others.items():
            tensor.copy_(changed[name])
        parameters = list(trained.values())
        gradients = [found[name] for name in trained]
        if self._mu:  # the gradient of mu/2 |w - w_t|^2 (Li et al., 2020, equation 2)
            away = torch._foreach_sub(parameters, [anchor[at] for anchor in self._anchors])
            gradients = list(torch._foreach_add(gradients, away, alpha=self._mu))
        if self._train.clip_norm is not None:
            gradients = _clipped(gradients, self._train.clip_norm)
        gradients = list(torch._foreach_add(gradients, parameters, alpha=self._train.weight_decay))
        momentum = [tensor[at] for tensor in self._momentum]
        torch._foreach_mul_(momentum, self._train.momentum)
        torch._foreach_add_(momentum, gradients)
        torch._foreach_add_(parameters, momentum, alpha=-self._lr)
        return losses_c


def _clipped(gradients: Sequence[Tensor], most: float) -> list[Tensor]:
    """Gradients [c, ...], those of each client scaled to a norm of at most ``most``."""
    squares = [g.reshape(len(g), -1).square().sum(dim=1) for g in gradients]
    norms_c = torch.stack(squares).sum(dim=0).sqrt()
    scale_c = (most / (norms_c + 1e-6)).clamp(max=1.0)
    return [g * scale_c.reshape(-1, *[1] * (g.dim() - 1)) for g in gradients]
