"""Simulators on the same work, in turns: seconds, memory, accuracy and start-up of ours and others.

Every arm trains a dense ResNet-20 from the same first values on the same shards, and is a process
of its own; the arms take turns, those that the goal is about more than one, and ratios are within a
turn. The peers' environments are made at the first call. A peer that does not install or run is
named with the reason.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from federation.cache import cache_folder
from simulations.bench.peers.arms import ARMS, BARE, FROM_FLOWER, run
from simulations.bench.peers.environments import Environment, interpreter_of, torch_alone
from simulations.bench.peers.tables import short_table, split, table
from simulations.bench.peers.work import Asked, write_work
from simulations.command import StudyError

NEEDS_IMAGES = True
_WORK = Asked(clients=10, images=4_000, rounds=3)
_AGAIN = (FROM_FLOWER[0], FROM_FLOWER[-1], BARE)  # in a second turn, too: the goal's


def measure(
    images: str | None, asked: Asked = _WORK, *, arms: Sequence[str] = tuple(ARMS), turns: int = 2
) -> dict[str, Any]:
    """What was asked for, environments, a row of each arm by turn, and why others have none.

    ``images`` is a folder of CIFAR-10, or ``digits``.

    Raises:
        ValueError: if the images cannot be used, or the work cannot be.
    """
    assert images is not None
    folder = (cache_folder() / "peers").absolute()
    with tempfile.TemporaryDirectory(prefix="peers-work-") as place:
        recipe, counts = write_work(Path(place), images, asked)
        environments, failed = _environments(arms, folder)
        found: list[dict[str, Any]] = []
        for turn in range(1, turns + 1):
            found.append({})
            for arm in arms:
                if arm in failed or (turn > 1 and arm not in _AGAIN):
                    continue
                try:
                    found[-1][arm] = run(arm, Path(place), recipe, folder).row()
                except StudyError as error:
                    failed[arm] = str(error)
                said = failed.get(arm) or json.dumps(found[-1][arm])
                print(f"turn {turn}, {arm}: {said}", file=sys.stderr, flush=True)
    return {
        "rounds": recipe.train.rounds,
        "clients": recipe.data.clients,
        **counts,
        "environments": environments,
        "turns": found,
        "failed": failed,
    }


def tables(found: Mapping[str, Any]) -> dict[str, str]:
    """Markdown: every arm, and what is said of it."""
    return {
        "peers": table(found),
        "peers-short": short_table(found),
        "peers-split": split(found),
    }


def _environments(arms: Sequence[str], folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Versions and memory of torch alone in each environment that the arms need, by its name.

    And why arms of one that cannot be made fail.
    """
    found: dict[str, Any] = {}
    failed: dict[str, str] = {}
    needed: dict[str, Environment] = {e.name: e for e in (ARMS[arm].environment for arm in arms)}
    with ThreadPoolExecutor(len(needed)) as pool:  # pip takes one core
        made = {name: pool.submit(interpreter_of, e, folder) for name, e in needed.items()}
    for name, environment in needed.items():
        try:
            python = made[name].result()
            found[name] = {"packages": environment.packages, **torch_alone(python)}
        except StudyError as error:
            print(f"peers: {error}", file=sys.stderr, flush=True)
            failed |= {arm: str(error) for arm in arms if ARMS[arm].environment is environment}
    return found, failed
