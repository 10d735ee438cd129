"""What came of the clients of a round."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import cast

from federation.messages import TrainReport
from server.rows import Contribution
from server.wire import ClientBytes

_log = logging.getLogger(__name__)
_SHOWN = 300  # characters of a reason


class RunError(RuntimeError):
    """A run that cannot go on; the message says in which round and why."""


@dataclass(slots=True)
class RoundOutcome:
    """What came of the clients of a round; bytes are sums of payloads."""

    asked: int
    bytes_down: int = 0
    bytes_up: int = 0
    models: int = 0  # payloads sent to clients, and
    updates: int = 0  # payloads that came back
    reports: dict[int, TrainReport] = field(default_factory=dict)  # by node, as they were taken in
    bytes: dict[int, ClientBytes] = field(default_factory=dict)  # of every node that was asked
    failures: dict[str, str] = field(default_factory=dict)  # client and reason

    def sent(self, payloads: Mapping[int, int]) -> None:
        """Count payloads to nodes, in bytes."""
        for node, size in payloads.items():
            self.bytes.setdefault(node, ClientBytes()).payload_bytes_down += size
        self.bytes_down += sum(payloads.values())
        self.models += len(payloads)

    def contributions(self) -> list[Contribution]:
        """By client, what it reports of its training, and its bytes."""
        return [
            cast(Contribution, asdict(report) | asdict(self.bytes[node]))
            for node, report in self.reports.items()
        ]

    def fail(self, client: str, reason: str) -> None:
        """Note a failure; what a stranger says of it is cut and can steer no terminal."""
        reason = "".join(c if c.isprintable() else "?" for c in reason[:_SHOWN])
        before = self.failures.get(client)
        self.failures[client] = f"{before}; {reason}" if before else reason
        _log.warning("%s failed: %s", client, reason)

    def check_quorum(self, round_: int, quorum: int) -> None:
        """Stop a run whose round has too few good updates.

        Raises:
            RunError: naming the first failures.
        """
        good = len(self.reports)
        if good >= quorum:
            return
        reasons = "; ".join(f"{who} {why}" for who, why in list(self.failures.items())[:3])
        more = len(self.failures) - 3
        raise RunError(
            f"round {round_}: {good} of {self.asked} clients answered usefully, the quorum is "
            f"{quorum} (server.min_clients): {reasons}" + (f"; and {more} more" if more > 0 else "")
        )
