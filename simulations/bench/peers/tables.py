"""The table of what was measured side by side, and the sentences below it."""

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from simulations.bench.peers.arms import ARMS, BARE, BASE, FROM_FLOWER, STEPS

_OTHER_WORK = ("ours-csg", BARE)


def table(found: Mapping[str, Any]) -> str:
    """Markdown: medians over turns, ratios of rounds within a turn, and what they are of."""
    lines = [
        "| arm | s per round | of ours, fp32 | start-up s | s in all | peak MB | torch alone MB "
        "| accuracy |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    lines += [_row(arm, found) for arm in ARMS if _all(arm, found)]
    return "\n".join([*lines, "", *_sentences(found)])


def short_table(found: Mapping[str, Any]) -> str:
    """Markdown: seconds of a round and memory of every arm of one network, the fastest first."""
    lines = [
        "| simulator | s per round | times the fastest | peak MB |",
        "| --- | --: | --: | --: |",
    ]
    runs = {arm: _all(arm, found) for arm in ARMS if _all(arm, found) and arm not in _OTHER_WORK}
    middle = {arm: statistics.median(run["round"] for run in own) for arm, own in runs.items()}
    names = sorted(runs, key=lambda arm: middle[arm])
    for arm in names:
        peak = statistics.median(run["peak_mb"] for run in runs[arm])
        times = ratio(arm, names[0], found)
        lines.append(f"| {ARMS[arm].says} | {middle[arm]:.1f} "
                     f"| {'' if times is None else f'{times:.2f}'} | {peak:,.0f} |")  # fmt: skip
    return "\n".join(lines)


def ratio(arm: str, base: str, found: Mapping[str, Any]) -> float | None:
    """Seconds of a round of ``arm`` per second of one of ``base``: the median over turns."""
    return statistics.median(ratios) if (ratios := _ratios(arm, base, found)) else None


def _ratios(arm: str, base: str, found: Mapping[str, Any]) -> list[float]:
    """The same, of each turn that has both."""
    both = [turn for turn in found["turns"] if arm in turn and base in turn]
    return [turn[arm]["round"] / turn[base]["round"] for turn in both]


def _row(arm: str, found: Mapping[str, Any]) -> str:
    runs = _all(arm, found)
    middle = {
        key: statistics.median(run[key] for run in runs) for key in ("round", "wall", "peak_mb")
    }
    reached = [run["test_accuracy"] for run in runs if run["test_accuracy"] is not None]
    accuracy = f"{100 * statistics.median(reached):.2f} %" if reached else ""
    start_up = statistics.median(_start_up(run) for run in runs)
    times = ratio(arm, BASE, found)
    alone = found["environments"][ARMS[arm].environment.name]["torch_alone_mb"]
    return (
        f"| {ARMS[arm].says} | {middle['round']:.2f} | {'' if times is None else f'{times:.2f}'} "
        f"| {start_up:.1f} | {middle['wall']:.1f} | {middle['peak_mb']:.0f} "
        f"| {alone:.0f} | {accuracy} |"
    )


def _start_up(run: dict[str, Any]) -> float:
    """Seconds to the end of the first round, beyond those of a later one."""
    return float(run["begin"] + run["rounds"][0] - run["round"])


def _all(arm: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [turn[arm] for turn in found["turns"] if arm in turn]


def _sentences(found: Mapping[str, Any]) -> list[str]:
    arms, *later = (len(turn) for turn in found["turns"])
    turns = (
        f"; {later[0]} of {arms} arms {len(later) + 1} times, in turns, of which seconds are "
        "medians; ratios are within a turn"
        if later
        else ""
    )
    versions = ", ".join(
        f"{e['packages'][-1] if e['packages'] else 'ours'} with torch {e['torch']}"
        for e in found["environments"].values()
    )
    lines = [
        f"{found['rounds']} rounds of {found['clients']} clients, {found['images']:,} "
        f"images, {found['test_images']:,} to test on{turns}. {versions}."
    ]
    lines += [f"Not measured: {ARMS[arm].says} ({why})." for arm, why in found["failed"].items()]
    return lines


def split(found: Mapping[str, Any]) -> str:
    """What the distance to Flower is made of, step by step, and how near to bare steps ours is."""
    first, *_, last = FROM_FLOWER
    pairs = ((first, last), *pairwise(FROM_FLOWER), (last, BARE))
    of_pairs = [_ratios(*pair, found) for pair in pairs]
    whole, *steps, bare = (_in_turns(ratios) for ratios in of_pairs)
    if not whole or not all(steps):
        return ""
    # of the first turn alone, whose factors are not those of the median over turns
    turn = "in the first turn " if len(of_pairs[1]) < len(of_pairs[0]) else ""
    parts = [f"{name} {factor}" for name, factor in zip(STEPS, steps, strict=True)]
    rest = (
        f" The latter takes {bare} times as long as its bare steps, a process a core."
        if bare
        else ""
    )
    return (
        f"{ARMS[first].says}, takes {whole} times as long a round as {ARMS[last].says}: "
        f"{turn}{', '.join(parts)}.{rest}"
    )


def _in_turns(ratios: Sequence[float]) -> str:
    """The median, and every turn's where there are several."""
    of = f" ({', '.join(f'{ratio:.2f}' for ratio in ratios)})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}{of}" if ratios else ""
