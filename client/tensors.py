"""The tensors of a client's model: those that travel, and those that stay with the client."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from csg_core import GROUPS
from csg_core.exchange import Exchanged, finite_rows, stacked
from federation.sections import TrainConfig


class ClientTensors:
    """Of one model, those that are ``sent`` and those that are ``kept``."""

    def __init__(self, model: nn.Module, train: TrainConfig) -> None:
        travelling = train.travelling()
        self.sent = Exchanged(model, travelling)
        self.kept = Exchanged(model, [group for group in GROUPS if group not in travelling])


@dataclass(frozen=True, slots=True)
class Reached:
    """What training came to, where the model is.

    Attributes:
        sent: float32 [size]; whoever answers with it may overwrite it.
        kept: float32, of the tensors that stay.
        finite: whether all values are numbers.
    """

    sent: Tensor
    kept: Tensor
    finite: bool


def reached(models: Sequence[ClientTensors]) -> list[Reached]:
    """What each of several models that are alike has come to; a device is waited for but twice."""
    sent = stacked([model.sent for model in models])
    kept = stacked([model.kept for model in models])
    finite = map(all, zip(finite_rows(sent), finite_rows(kept), strict=True))
    return [Reached(*found) for found in zip(sent, kept, finite, strict=True)]
