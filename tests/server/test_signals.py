"""What a run does with signals that ask it to end."""

import signal

import pytest

import server.app
import server.rounds
from server.record import RunFolder
from server.signals import terminate_as_interrupt, undisturbed
from simulations.local_engine import run_local


@pytest.fixture(autouse=True)
def heard():
    """SIGINT interrupts, and SIGHUP is heard, also where the tests were begun in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before)
    signal.signal(signal.SIGHUP, hangup)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_asks_a_run_to_end_interrupts(number):
    with pytest.raises(KeyboardInterrupt), terminate_as_interrupt():
        signal.raise_signal(number)


def test_under_nohup_a_closed_terminal_is_not_heard():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminate_as_interrupt():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_undisturbed_hears_nothing_and_what_follows_does():
    with undisturbed():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.fixture
def begun(tiny, folder):
    """A run that writes a checkpoint at its end, if it comes there."""
    recipe = tiny(run={"dir": str(folder.path), "checkpoint_every": 100, "eval_every": 100})
    folder.create(recipe, {}, [])
    return recipe


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, BrokenPipeError, RuntimeError], ids=lambda error: error.__name__
)
def test_whatever_ends_a_run_its_last_whole_round_is_saved(begun, folder, error):
    def ending(_row):
        raise error

    with pytest.raises(error):
        run_local(begun, ending)
    assert (folder.checkpoints / "round-000001.safetensors").is_file()


def test_a_second_signal_does_not_lose_the_checkpoint(begun, folder, monkeypatch):
    saving = server.rounds.save_state

    def while_it_saves(*arguments):
        if arguments[1].round:
            signal.raise_signal(signal.SIGTERM)
        saving(*arguments)

    monkeypatch.setattr(server.rounds, "save_state", while_it_saves)
    with pytest.raises(KeyboardInterrupt):
        run_local(begun, lambda _row: signal.raise_signal(signal.SIGTERM))
    assert (folder.checkpoints / "round-000001.safetensors").is_file()
    assert folder.summary()["outcome"] == "interrupted after round 1"


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_lose_the_summary(tiny, tmp_path, monkeypatch, second):
    """Flower's apps interrupt themselves when the process that began them is gone."""
    twin = server.app.dense_twin_bytes

    def while_it_concludes(recipe):
        signal.raise_signal(second)
        return twin(recipe)

    def interrupted(_row):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(server.app, "dense_twin_bytes", while_it_concludes)
    recipe = tiny(run={"dir": str(tmp_path / "run")})
    folder = RunFolder(tmp_path / "run")
    folder.create(recipe, {}, [])
    with pytest.raises(KeyboardInterrupt):
        run_local(recipe, interrupted)
    assert folder.summary()["outcome"] == "interrupted after round 1"
