"""Replies are gathered as they come, and what does not come is not waited for."""

import time

import pytest
from flwr.app import ConfigRecord, Message
from flwr.clientapp import ClientApp

from federation.messages import instruction
from server.replies import exchange
from simulations.local_engine import LocalGrid

APP = ClientApp()


@APP.train()
def train(message, context):
    return Message(message.content, reply_to=message)


class LateGrid(LocalGrid):
    """One more reply each time it is asked, in the end all but ``lost`` of them."""

    lost = 0

    def push_messages(self, messages):
        self.names = []
        for number, message in enumerate(messages):
            message.metadata.__dict__["_message_id"] = f"m{number}"
            self._pushed[f"m{number}"] = message
            self.names.append(f"m{number}")
        return self.names

    def pull_messages(self, message_ids):
        due = [name for name in self.names if name in message_ids][:1]
        if len(message_ids) <= self.lost:
            return []
        return list(super().pull_messages(due))


@pytest.mark.parametrize("lost", [0, 1])
def test_replies_come_one_by_one_until_all_are_there_or_time_is_over(tiny, lost):
    grid = LateGrid(tiny(), APP)
    grid.lost = lost
    messages = [
        Message(instruction(b"x", 1, ConfigRecord()), dst_node_id=node, message_type="train")
        for node in range(3)
    ]
    began = time.monotonic()
    replies = exchange(grid, messages, 2.0)
    seconds = time.monotonic() - began
    assert [reply.metadata.src_node_id for reply in replies] == list(range(3 - lost))
    assert seconds >= 2.0 if lost else 1.0 <= seconds < 2.0
