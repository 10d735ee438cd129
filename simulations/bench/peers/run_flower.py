"""Flower on Ray with a plain PyTorch client: FedAvg of the state_dict, as in its quickstart.

By ``run_simulation``, which does with fewer processes, and so less memory and a shorter start, than
``flwr run`` with its SuperLink. Arguments: the folder of the work, CPUs of a client, and
``--channels-last`` and ``--bf16`` for a client whose user knows of them.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from simulations.bench.peers.plain import Work, accuracy, report, train


class Strict(FedAvg):
    """Ends where FedAvg would go on without clients that failed."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        replies = list(replies)
        failed = [reply.error for reply in replies if reply.has_error()]
        if failed:
            raise RuntimeError(f"{len(failed)} clients failed: {failed[0]}")
        return super().aggregate_train(server_round, replies)


def client_app(work: Work, **how: bool) -> ClientApp:
    """Trains on the shard of the partition that it is called for; ``how`` is for ``train``."""
    app = ClientApp()

    @app.train()
    def fit(message: Message, context: Context) -> Message:
        network = work.network()
        record = message.content["arrays"]
        assert isinstance(record, ArrayRecord)
        network.load_state_dict(record.to_torch_state_dict())
        client = int(context.node_config["partition-id"])
        config = message.content["config"]
        assert isinstance(config, ConfigRecord)
        turn = work.clients * int(config["server-round"]) + client  # type: ignore[arg-type]
        torch.manual_seed(1_000_000 * work.seed + turn)
        train(network, work.loader(client), work.optimizer(network), **how)
        metrics = MetricRecord({"num-examples": len(work.shard(client))})
        content = RecordDict({"arrays": ArrayRecord(network.state_dict()), "metrics": metrics})
        return Message(content=content, reply_to=message)

    return app


def server_app(work: Work) -> ServerApp:
    """Federated averaging over all clients, evaluated on the server after each round."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        network, test = work.network(), work.test_loader()
        began = 0.0

        def evaluate(round_: int, arrays: ArrayRecord) -> MetricRecord | None:
            nonlocal began
            if round_ == 0:  # the first values, before the first round
                began = time.perf_counter()
                return None
            network.load_state_dict(arrays.to_torch_state_dict())
            found = accuracy(network, test)
            now = time.perf_counter()
            report(round_, now - began, found)
            began = now
            return MetricRecord({"accuracy": found})

        everyone = work.clients
        strategy = Strict(
            fraction_evaluate=0.0, min_train_nodes=everyone, min_available_nodes=everyone
        )
        strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(network.state_dict()),
            num_rounds=work.rounds,
            evaluate_fn=evaluate,
        )

    return app


def main() -> None:
    work, cpus = Work.of(Path(sys.argv[1])), float(sys.argv[2])
    run_simulation(
        server_app=server_app(work),
        client_app=client_app(
            work, channels_last="--channels-last" in sys.argv, bf16="--bf16" in sys.argv
        ),
        num_supernodes=work.clients,
        backend_config={"client_resources": {"num_cpus": cpus, "num_gpus": 0.0}},
    )


if __name__ == "__main__":
    main()
