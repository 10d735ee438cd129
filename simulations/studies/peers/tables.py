"""The table of what was measured side by side, and the sentences below it."""

import statistics
from typing import Any

from simulations.studies.peers.arms import ARMS, BASE

_AUTO, _FLOWER = "ours", ("flower-ray", "flower-ray-2")


def table(content: dict[str, Any]) -> str:
    """Markdown: medians over turns, ratios of rounds within a turn, and where it was measured."""
    lines = [
        "| arm | s per round | of ours, fp32 | start-up s | s in all | peak MB | torch alone MB "
        "| accuracy |",
        "| --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    lines += [_row(arm, content) for arm in ARMS if _all(arm, content)]
    return "\n".join([*lines, "", *_sentences(content)])


def ratio(arm: str, base: str, content: dict[str, Any]) -> float | None:
    """Seconds of a round of ``arm`` per second of one of ``base``: the median over turns."""
    both = [turn for turn in content["turns"] if arm in turn and base in turn]
    if not both:
        return None
    return float(statistics.median(turn[arm]["round"] / turn[base]["round"] for turn in both))


def _row(arm: str, content: dict[str, Any]) -> str:
    found = _all(arm, content)
    middle = {
        key: statistics.median(run[key] for run in found)
        for key in ("round", "wall", "peak_mb", "test_accuracy")
    }
    start_up = statistics.median(_start_up(run) for run in found)
    times = ratio(arm, BASE, content)
    alone = content["environments"][ARMS[arm].environment.name]["torch_alone_mb"]
    return (
        f"| {ARMS[arm].says} | {middle['round']:.2f} | {'' if times is None else f'{times:.2f}'} "
        f"| {start_up:.1f} | {middle['wall']:.1f} | {middle['peak_mb']:.0f} "
        f"| {alone:.0f} | {100 * middle['test_accuracy']:.2f} % |"
    )


def _start_up(run: dict[str, Any]) -> float:
    """Seconds to the end of the first round, beyond those of a later one."""
    return float(run["start_up"] + run["rounds"][0] - run["round"])


def _all(arm: str, content: dict[str, Any]) -> list[dict[str, Any]]:
    return [turn[arm] for turn in content["turns"] if arm in turn]


def _sentences(content: dict[str, Any]) -> list[str]:
    machine, train = content["machine"], content["work"]["train"]
    turns = len(content["turns"])
    versions = ", ".join(
        f"{e['packages'][-1] if e['packages'] else 'ours'} with torch {e['torch']}"
        for e in content["environments"].values()
    )
    lines = [
        f"{train['rounds']} rounds of {content['clients']} clients, {content['images']:,} images "
        f"of {content['data']}, {content['test_images']:,} to test on; {turns} "
        f"turn{'s' if turns > 1 else ''}; {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['threads']} threads, {content['date']}. {versions}."
    ]
    split = _of_precision_and_engine(content)
    lines += [split] if split else []
    lines += [f"Not measured: {ARMS[arm].says} ({why})." for arm, why in content["failed"].items()]
    return lines


def _of_precision_and_engine(content: dict[str, Any]) -> str:
    """How much of the distance to Flower is the engine, and how much precision."""
    flowers = [(times, arm) for arm in _FLOWER if (times := ratio(arm, BASE, content)) is not None]
    if not flowers:
        return ""
    times, arm = min(flowers)
    said = f"{ARMS[arm].says}, takes {times:.2f} times as long a round as {ARMS[BASE].says}"
    precision = ratio(BASE, _AUTO, content)
    if precision is None:
        return said + "."
    return (
        f"{said} (engine and client), which takes {precision:.2f} times as long as "
        f"{ARMS[_AUTO].says} (precision, where the processor has bf16; else these two are the same "
        "work, and what they differ by is chance)."
    )
