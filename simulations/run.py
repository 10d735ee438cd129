"""Train a recipe federatedly on this machine, with the bytes of every round counted."""

import argparse
import hashlib
import itertools
import json
import logging
import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from federation.devices import device_of, precision_of
from federation.recipe import Recipe, RecipeError, recipe_of
from federation.recipe_file import refuse_elsewhere
from federation.shards import class_spread, shard_rows
from federation.sources import load_images
from server.app import LOCK_S, check
from server.checkpoints import CheckpointError
from server.outcome import RunError
from server.record import RunFolder, RunFolderError
from server.signals import terminate_as_interrupt
from simulations.clients import client_app
from simulations.local_engine import clients_at_once, run_local
from simulations.machine import environment
from simulations.progress import Progress, log_to
from simulations.recipe_names import add_recipe_options, recipe_from
from simulations.report import write_report

_log = logging.getLogger(__name__)

HELP = "federated training of a recipe"
EXAMPLE = "csg run cifar10-resnet20 --set data.dir=cifar10/ --set train.rounds=5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_options(parser)
    parser.add_argument("--json", action="store_true", help="machine-readable answer")


def run(options: argparse.Namespace) -> int:
    name, recipe = recipe_from(options)
    recipe = _resolved(deployed(recipe))
    check(recipe)
    check_engine(recipe)
    client_app(recipe.run.client_app)
    found = {"recipe": name, **environment(recipe)}
    if recipe.run.engine == "local":
        found["clients at once"] = clients_at_once(recipe)
    if recipe.server.start_from is not None:
        with Path(recipe.server.start_from).open("rb") as file:
            found["start_from sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    spread, left = _spread(recipe)
    if left:
        found["images left out"] = left
    recipe = _placed(name, recipe)
    folder = RunFolder(Path(str(recipe.run.dir)))
    folder.create(recipe, found, spread)
    return follow(recipe, folder, "run", as_json=options.json)


def follow(recipe: Recipe, folder: RunFolder, command: str, *, as_json: bool) -> int:
    """Run a recipe into its folder, from the newest checkpoint there, and show how it goes.

    ``command`` is named in messages.

    Returns:
        The exit status: 0 if the run was completed, 1 if it stopped, 130 if interrupted.
    """
    # tried before anything is started
    with folder.locked(LOCK_S if recipe.run.superlink else 0.0):
        pass
    progress = Progress(recipe, folder.rows(), sys.stderr if as_json else sys.stdout)
    progress.begin(folder)
    status, message = 0, ""
    with log_to(folder.log):
        if folder.recipe_changed():
            _log.warning("config.toml was changed since the run began")
        try:
            with terminate_as_interrupt():
                _engine(recipe, progress)
        except KeyboardInterrupt:
            status = 130
        except (RunError, CheckpointError) as error:
            status, message = 1, str(error)
        finally:
            progress.clear()
    if folder.rows():
        try:
            write_report([folder], folder.path / "report.html")
        except (OSError, ValueError) as error:
            status = status or int(isinstance(error, OSError))
            message = message or f"no report could be written ({error})"
    # a run that could not be resumed would not be the next time, either
    progress.end(folder, goes_on=command == "run" or progress.advanced or status == 130)
    if message:
        print(f"csg {command}: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"run": str(folder.path), **folder.summary()}))
    return status


def _spread(recipe: Recipe) -> tuple[list[list[int]], int]:
    """Images by client and class, and how many are no client's."""
    images = load_images(recipe.data.name, recipe.data.dir, "train")
    labels = images.labels.numpy()
    shards = shard_rows(recipe.data, labels, recipe.run.seed)
    counts: list[list[int]] = class_spread(shards, labels, images.classes).tolist()
    return counts, (recipe.data.images or len(images)) - sum(map(len, shards))


def _engine(recipe: Recipe, progress: Progress) -> None:
    if recipe.run.engine == "local":
        run_local(recipe, progress.round, progress.client)
        return
    from simulations.flower_engine import run_flower

    run_flower(recipe, progress.round)


def check_engine(recipe: Recipe) -> None:
    """Refuse a recipe whose engine cannot be started.

    Raises:
        RecipeError: if it needs Ray, which an extra brings, or a certificate that is not there.
    """
    ca = recipe.run.superlink_ca
    if ca is not None and not Path(ca).is_file():
        raise RecipeError(
            f"run.superlink_ca {ca}: no such file; name the certificate of the authority that the "
            "SuperLink's is signed by"
        )
    simulated = recipe.run.engine == "flower" and recipe.run.superlink is None
    if simulated and find_spec("ray") is None:
        raise RecipeError(
            "run.engine 'flower' simulates clients with Ray, which is not installed; install the "
            "extra csg-fl[ray], or set run.engine=local"
        )


def deployed(recipe: Recipe) -> Recipe:
    """The recipe on the SuperLink that ``$CSG_SUPERLINK`` names, unless it names one itself.

    ``$CSG_SUPERLINK_CA`` is the file of the certificate that proves it.

    Raises:
        RecipeError: if the recipe, or a value of it, is for this machine alone.
    """
    address = os.environ.get("CSG_SUPERLINK")
    if not address or recipe.run.superlink is not None:
        return recipe
    ca = os.environ.get("CSG_SUPERLINK_CA") or None
    place = {"engine": "flower", "superlink": address, "superlink_ca": ca}
    content = recipe.model_dump()
    origin = "$CSG_SUPERLINK"
    placed = recipe_of({**content, "run": {**content["run"], **place}}, origin)
    refuse_elsewhere(placed, origin)
    return placed


def _placed(name: str, recipe: Recipe) -> Recipe:
    """With the run's folder; one that is not named is made, so that no other run takes it."""
    named = recipe.run.dir
    place = Path(named) if named else _made(f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    section = recipe.run.model_copy(update={"dir": str(place.absolute())})
    return recipe.model_copy(update={"run": section})


def _resolved(recipe: Recipe) -> Recipe:
    """With the files and the arithmetic that the recipe leaves open."""
    data = None
    if recipe.data.name != "digits":
        found = recipe.data.dir or os.environ.get("CSG_DATA_DIR")
        data = str(Path(found).absolute()) if found else None
    files: dict[str, Any] = {}
    if recipe.run.superlink_ca is not None:
        files["superlink_ca"] = str(Path(recipe.run.superlink_ca).absolute())
    server: dict[str, Any] = {}
    if recipe.server.start_from is not None:
        server["start_from"] = str(Path(recipe.server.start_from).absolute())
    updates: dict[str, Any] = {
        "server": recipe.server.model_copy(update=server),
        "run": recipe.run.model_copy(update=files),
        "data": recipe.data.model_copy(update={"dir": data}),
    }
    if recipe.run.engine == "local":  # elsewhere, clients have machines of their own
        precision = {"precision": precision_of(recipe)}
        updates["train"] = recipe.train.model_copy(update=precision)
        updates["run"] = updates["run"].model_copy(update={"device": str(device_of(recipe))})
    return recipe.model_copy(update=updates)


def _made(name: str) -> Path:
    """A new folder in ``runs``, with a number if the name is taken."""
    for number in itertools.count(1):
        found = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            found.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise RunFolderError(f"{found}: cannot be made ({error.strerror})") from error
        return found
    raise AssertionError
