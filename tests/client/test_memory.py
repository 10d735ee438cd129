"""What a client keeps survives its process, and is never taken for that of another run."""

import os
import time

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from client.memory import Memory, keep, recall
from csg_core.broadcast import Held
from federation.messages import STARTED

RESIDUAL = np.arange(5, dtype=np.float32)
MEMORY = Memory(residual=RESIDUAL, kept=2 * RESIDUAL, held=Held(3, RESIDUAL, (3 * RESIDUAL,)))


def _context(started="2026-01-01T00:00:00Z"):
    config = {STARTED: started}
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config)


@pytest.fixture
def deployed(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CSG_CACHE_DIR", str(tmp_path))

    def make(folder="runs/one"):
        run = {"engine": "flower", "superlink": "127.0.0.1:8000", "dir": folder}
        return tiny(run=run)

    return make


def test_a_context_gives_back_what_it_was_given(tiny):
    context = _context()
    keep(context, tiny(), 0, 1, MEMORY)
    found = recall(context, tiny(), 0, 2)
    np.testing.assert_array_equal(found.residual, RESIDUAL)
    np.testing.assert_array_equal(found.kept, 2 * RESIDUAL)
    assert (found.held.version, found.held.digest) == (3, MEMORY.held.digest)
    (before,) = found.held.before
    np.testing.assert_array_equal(before, 3 * RESIDUAL)


def test_a_new_process_takes_up_what_the_last_one_kept(deployed):
    keep(_context(), deployed(), 0, 4, MEMORY)
    found = recall(_context(), deployed(), 0, 5)
    np.testing.assert_array_equal(found.residual, RESIDUAL)
    np.testing.assert_array_equal(found.kept, 2 * RESIDUAL)
    assert found.held is None, "the server sends a whole model"


@pytest.mark.parametrize("round_", [4, 2], ids=["same round again", "resumed from before"])
@pytest.mark.parametrize("restarted", [False, True])
def test_what_was_left_out_is_sent_once_and_norms_are_never_lost(deployed, round_, restarted):
    context = _context()
    keep(context, deployed(), 0, 4, MEMORY)
    found = recall(_context() if restarted else context, deployed(), 0, round_)
    assert found.residual is None
    np.testing.assert_array_equal(found.kept, 2 * RESIDUAL)
    assert (found.held is None) == restarted


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("taken", [0, 3, 4])
def test_what_was_left_out_of_an_update_is_sent_if_that_was_taken(deployed, taken, restarted):
    context = _context()
    keep(context, deployed(), 0, 4, MEMORY)
    found = recall(_context() if restarted else context, deployed(), 0, 6, taken)
    assert (found.residual is None) == (taken != 4)
    np.testing.assert_array_equal(found.kept, 2 * RESIDUAL)


def test_a_run_that_is_made_longer_takes_up_what_was_kept(deployed):
    recipe = deployed()
    keep(_context(), recipe, 0, 4, MEMORY)
    train = recipe.train.model_copy(update={"rounds": recipe.train.rounds + 1})
    found = recall(_context(), recipe.model_copy(update={"train": train}), 0, 5)
    np.testing.assert_array_equal(found.residual, RESIDUAL)


def test_a_round_that_is_gone_through_again_begins_with_what_it_began_with(deployed):
    context, recipe = _context(), deployed()
    keep(context, recipe, 0, 4, Memory(residual=RESIDUAL))
    keep(context, recipe, 0, 5, Memory(residual=5 * RESIDUAL), recall(context, recipe, 0, 5, 4))
    np.testing.assert_array_equal(recall(_context(), recipe, 0, 5, 4).residual, RESIDUAL)


@pytest.mark.parametrize(("resumed", "owed"), [(3, None), (4, RESIDUAL), (5, 5 * RESIDUAL)])
def test_a_run_goes_on_from_what_a_client_owed_then_or_it_owes_nothing(deployed, resumed, owed):
    """Whose update the server took last is not known of a node that it sees for the first time."""
    context, recipe = _context(), deployed()
    keep(context, recipe, 0, 4, Memory(residual=RESIDUAL))
    keep(context, recipe, 0, 5, Memory(residual=5 * RESIDUAL), recall(context, recipe, 0, 5))
    for round_ in (resumed + 1, resumed + 3):  # in whichever it is asked next
        found = recall(_context(), recipe, 0, round_, resumed=resumed).residual
        assert (found is None) == (owed is None)
        np.testing.assert_array_equal(found, owed)


@pytest.mark.parametrize("restarted", [False, True])
def test_what_was_owed_before_updates_that_were_lost_is_owed_still(deployed, restarted):
    context, recipe = _context(), deployed()

    def recalled(round_, taken):
        return recall(_context() if restarted else context, recipe, 0, round_, taken)

    keep(context, recipe, 0, 4, Memory(residual=RESIDUAL))
    for round_ in (5, 6, 7):  # none of which the server takes
        before = recalled(round_, 4)
        np.testing.assert_array_equal(before.residual, RESIDUAL)
        keep(context, recipe, 0, round_, Memory(residual=round_ + RESIDUAL), before)
    np.testing.assert_array_equal(recalled(8, 7).residual, 7 + RESIDUAL)
    assert recalled(8, 6).residual is None
    keep(context, recipe, 0, 8, Memory(residual=8 + RESIDUAL), recalled(8, 6))
    assert recalled(9, 4).residual is None


def test_a_client_of_the_local_engine_keeps_one_array_of_what_it_owes(tiny):
    context = _context()
    keep(context, tiny(), 0, 1, Memory(residual=RESIDUAL))
    keep(context, tiny(), 0, 2, Memory(residual=RESIDUAL), recall(context, tiny(), 0, 2, 1))
    assert recall(context, tiny(), 0, 3, 1).residual is None
    assert list(context.state.array_records) == ["residual"]


@pytest.mark.parametrize(
    ("folder", "partition", "round_"),
    [("runs/one", 1, 5), ("runs/two", 0, 5)],
    ids=["another client", "another run"],
)
def test_nothing_is_taken_from_elsewhere(deployed, folder, partition, round_):
    keep(_context(), deployed(), 0, 4, MEMORY)
    assert recall(_context(), deployed(folder), partition, round_) == Memory()


@pytest.mark.parametrize("round_", [1, 5])
def test_a_run_begun_anew_in_the_same_folder_takes_nothing_of_the_one_before(deployed, round_):
    keep(_context(), deployed(), 0, 4, MEMORY)
    assert recall(_context("2026-01-02T00:00:00Z"), deployed(), 0, round_) == Memory()


def test_a_client_of_flowers_simulation_keeps_it_with_its_run(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CSG_CACHE_DIR", str(tmp_path / "cache"))

    def simulated(folder):
        return tiny(run={"engine": "flower", "dir": str(tmp_path / folder)})

    recipe = simulated("run")
    keep(_context(), recipe, 0, 4, MEMORY)
    (file,) = tmp_path.glob("run/clients/*")
    years_ago = time.time() - 1000 * 86_400
    os.utime(file, (years_ago, years_ago))
    keep(_context(), recipe, 1, 4, Memory(residual=3 * RESIDUAL))
    assert not (tmp_path / "cache").exists()
    np.testing.assert_array_equal(recall(_context(), recipe, 0, 5, 4).residual, RESIDUAL)
    np.testing.assert_array_equal(recall(_context(), recipe, 1, 5, 4).residual, 3 * RESIDUAL)
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = recall(_context(), simulated("moved"), 0, 5, 4)
    np.testing.assert_array_equal(moved.residual, RESIDUAL)


def test_a_client_of_the_local_engine_writes_nothing(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CSG_CACHE_DIR", str(tmp_path))
    keep(_context(), tiny(), 0, 4, MEMORY)
    assert not list(tmp_path.iterdir())
    assert recall(_context(), tiny(), 0, 5) == Memory()


def test_a_damaged_file_is_told_and_done_without(deployed, tmp_path, caplog):
    keep(_context(), deployed(), 0, 4, MEMORY)
    (file,) = tmp_path.glob("clients/*")
    file.write_bytes(file.read_bytes()[:-3])
    assert recall(_context(), deployed(), 0, 5) == Memory()
    assert f"{file}: what this client kept cannot be read" in caplog.text


def test_a_folder_that_cannot_be_written_costs_a_warning(deployed, tmp_path, caplog):
    (tmp_path / "clients").write_text("in the way")
    keep(_context(), deployed(), 0, 4, MEMORY)
    assert "what this client keeps is not written" in caplog.text


def test_files_of_a_month_ago_are_dropped(deployed, tmp_path):
    keep(_context(), deployed("runs/old"), 0, 4, MEMORY)
    (old,) = tmp_path.glob("clients/*")
    os.utime(old, (time.time() - 31 * 86_400,) * 2)
    keep(_context(), deployed("runs/new"), 0, 4, MEMORY)
    (left,) = tmp_path.glob("clients/*")
    assert left != old
