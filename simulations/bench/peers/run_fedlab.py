"""FedLab: its standalone pipeline, with its SGDSerialClientTrainer and its SyncServerHandler.

FedLab averages parameters; the running statistics of batch normalisation stay as they began, so
that its accuracy is that of a network which normalises by none.

Argument: the folder of the work.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch

# FedLab imports torchvision, whose own operators cannot be loaded beside a CPU build of torch; to
# be imported, it needs the two of them declared (csg_core/networks/from_torchvision.py).
_OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
try:
    import torchvision  # noqa: F401
except RuntimeError:
    for _name in ("nms", "qnms"):
        _OPERATORS.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer  # noqa: E402
from fedlab.contrib.algorithm.basic_server import SyncServerHandler  # noqa: E402
from fedlab.core.standalone import StandalonePipeline  # noqa: E402

from simulations.bench.peers.plain import Work, accuracy, report  # noqa: E402


class Shards:
    """The clients' images, as its trainer asks for them."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def get_dataloader(self, id: int, batch_size: int) -> Any:  # noqa: A002 (its name)
        del batch_size
        return self._work.loader(id)


class Trainer(SGDSerialClientTrainer):
    """Its SGD has no momentum; here it has, from zero for every client."""

    def __init__(self, work: Work) -> None:
        super().__init__(work.network(), work.clients)
        self._work = work

    def train(self, model_parameters: torch.Tensor, train_loader: Any) -> Any:
        self.optimizer = self._work.optimizer(self._model)
        return super().train(model_parameters, train_loader)


class Pipeline(StandalonePipeline):
    """Evaluates after each round, and reports it."""

    def __init__(self, handler: Any, trainer: Any, work: Work) -> None:
        super().__init__(handler, trainer)
        self._test, self._began = work.test_loader(), time.perf_counter()

    def evaluate(self) -> None:
        found = accuracy(self.handler.model, self._test)
        now = time.perf_counter()
        report(self.handler.round, now - self._began, found)
        self._began = now


def main() -> None:
    work = Work.of(Path(sys.argv[1]))
    torch.manual_seed(work.seed)
    trainer = Trainer(work)
    trainer.setup_dataset(Shards(work))
    trainer.setup_optim(1, work.batch_size, work.lr)
    handler = SyncServerHandler(work.network(), work.rounds, 1.0)
    Pipeline(handler, trainer, work).main()


if __name__ == "__main__":
    main()
