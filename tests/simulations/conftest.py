"""Fixtures of the simulations' tests."""

import pytest

from server.record import RunFolder
from server.state import load_state
from simulations.local_engine import run_local


@pytest.fixture
def run(tmp_path):
    """Runs a recipe in a folder of its own; the folder and the state at the end."""

    def go(recipe, name="run"):
        section = recipe.run.model_copy(update={"dir": str(tmp_path / name)})
        recipe = recipe.model_copy(update={"run": section})
        folder = RunFolder(tmp_path / name)
        folder.create(recipe, {}, [])
        run_local(recipe, lambda _row: None)
        return folder, load_state(folder.checkpoints, recipe.model, recipe.train.travelling())

    return go
