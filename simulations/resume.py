"""Go on with a run that was stopped, from its newest whole checkpoint."""

import argparse
import sys
from pathlib import Path

from server.record import RunFolder, RunFolderError
from simulations.run import check_engine, follow

HELP = "go on with a run that was stopped"
EXAMPLE = "csg resume runs/cifar10-resnet20-20261124-120000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--json", action="store_true", help="machine-readable answer")


def run(options: argparse.Namespace) -> int:
    folder = RunFolder(options.run.absolute())
    recipe = folder.recipe()
    rounds = len(folder.rows())
    if folder.summary().get("outcome") == "completed":
        if not rounds:
            raise RunFolderError(
                f"{options.run}: is complete, but rounds.jsonl is lost; bring it back"
            )
        if rounds >= recipe.train.rounds:
            raise RunFolderError(
                f"{options.run}: its {rounds} rounds are complete and csg report shows them; more "
                "rounds are trained if config.toml asks for them (train.rounds)"
            )
    check_engine(recipe)
    if folder.recipe_changed():
        print(
            f"csg resume: {options.run}/config.toml was changed since the run began; what follows "
            "is of the recipe as it is now",
            file=sys.stderr,
        )
    section = recipe.run.model_copy(update={"dir": str(folder.path)})
    return follow(
        recipe.model_copy(update={"run": section}), folder, "resume", as_json=options.json
    )
