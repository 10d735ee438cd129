"""A run's files: written whole, read back, and damage noticed."""

import errno
import logging
import os
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest

from csg_core import build, pack, unpack
from federation.messages import TrainReport
from server import record
from server.checkpoints import CheckpointError, read_checkpoint
from server.logs import LogFile, logged
from server.record import RunFolder, RunFolderError
from server.rows import Contribution, RoundRow
from server.state import ServerState, checkpoint_path, checkpoint_paths, load_state, save_state
from server.summary import best_of, summary_of
from server.wire import ClientBytes

ROW = RoundRow(
    round=1, clients=3, failures=1, train_loss=1.5, test_loss=1.2, test_accuracy=0.5,
    payload_bytes_up=30, payload_bytes_down=40, seconds=2.0, failed={"client 3": "raised"},
)  # fmt: skip


def test_a_contribution_is_what_a_client_reports_and_its_bytes():
    parts = [field.name for part in (TrainReport, ClientBytes) for field in fields(part)]
    assert list(Contribution.__annotations__) == parts


@pytest.fixture
def folder(tiny, tmp_path):
    found = RunFolder(tmp_path / "run")
    found.create(tiny(), {"seed": 0}, [[1, 2], [3, 4]])
    return found


def test_a_run_begins_once(folder, tiny):
    assert folder.recipe() == tiny()
    assert folder.environment()["spread"] == [[1, 2], [3, 4]]
    with pytest.raises(RunFolderError, match="holds a run already; csg resume"):
        folder.create(tiny(), {}, [])


@pytest.mark.parametrize("left", ["rounds.jsonl", "checkpoints/round-000001.safetensors"])
def test_a_run_does_not_begin_in_what_another_left(folder, tiny, left):
    (folder.path / "config.toml").unlink()
    (folder.path / left).write_text("")
    with pytest.raises(RunFolderError, match=f"{left}: is of another run"):
        folder.create(tiny(), {}, [])


def test_a_log_on_a_full_disk_is_silent(capsys):
    with logged(LogFile("/dev/full"), "csg-test"):
        logging.getLogger("csg-test").info("nobody can read this")
    assert capsys.readouterr() == ("", "")


def test_rows_come_back_and_a_torn_last_one_is_left_out(folder):
    rows = [replace(ROW, round=number) for number in (1, 2, 3)]
    for row in rows:
        folder.append(row)
    assert folder.rows() == rows
    path = folder.path / "rounds.jsonl"
    whole = path.read_text()
    for cut in (30, 1):  # the last character alone: what is left is a row, but may be a part of one
        path.write_text(whole[:-cut])
        assert folder.rows() == rows[:2]
    assert folder.cut(1) == rows[:1]
    folder.append(rows[1])
    assert folder.rows() == rows[:2]


def test_a_full_disk_loses_no_rows_and_is_named(folder, monkeypatch):
    folder.append(ROW)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(record, "replace_file", full)
    remedy = r"rounds\.jsonl: cannot be written \(No space left on device\).*csg resume .* once"
    with pytest.raises(RunFolderError, match=remedy):
        folder.cut(0)
    assert folder.rows() == [ROW]


def test_a_damaged_row_in_the_middle_is_named(folder):
    for number in (1, 2):
        folder.append(replace(ROW, round=number))
    path = folder.path / "rounds.jsonl"
    path.write_text("x" + path.read_text())
    with pytest.raises(RunFolderError, match="line 1 is damaged"):
        folder.rows()


def test_one_process_at_a_time_runs_a_run(folder):
    with (
        folder.locked(),
        pytest.raises(RunFolderError, match="another process is running it"),
        folder.locked(),
    ):
        pass
    with folder.locked():
        assert folder.held()
    assert not folder.held()


def test_a_process_that_is_about_to_end_is_waited_for(folder):
    hold = (
        f"import fcntl, time; file = open({str(folder.path / '.lock')!r}, 'w'); "
        "fcntl.flock(file, 2); print(flush=True); time.sleep(1)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert folder.held()
        with folder.locked(patience=60):
            pass


def test_what_killed_processes_left_is_swept_away(folder):
    (folder.path / ".summary.json.ab12.tmp").write_text("half")
    (folder.checkpoints / ".round-000002.safetensors.ab12.tmp").write_text("half")
    (mine := folder.path / ".notes.tmp").write_text("a user's")
    with folder.locked():
        assert list(folder.path.rglob("*.tmp")) == [mine]


@pytest.mark.parametrize("line", ['{"round": "x"}', "[1]", None], ids=str)
def test_a_line_of_wrong_types_is_named(folder, line):
    folder.append(ROW)
    path = folder.path / "rounds.jsonl"
    wrong = path.read_text().replace("0.5", '"hi"') if line is None else f"{line}\n"
    path.write_text(wrong + path.read_text())
    with pytest.raises(RunFolderError, match="line 1 is damaged"):
        folder.rows()


def test_a_damaged_spread_is_left_out(folder):
    (folder.path / "environment.json").write_text('{"seed": 0, "spread": 3}')
    assert folder.environment() == {"seed": 0, "spread": []}


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        RunFolder(tmp_path).recipe()


def _save(folder, tiny, round_, value):
    recipe = tiny()
    model = build(recipe.model)
    values = np.full_like(pack(model), value)
    state = ServerState(
        round_,
        values,
        {"m_t": np.arange(3, dtype=np.float32)},
        {2: np.arange(5, dtype=np.uint8)},
    )
    groups = recipe.train.travelling()
    unpack(model, state.values, groups)
    return save_state(folder.checkpoints, state, model, recipe.model), state


def _load(folder, tiny):
    return load_state(folder.checkpoints, tiny().model, tiny().train.travelling())


def test_a_state_comes_back_and_only_the_last_two_stay(folder, tiny):
    for round_ in (1, 2, 3):
        path, state = _save(folder, tiny, round_, round_)
    assert len(list(folder.checkpoints.iterdir())) == 2
    back = _load(folder, tiny)
    assert back.round == 3
    assert np.array_equal(back.values, state.values)
    assert np.array_equal(back.carried["m_t"], state.carried["m_t"])
    assert np.array_equal(back.clients[2], state.clients[2])
    assert read_checkpoint(path)[0] == tiny().model


def test_checkpoints_stand_in_the_order_of_their_rounds(folder):
    rounds = (2, 10, 999_999, 1_000_000, 1_000_001)
    folder.checkpoints.mkdir(parents=True, exist_ok=True)
    for round_ in rounds:
        checkpoint_path(folder.checkpoints, round_).touch()
    names = [path.stem for path in checkpoint_paths(folder.checkpoints)]
    assert [int(name.removeprefix("round-")) for name in names] == list(rounds)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.99])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_used(folder, tiny, place):
    _save(folder, tiny, 1, 0.5)
    path, _ = _save(folder, tiny, 2, 0.25)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    assert _load(folder, tiny).round == 1
    path.write_bytes(content[: len(content) // 2])
    assert _load(folder, tiny).round == 1
    checkpoint_path(folder.checkpoints, 1).unlink()
    with pytest.raises(CheckpointError, match="no checkpoint to go on from"):
        _load(folder, tiny)


def test_a_checkpoint_of_another_recipe_is_refused(folder, tiny):
    _save(folder, tiny, 1, 0.5)
    other = tiny(model={"code_size": 8})
    with pytest.raises(CheckpointError, match=r"another model than config\.toml says"):
        load_state(folder.checkpoints, other.model, other.train.travelling())


def test_the_summary_adds_up():
    row = replace(ROW, models=4, updates=3)
    rows = [
        row,
        replace(row, round=2, test_accuracy=0.4),
        replace(row, round=3, test_accuracy=None),
    ]
    summary = summary_of(rows, "completed", (90, 50))
    assert best_of(rows).round == 1
    assert (summary["accuracy"], summary["best_accuracy"]) == (0.4, 0.5)
    assert summary["payload_bytes"] == 3 * 70
    assert summary["ratio_to_dense"] == pytest.approx(3 * (3 * 90 + 4 * 50) / 210)
    assert summary_of([], "interrupted", (90, 50))["ratio_to_dense"] is None
