"""What a run came to: its best round, and ``summary.json``."""

from dataclasses import dataclass
from typing import Any

from server.rows import RoundRow


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluated round so far."""

    round: int
    accuracy: float


def best_of(rows: list[RoundRow], found: Best | None = None) -> Best | None:
    """The row of the highest accuracy, the first one of equals; ``found`` came before them."""
    for row in rows:
        accuracy = row.test_accuracy
        if accuracy is not None and (found is None or accuracy > found.accuracy):
            found = Best(row.round, accuracy)
    return found


def summary_of(rows: list[RoundRow], outcome: str, twin: tuple[int, int]) -> dict[str, Any]:
    """``summary.json``: the outcome, accuracies, and bytes against the dense twin's.

    ``twin`` are the bytes of one update and of one model of the dense twin; it would have exchanged
    as many of them.
    """
    best = best_of(rows)
    evaluated = [row for row in rows if row.test_accuracy is not None]
    up = sum(row.payload_bytes_up for row in rows)
    down = sum(row.payload_bytes_down for row in rows)
    wire = [bytes_ for row in rows for bytes_ in (row.wire_bytes_up, row.wire_bytes_down)]
    twin_bytes = sum(row.updates * twin[0] + row.models * twin[1] for row in rows)
    return {
        "outcome": outcome,
        "rounds": len(rows),
        "accuracy": evaluated[-1].test_accuracy if evaluated else None,
        "accuracy_round": evaluated[-1].round if evaluated else None,
        "best_accuracy": best.accuracy if best else None,
        "best_round": best.round if best else None,
        "payload_bytes_up": up,
        "payload_bytes_down": down,
        "payload_bytes": up + down,
        "dense_twin_payload_bytes": twin_bytes,
        "ratio_to_dense": twin_bytes / (up + down) if up + down else None,
        "wire_bytes": sum(wire) if rows and None not in wire else None,
        "interface": rows[-1].interface if rows else None,
        "interface_shared": rows[-1].interface_shared if rows else None,
        "failures": sum(row.failures for row in rows),
        "seconds": sum(row.seconds for row in rows),
    }
