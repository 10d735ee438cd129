"""pfl: FederatedAveraging of a PyTorchModel over the SimulatedBackend, in one process.

pfl averages what is trained; the running statistics of batch normalisation stay with the one model
that all clients train in, and are those after the last client. Argument: the folder of the work.
"""

import dataclasses
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchDataDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor

from simulations.bench.peers.plain import ResNet20, Work, accuracy, report


class Network(ResNet20):
    """With the two methods that pfl asks for."""

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        self.train()
        return F.cross_entropy(self(images), labels)

    @torch.no_grad()
    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        self.eval()
        correct = int((self(images).argmax(dim=1) == labels).sum())
        return {"accuracy": Weighted(correct, len(labels))}


class TrainingOnly(FederatedAveraging):
    """Without the evaluations of every client around its training, which others do not make."""

    def get_next_central_contexts(self, *arguments: Any, **named: Any) -> Any:
        contexts, *rest = super().get_next_central_contexts(*arguments, **named)
        if contexts is not None:
            contexts = tuple(dataclasses.replace(c, do_evaluation=False) for c in contexts)
        return contexts, *rest


class Rounds(TrainingProcessCallback):
    """Evaluates on the test images after each round, and reports it."""

    def __init__(self, work: Work) -> None:
        self._test, self._began = work.test_loader(), 0.0

    def on_train_begin(self, *, model: Any) -> Any:
        del model
        self._began = time.perf_counter()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Any]:
        del aggregate_metrics
        found = accuracy(model.pytorch_model, self._test)
        now = time.perf_counter()
        report(central_iteration + 1, now - self._began, found)
        self._began = now
        return False, Metrics()


def clients(work: Work) -> FederatedDataset:
    """Every client once a round."""

    def images(client: int) -> PyTorchDataDataset:
        return PyTorchDataDataset(
            work.shard(client), user_id=str(client), shuffle=True, collate_fn=work.augmented
        )

    return FederatedDataset(images, get_user_sampler("minimize_reuse", list(range(work.clients))))


def main() -> None:
    work = Work.of(Path(sys.argv[1]))
    torch.manual_seed(work.seed)
    np.random.seed(work.seed)
    network = Network()
    network.load_state_dict(work.first())
    sgd = partial(torch.optim.SGD, momentum=work.momentum, weight_decay=work.weight_decay)
    averaged = torch.optim.SGD(network.parameters(), lr=1.0)  # the mean of the clients' models
    backend = SimulatedBackend(
        training_data=clients(work), val_data=clients(work), postprocessors=[WeightByDatapoints()]
    )
    TrainingOnly().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=work.rounds,
            evaluation_frequency=1,
            train_cohort_size=work.clients,
            val_cohort_size=0,
        ),
        backend=backend,
        model=PyTorchModel(network, local_optimizer_create=sgd, central_optimizer=averaged),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=work.lr,
            local_batch_size=work.batch_size,
        ),
        callbacks=[Rounds(work)],
    )


if __name__ == "__main__":
    main()
