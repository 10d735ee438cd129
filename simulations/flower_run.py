"""A run that a SuperLink has taken, followed to its end whatever happens to the SuperLink."""

import logging
import time
from collections.abc import Callable

from federation.recipe import Recipe
from server.flower_cli import CONNECTION, EngineError, flwr, run_of
from server.outcome import RunError
from server.record import RunFolder
from server.rows import RoundRow

_log = logging.getLogger(__name__)
_LOOK_S = 0.5
_ASK_S = 15.0  # an answer takes Flower's command a second of work
_NOT_BEGUN = ("pending", "starting")

Status = tuple[str, str]  # as Flower says, with its details


class Followed:
    """A run of a recipe, under Flower's id for it."""

    def __init__(
        self, run_id: str, recipe: Recipe, folder: RunFolder, environment: dict[str, str]
    ) -> None:
        self._run_id, self._environment = run_id, environment
        self._folder, self._patience = folder, recipe.run.patience
        self._where = recipe.run.superlink or "of this run"
        self._known: list[RoundRow] = []
        self._version: tuple[int, ...] = ()  # of the rows that are known
        self._answered = self._begun = time.monotonic()

    def to_its_end(
        self,
        known: list[RoundRow],
        on_round: Callable[[RoundRow], None],
        check: Callable[[], None],
    ) -> Status:
        """Tell of every round after the ``known`` ones until the run has ended, and how.

        ``check`` is called in between, and may raise.

        Raises:
            RunError: if the SuperLink stays away or no server side takes the run up, for longer
                than ``run.patience``.
        """
        self._known, self._version, asked, served = known, (), 0.0, False
        self._answered = self._begun = time.monotonic()
        while True:
            time.sleep(_LOOK_S)
            check()
            self._tell(on_round)
            held, ended = self._folder.held(), bool(self._folder.summary())
            if served and not held and not ended:  # Flower takes a minute to notice
                self.stop()
                raise RunError(
                    "the server side ended without a word, as when it is killed; start it again "
                    "if need be, then " + self._remedy()
                )
            served = served or held
            if not ended and time.monotonic() - asked < _ASK_S:
                continue
            asked = time.monotonic()
            status, details = self._ask(ended=ended)
            if status.startswith("finished"):
                self._tell(on_round)
                return status, details

    def stop(self) -> None:
        """End the run, if the SuperLink can be asked to."""
        try:
            flwr(["stop", self._run_id, CONNECTION], self._environment)
        except EngineError as error:
            _log.warning("run %s was not stopped: %s", self._run_id, error)

    def _tell(self, on_round: Callable[[RoundRow], None]) -> None:
        version = self._folder.version()
        if version == self._version:
            return
        self._version = version
        rows = self._folder.rows()
        same = len(_common(self._known, rows))
        for row in rows[same:]:
            on_round(row)
        self._known = rows

    def _ask(self, *, ended: bool) -> Status:
        try:
            status, details = run_of(self._run_id, self._environment)
        except EngineError as error:
            return self._unanswered(str(error), ended=ended)
        if time.monotonic() - self._answered > 2 * _ASK_S:
            _log.info("the SuperLink %s answers again", self._where)
        self._answered = time.monotonic()
        if status not in _NOT_BEGUN:
            self._begun = self._answered
        elif self._answered - self._begun > self._patience:
            self.stop()
            raise RunError(
                f"no server side took the run up within {self._patience:g} s (run.patience); "
                "start flower-superexec beside the SuperLink, then " + self._remedy()
            )
        return status, details

    def _unanswered(self, reason: str, *, ended: bool) -> Status:
        """What to make of a SuperLink that does not answer, or does not know the run."""
        if ended:  # the server side's own word is enough
            done = self._folder.summary().get("outcome") == "completed"
            return ("finished:completed" if done else "finished:failed"), reason
        gone = time.monotonic() - self._answered
        _log.warning("the SuperLink %s is gone for %.0f s: %s", self._where, gone, reason)
        if gone > self._patience:
            raise RunError(
                f"the SuperLink {self._where} is gone for {gone:.0f} s (run.patience): {reason} "
                "Start it again, then " + self._remedy()
            )
        return "running", ""

    def _remedy(self) -> str:
        last = self._known[-1].round if self._known else 0
        return f"csg resume {self._folder.path} goes on after round {last}"


def _common(before: list[RoundRow], now: list[RoundRow]) -> list[RoundRow]:
    """The rows that both begin with; a resumed run may cut some and make them anew."""
    same = []
    for old, new in zip(before, now, strict=False):
        if old != new:
            break
        same.append(new)
    return same
