"""BlazeFL: its FedAvg handler and its trainers, one client after another or in a pool of processes.

Its trainers' SGD has no momentum, so that both are given an optimizer of our own. Argument: the
folder of the work; ``--processes`` for the pool, as large as torch has threads, of which each
process has one.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from blazefl.contrib import (
    FedAvgBaseClientTrainer,
    FedAvgBaseServerHandler,
    FedAvgPartitionType,
    FedAvgProcessPoolClientTrainer,
)
from blazefl.contrib.fedavg import FedAvgProcessPoolUplinkPackage
from blazefl.core import (
    IPCMode,
    ModelSelector,
    PartitionedDataset,
    SHMHandle,
    deserialize_model,
    serialize_model,
)
from blazefl.reproducibility import setup_reproducibility
from torch.utils.data import Dataset

from simulations.bench.peers.plain import Work, report, train

_NETWORK = "resnet20"


class Networks(ModelSelector):
    """The one network that there is."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def select_model(self, model_name: str) -> torch.nn.Module:
        del model_name
        return self.work.network()


class Shards(PartitionedDataset):
    """The clients' images and the test images."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def get_dataset(self, type_: str, cid: int | None) -> Dataset[Any]:
        if type_ == FedAvgPartitionType.TEST or cid is None:
            return self.work.test()
        return self.work.shard(cid)

    def set_dataset(self, type_: str, cid: int | None, dataset: Dataset[Any]) -> None:
        """Nothing changes in a round."""

    def get_dataloader(
        self,
        type_: str,
        cid: int | None,
        batch_size: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Any:
        del batch_size
        if type_ == FedAvgPartitionType.TEST or cid is None:
            return self.work.test_loader()
        return self.work.loader(cid, generator)


class OneByOne(FedAvgBaseClientTrainer):
    """Its trainer in one process; every client's momentum begins at zero."""

    def train(self, model_parameters: torch.Tensor, train_loader: Any, cid: int) -> Any:
        self.optimizer = self.dataset.work.optimizer(self.model)
        return super().train(model_parameters, train_loader, cid)


class Pool(FedAvgProcessPoolClientTrainer):
    """Its trainer in processes that it starts for each round."""

    @staticmethod
    def worker(
        config: Any, payload: Any, device: str, stop_event: Any, *, shm_buffer: Any = None
    ) -> Any:
        del device, stop_event
        work: Work = config.dataset.work
        torch.set_num_threads(1)
        torch.manual_seed(config.dataset.work.clients * config.seed + config.cid)
        network = config.model_selector.select_model(config.model_name)
        deserialize_model(network, payload.model_parameters)
        loader = work.loader(config.cid)
        train(network, loader, work.optimizer(network))
        shm_buffer.model_parameters.copy_(serialize_model(network))
        return FedAvgProcessPoolUplinkPackage(config.cid, SHMHandle(), len(work.shard(config.cid)))


def main() -> None:
    work = Work.of(Path(sys.argv[1]))
    mp.set_start_method("spawn")  # as in its example
    setup_reproducibility(work.seed)
    common = {"model_selector": Networks(work), "model_name": _NETWORK, "dataset": Shards(work)}
    common |= {"device": "cpu", "num_clients": work.clients, "seed": work.seed}
    local = {"epochs": 1, "batch_size": work.batch_size, "lr": work.lr}
    handler = FedAvgBaseServerHandler(
        global_round=work.rounds, sample_ratio=1.0, batch_size=work.batch_size, **common
    )
    with tempfile.TemporaryDirectory() as scratch:
        trainer: Any
        if "--processes" in sys.argv:
            trainer = Pool(
                share_dir=Path(scratch) / "share",
                state_dir=Path(scratch) / "state",
                num_parallels=torch.get_num_threads(),
                ipc_mode=IPCMode.SHARED_MEMORY,
                **local,
                **common,
            )
        else:
            trainer = OneByOne(**local, **common)
        rounds(handler, trainer)


def rounds(handler: Any, trainer: Any) -> None:
    """Its pipeline, as its example writes it."""
    while not handler.if_stop():
        began = time.perf_counter()
        trainer.local_process(handler.downlink_package(), handler.sample_clients())
        for package in trainer.uplink_package():
            handler.load(package)
        found = handler.get_summary()["server_acc"]
        report(handler.round, time.perf_counter() - began, found)


if __name__ == "__main__":
    main()
