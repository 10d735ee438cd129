"""The ServerApp, the same in simulation and deployment."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from csg_core import build, manifest, pack
from federation.code import check_code
from federation.devices import device_of
from federation.messages import RECIPE
from federation.recipe import Recipe, RecipeError
from federation.sources import load_images
from server.logs import LogFile, logged
from server.outcome import RunError
from server.record import RunFolder
from server.rounds import Rounds
from server.rows import RoundRow
from server.signals import terminate_as_interrupt, undisturbed
from server.start import started
from server.strategy import CsgStrategy
from server.summary import summary_of
from server.wire import server_interface

_log = logging.getLogger(__name__)
LOCK_S = 60.0  # given to a server side of before, which has lost its SuperLink, to end


def make_app(on_round: Callable[[RoundRow], None] | None = None) -> ServerApp:
    """A ServerApp that runs the recipe in its run config, JSON under ``recipe``.

    ``run.dir`` of the recipe is the run's folder; if it holds checkpoints, the run goes on from
    the newest. ``on_round`` is told of every row as it is recorded.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        check_code(context.run_config)
        # brings half of the SuperLink along, which serve does without
        from server.grid import guarded

        recipe = Recipe.model_validate_json(str(context.run_config[RECIPE]))
        grid = guarded(grid, most_update_bytes(recipe))
        try:
            with _logged(recipe):
                serve(recipe, grid, on_round or _log_row)
        except KeyboardInterrupt as error:  # so that Flower is told at once that the run has ended
            raise RunError("interrupted") from error

    return app


def serve(recipe: Recipe, grid: Grid, on_round: Callable[[RoundRow], None]) -> None:
    """Run a recipe to its end over ``grid``, and write the summary however it ends.

    Raises:
        RunError: if the quorum is missed.
        CheckpointError: if the disk does not take the record or a checkpoint, or the first model is
            to be taken from a file that does not hold it.
        DataError: if the test images cannot be used.
        RunFolderError: if another process runs this run, or its record cannot be read or written.
    """
    if recipe.run.dir is None:
        raise RecipeError("run.dir is not set; name the folder of the run")
    folder = RunFolder(Path(recipe.run.dir))
    locked = folder.locked(LOCK_S if recipe.run.engine == "flower" else 0.0)
    with locked, terminate_as_interrupt():
        folder.begin()
        outcome = "completed"
        try:
            test = load_images(recipe.data.name, recipe.data.dir, "test")
            rounds = Rounds(recipe, grid, folder, test)
            rounds.resume()
            rounds.run(on_round)
        except (KeyboardInterrupt, SystemExit):  # the latter is Flower's, when a run is stopped
            outcome = "interrupted"
            raise
        except (ValueError, RunError) as error:
            outcome = f"stopped: {error}"
            raise
        except BaseException as error:
            outcome = f"failed: {type(error).__name__}: {error}"
            raise
        finally:
            # Flower sends a SIGINT of its own when the process that began this one is gone
            with undisturbed():
                _conclude(recipe, folder, outcome)


def _conclude(recipe: Recipe, folder: RunFolder, outcome: str) -> None:
    try:
        rows = folder.rows()
        if outcome == "interrupted":
            outcome += f" after round {rows[-1].round if rows else 0}"
        folder.write_summary(summary_of(rows, outcome, dense_twin_bytes(recipe)))
    except (OSError, ValueError) as error:
        _log.warning("%s: no summary could be written (%s)", folder.path, error)


def check(recipe: Recipe) -> None:
    """Find out before anything is written whether a server could run this recipe here.

    Raises:
        ValueError: naming the value that cannot be.
    """
    device_of(recipe)
    if recipe.run.superlink is None:
        server_interface(recipe)
    model, groups = build(recipe.model), recipe.train.travelling()
    found, first = manifest(model, groups), pack(model, groups)
    CsgStrategy(recipe, found, first, start=started(recipe))


def dense_twin_bytes(recipe: Recipe) -> tuple[int, int]:
    """Payload bytes of one update and of one model of the recipe's dense twin."""
    twin = recipe.dense_twin()
    return twin.wire.payload_bytes(manifest(build(twin.model), twin.train.travelling()).parts)


def most_update_bytes(recipe: Recipe) -> int:
    """The most bytes of a client's update: of longer ones, nothing is read."""
    parts = manifest(build(recipe.model), recipe.train.travelling()).parts
    return recipe.wire.most_update_bytes(parts)


def _logged(recipe: Recipe) -> AbstractContextManager[None]:
    """What the server logs goes to the run's log: Flower throws the output of apps away."""
    if recipe.run.dir is None:
        return nullcontext()
    log = RunFolder(Path(recipe.run.dir)).log
    return logged(LogFile(log, delay=True), "server")


def _log_row(row: RoundRow) -> None:
    _log.info("round %d: test accuracy %s", row.round, row.test_accuracy)


app = make_app()
