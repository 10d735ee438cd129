"""Simulators on the same work, in turns: seconds, memory, accuracy and start-up of ours and others.

Every arm trains a dense ResNet-20 from the same first values on the same shards, and is a process
of its own; the arms take turns, and ratios are within a turn. The peers' environments are made at
the first call. A peer that does not install or run is named with the reason. What is measured with
a number of clients takes the place of what was measured before with that number. Example:

    python -m simulations.studies.peers --data cifar10/ --copy "JPEG copy of CIFAR-10"
"""

import argparse
import json
import sys
import tempfile
import time
from operator import itemgetter
from pathlib import Path
from typing import Any

from server.checkpoints import replace_file
from simulations import command
from simulations.bench.part import SPEED
from simulations.machine import machine
from simulations.studies.arguments import positive
from simulations.studies.pages import fill
from simulations.studies.peers.arms import ARMS, measure
from simulations.studies.peers.environments import (
    Environment,
    PeerError,
    interpreter_of,
    torch_alone,
)
from simulations.studies.peers.tables import table
from simulations.studies.peers.work import Asked, write_work

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    options = _options()
    if options.data is not None:
        try:
            content = measured(options)
        except ValueError as error:  # of the data or the recipe
            sys.exit(f"peers: {error}")
        keep(content)
    tables = [table(content) for content in kept()]
    if not tables:
        sys.exit("peers: no results yet; name the images with --data")
    print("\n\n".join(tables))
    fill({"peers": "\n\n".join(tables)}, SPEED)


def kept() -> list[dict[str, Any]]:
    """What was measured, by the number of clients."""
    contents = (json.loads(path.read_text()) for path in RESULTS.glob("*.json"))
    return sorted(contents, key=itemgetter("clients"))


def keep(content: dict[str, Any]) -> None:
    """Write what was measured."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{content['clients']}-clients.json"
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode())


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is kept, of arms measured in turns."""
    asked = Asked(
        data=options.data, rounds=options.rounds, clients=options.clients, images=options.images
    )
    folder: Path = options.envs.expanduser().absolute()
    with tempfile.TemporaryDirectory(prefix="peers-work-") as place:
        recipe, images = write_work(Path(place), asked)
        failed: dict[str, str] = {}
        environments = _environments(options.arms, folder, failed)
        turns: list[dict[str, Any]] = []
        for turn in range(1, options.turns + 1):
            turns.append({})
            for arm in options.arms:
                if arm in failed:
                    continue
                try:
                    turns[-1][arm] = measure(arm, Path(place), recipe, folder).row()
                except PeerError as error:
                    failed[arm] = str(error)
                said = failed.get(arm) or json.dumps(turns[-1][arm])
                print(f"turn {turn}, {arm}: {said}", file=sys.stderr, flush=True)
    return {
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "data": options.copy or ("digits" if options.data == "digits" else "CIFAR-10"),
        "work": recipe.model_dump(mode="json", include={"train", "model"}),
        "clients": recipe.data.clients,
        **images,
        "environments": environments,
        "turns": turns,
        "failed": failed,
    }


def _environments(arms: list[str], folder: Path, failed: dict[str, str]) -> dict[str, Any]:
    """Versions and memory of torch alone in each environment that the arms need, by its name.

    Arms of one that cannot be made are put down as ``failed``.
    """
    found: dict[str, Any] = {}
    needed: dict[str, Environment] = {e.name: e for e in (ARMS[arm].environment for arm in arms)}
    for name, environment in needed.items():
        try:
            python = interpreter_of(environment, folder)
            found[name] = {"packages": environment.packages, **torch_alone(python)}
        except PeerError as error:
            print(f"peers: {error}", file=sys.stderr, flush=True)
            failed.update({a: str(error) for a in arms if ARMS[a].environment is environment})
    return found


def _options() -> argparse.Namespace:
    parser = command.parser("simulations.studies.peers", __doc__)
    add = parser.add_argument
    add("--data", metavar="DIR", help="CIFAR-10, or digits; none: only the table")
    add("--copy", help="which copy of the data this is; none: CIFAR-10, or digits")
    add("--rounds", type=positive, default=3)
    add("--clients", type=positive, default=10)
    add("--images", type=positive, help="train on the first so many, test on a fifth as many")
    add("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), metavar="ARM",
        help=", ".join(ARMS))  # fmt: skip
    add("--turns", type=positive, default=1)
    add("--envs", type=Path, default=Path("~/.cache/csg-fl/peers"), metavar="DIR",
        help="where the peers' environments are")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    command.run(main)
