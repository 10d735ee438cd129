"""What crossed network interfaces in a run, against its payload, for the report."""

from collections import defaultdict
from typing import Any

from simulations.curves import RunData
from simulations.progress import interface_label


def wire_rows(run: RunData) -> list[dict[str, Any]]:
    """A row for the server and for each client, over the rounds that were measured there."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in run.rows:
        found["server"].append(
            {
                "wire_bytes_up": row.wire_bytes_up,
                "wire_bytes_down": row.wire_bytes_down,
                "interface": row.interface,
                "interface_shared": row.interface_shared,
                "payload": row.payload_bytes_up + row.payload_bytes_down,
            }
        )
    clients = [part for row in run.rows for part in row.contributions if "interface" in part]
    for part in sorted(clients, key=lambda part: int(part["partition"])):
        payload = part["payload_bytes_up"] + part["payload_bytes_down"]
        found[f"client {part['partition']}"].append({**part, "payload": payload})
    return [_sum(run.name, at, parts) for at, parts in found.items() if _measured(parts)]


def _measured(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [part for part in parts if None not in (part["wire_bytes_up"], part["wire_bytes_down"])]


def _sum(run: str, at: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    measured = _measured(parts)
    up, down, payload = (
        sum(part[key] for part in measured)
        for key in ("wire_bytes_up", "wire_bytes_down", "payload")
    )
    last = measured[-1]
    return {
        "run": run,
        "at": at,
        "interface": interface_label(last["interface"], last["interface_shared"]),
        "rounds": len(measured),
        "up": up / 1e6,
        "down": down / 1e6,
        "over": (up + down - payload) / payload if payload else None,
    }
