"""Clients as the strategy meets them: a Grid that lists them, and what they answer."""

import numpy as np
from flwr.app import Metadata
from flwr.app.message import make_message
from flwr.proto.node_pb2 import NodeInfo

from csg_core.payload import encode
from federation.messages import TrainReport, reply

NODES = (11, 12, 13)


class Nodes:
    """All that the strategy asks of a Grid; ``since`` is when nodes connected."""

    def __init__(self, there=NODES, since=None):
        self._there, self._since = there, since or {}

    def get_nodes(self):
        return [
            NodeInfo(node_id=node, last_activated_at=self._since.get(node, "once"))
            for node in self._there
        ]

    def get_node_ids(self):
        return self._there


def message_of(node, content=None, error=None):
    about = Metadata(
        run_id=1,
        message_id="",
        src_node_id=node,
        dst_node_id=1,
        group_id="1",
        reply_to_message_id="x",
        created_at=1.0,
        ttl=9.0,
        message_type="train",
    )
    return make_message(about, content=content, error=error)


def honest(strategy, partition, value=0.5, round_=1, examples=10):
    """A client's update of the same value everywhere."""
    wire, parts = strategy.recipe.wire, strategy.manifest.parts
    codec = wire.update_codec(parts, round_)
    update = np.full(strategy.manifest.size, value, np.float32)
    label = strategy.downlink.update_label(round_)
    return reply_of(encode(update, label, codec, np.random.default_rng(0)), partition, examples)


def reply_of(payload, partition, examples=10):
    return reply(payload, TrainReport(partition=partition, examples=examples, train_loss=1.0,
                                      loss_before=1.0, loss_after=1.0, seconds=1.0))  # fmt: skip
