"""Sending messages and waiting for what comes back."""

import time
from collections.abc import Iterable

from flwr.app import Message
from flwr.serverapp import Grid

_POLL_S = 0.5


def exchange(grid: Grid, messages: Iterable[Message], timeout: float) -> list[Message]:
    """Send messages, and gather replies until all are there or ``timeout`` seconds are over.

    Flower's own ``send_and_receive`` looks every 3 s, by which a client's next look, every 3 s too,
    often comes too early.
    """
    waiting = {name for name in grid.push_messages(messages) if name}  # None: was not taken
    until = time.monotonic() + timeout
    replies: list[Message] = []
    while True:
        found = list(grid.pull_messages(waiting))
        replies += found
        waiting -= {reply.metadata.reply_to_message_id for reply in found}
        left = until - time.monotonic()
        if not waiting or left <= 0:
            return replies
        time.sleep(min(_POLL_S, left))
