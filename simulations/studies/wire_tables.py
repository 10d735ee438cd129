"""The tables of the wire study, and the page that shows them."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from simulations.pages import DOCS

PAGE = DOCS / "wire.md"
RESULTS = Path(__file__).parent / "wire"
FILE = RESULTS / "resnet56.json"  # without a slow link
_TRACED = ("plain Flower", "csg s=12 d=72")  # whose requests are shown
_REQUEST = ("up", "down", "packets", "http", "body")
_PHASES = ("push", "wait", "pull", "work")

Results = Mapping[str, Mapping[str, Any]]


def tables(content: Mapping[str, Any], *, link: bool) -> dict[str, str]:
    """Markdown tables of a file of results, by the names that the page has for them."""
    results = content["results"]
    machines = [found.get("machine") or content["machine"] for found in results.values()]
    on = " and ".join(dict.fromkeys(f"{m['cores']} cores of {m['cpu']}" for m in machines))
    counted = sorted({found["rounds"] - 1 for found in results.values()})  # without the first
    rounds = " or ".join(map(str, counted))
    dates = sorted({found["date"] for found in results.values()})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    where = f"Means of {rounds} rounds; {on}, {when}."
    if link:
        return {"slow": seconds_table(results), "slow-where": where}
    traced = [f"{name}:\n\n{requests_table(results[name])}" for name in _TRACED if name in results]
    return {
        "bytes": bytes_table(results),
        "bytes-where": where,
        "requests": "\n\n".join(traced),
        "seconds": seconds_table(results),
    }


def interface_kilobytes(payload: float) -> str:
    """What a payload of a client and round, both ways, bytes, comes to at the interface, in kB.

    By a straight line through the arms over HTTP/2 with short rounds, of least squares of relative
    errors; a long round has some polls more. A smaller payload than any of these has a "≈" before.
    """
    slope, intercept, least = _line()
    about = "≈ " if payload < least else ""
    return f"{about}{(slope * payload + intercept) / 1e3:,.1f}"


@cache
def _line() -> tuple[float, float, float]:
    """Slope, intercept and least payload of the arms, bytes."""
    results = json.loads(FILE.read_text())["results"].values()
    deployed = [
        found
        for found in results
        if found["arm"]["over"] == "HTTP/2" and not found["arm"]["images"]
    ]
    payloads = np.array([found["payload_up"] + found["payload_down"] for found in deployed])
    sent = np.array([found["client_wire_up"] + found["wire_down"] for found in deployed])
    slope, intercept = np.polyfit(payloads, sent, 1, w=1 / sent)
    return float(slope), float(intercept), float(payloads.min())


def bytes_table(results: Results) -> str:
    """kB per client and round, and how many times fewer than plain Flower, with TLS or without.

    Both ways together are counted where they were sent: a receiver that merges segments counts
    them without their Ethernet headers.
    """
    whole = {name: found["client_wire_up"] + found["wire_down"] for name, found in results.items()}
    lines = ["| arm | payload: kB up + down | server: kB up | down | clients: kB up | down "
             "| sent, both | over the payload | times fewer |",
             "| --- | --: | --: | --: | --: | --: | --: | --: | --: |"]  # fmt: skip
    for name, found in results.items():
        over = kilobytes = ""
        if "payload_up" in found:
            payload = found["payload_up"] + found["payload_down"]
            kilobytes = f"{found['payload_up'] / 1e3:.1f} + {found['payload_down'] / 1e3:.1f}"
            more = whole[name] - payload
            over = f"{more / 1e3:.1f} kB, {100 * more / payload:.1f} %"
        secure = found["arm"]["over"] != "HTTP/1.1"
        plain = whole.get("plain Flower, TLS" if secure else "plain Flower")
        fewer = f"{plain / whole[name]:.1f}" if plain else ""
        ways = ("wire_up", "wire_down", "client_wire_up", "client_wire_down")
        wire = " | ".join(f"{found[way] / 1e3:.1f}" for way in ways)
        lines.append(
            f"| {name} | {kilobytes} | {wire} | {whole[name] / 1e3:.1f} | {over} | {fewer} |"
        )
    return "\n".join(lines)


def seconds_table(results: Results) -> str:
    """Seconds of a round, and of it, as a client sees it, where they go."""
    lines = ["| arm | s a round | push | wait | pull | work | of it training |",
             "| --- | --: | --: | --: | --: | --: | --: |"]  # fmt: skip
    for name, found in results.items():
        phases = found["round"].get("seconds", {})
        seconds = [found["seconds"], *map(phases.get, _PHASES), found.get("training")]
        cells = ["" if cell is None else f"{cell:.1f}" for cell in seconds]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def requests_table(found: Mapping[str, Any]) -> str:
    """What a client's round consists of, bytes."""
    lines = ["| request | a round | bytes up | down | packets | HTTP headers | body |",
             "| --- | --: | --: | --: | --: | --: | --: |"]  # fmt: skip
    rows = dict(found["round"]["requests"])
    rows["all"] = {key: sum(row[key] for row in rows.values()) for key in ("count", *_REQUEST)}
    for name, row in rows.items():
        cells = [f"{row['count']:.1f}", *(f"{row[key]:,.0f}" for key in _REQUEST)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
