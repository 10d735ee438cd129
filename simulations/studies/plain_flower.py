"""Flower's quickstart way of federating a network: every tensor of the state_dict, by FedAvg.

In place of training, noise is added: the bytes are the same, since nothing is compressed (arrays
that stay equal would not be sent again). Server and clients note in files what their interfaces
have counted, after each round and before each reply.
"""

import json
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from csg_core import dense_network
from federation.interface import interface_bytes

client, server = ClientApp(), ServerApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Send back what was received, changed."""
    config = context.run_config
    note = Path(str(config["record"])).with_name(f"noted-{context.node_config['partition-id']}")
    _note(note, str(config["interface"]))
    record = message.content["arrays"]
    assert isinstance(record, ArrayRecord)
    model = dense_network("resnet56")
    model.load_state_dict(record.to_torch_state_dict())
    for tensor in model.state_dict().values():
        noise = torch.randn(tensor.shape) * 1e-3 if tensor.is_floating_point() else torch.ones(())
        tensor += noise.to(tensor.dtype)
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """FedAvg over two clients, training only."""
    config = context.run_config
    path, interface = Path(str(config["record"])), str(config["interface"])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=2, min_available_nodes=2)

    def note(round_: int, arrays: ArrayRecord) -> MetricRecord:
        del arrays
        _note(path, interface)
        return MetricRecord({"round": round_})

    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(dense_network("resnet56").state_dict()),
        num_rounds=int(str(config["rounds"])),
        train_config=ConfigRecord(),
        evaluate_fn=note,
    )


def _note(path: Path, interface: str) -> None:
    """Append bytes received and sent, and the time."""
    with path.open("a") as file:
        file.write(json.dumps([*interface_bytes(interface), time.time()]) + "\n")
