"""The rounds of a run, each on one screen: encode, send, decode, average, evaluate, record."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid
from numpy.typing import NDArray

from csg_core import build, manifest
from csg_core.evaluation import evaluate
from csg_core.exchange import Exchanged
from csg_core.images import ImageSet
from federation.devices import device_of, precision_of
from federation.interface import Interface
from federation.recipe import Recipe, RecipeError
from server.aggregation import model_in, model_record
from server.checkpoints import CheckpointError, read_with_extra, write_checkpoint
from server.record import RunFolder
from server.rows import RoundRow
from server.signals import undisturbed
from server.start import started
from server.state import ServerState, load_state, save_state
from server.strategy import CsgStrategy
from server.summary import Best, best_of
from server.wire import crossed, server_interface

_log = logging.getLogger(__name__)


@runtime_checkable
class SimulatedGrid(Protocol):
    """A Grid whose clients live in this process, so that a checkpoint can hold their state."""

    partitions: Mapping[int, int]  # of every node
    in_process: bool  # whether arrays can be handed to clients as they are

    def kept(self) -> dict[int, NDArray[np.uint8]]:
        """What clients keep between rounds, by partition."""

    def restore(self, kept: Mapping[int, NDArray[np.uint8]]) -> None:
        """Take up what ``kept`` gave."""


class Rounds:
    """A run's server: state, strategy and record."""

    def __init__(self, recipe: Recipe, grid: Grid, folder: RunFolder, test: ImageSet) -> None:
        self.recipe, self.grid, self.folder = recipe, grid, folder
        self._simulated = grid if isinstance(grid, SimulatedGrid) else None
        self._device = device_of(recipe)
        self._test = test.to(self._device)
        self._model = build(recipe.model, seed=recipe.run.seed).to(self._device)
        self._groups = recipe.train.travelling()
        self._tensors = Exchanged(self._model, self._groups)
        simulated = self._simulated
        partitions = simulated.partitions if simulated else None
        found = manifest(self._model, self._groups)
        start = None if self._begun else started(recipe)
        self.strategy = CsgStrategy(
            recipe, found, self._tensors.packed(), partitions, start,
            in_process=simulated is not None and simulated.in_process,
        )  # fmt: skip
        # what clients make of the seed, or are sent, to the last bit
        self.state = ServerState(0, self.strategy.downlink.held, self.strategy.state())
        self._saved = -1
        self._counted = server_interface(recipe)
        self._best: Best | None = None
        self._better: ServerState | None = None  # what the best model is to be made of

    @property
    def _begun(self) -> bool:
        return any(self.folder.checkpoints.glob("round-*"))

    def resume(self) -> None:
        """Go on from the newest whole checkpoint of the folder, if there is one.

        Raises:
            CheckpointError: if all of them are damaged, or the record and they do not fit.
            ValueError: if the recipe is no longer one that the checkpoint can go on by.
        """
        if not self._begun:  # a checkpoint is there before the first round is
            if self.folder.rows():
                raise CheckpointError(
                    f"{self.folder.checkpoints}: holds no checkpoint, while rounds.jsonl holds "
                    "rounds; bring the folder back, or start the run anew in another"
                )
            self.folder.cut(0)
            return
        self.state = load_state(self.folder.checkpoints, self.recipe.model, self._groups)
        self._saved = self.state.round
        self.strategy.restore(self.state.carried)
        if self._simulated:
            self._simulated.restore(self.state.clients)
        else:
            self.strategy.downlink.forget()  # to clients, this is another run
        behind = [row.round for row in self.folder.rows() if row.round <= self.state.round]
        if behind != list(range(1, self.state.round + 1)):
            raise CheckpointError(
                f"{self.folder.path}/rounds.jsonl: does not hold rounds 1 to {self.state.round}, "
                "which the checkpoint has behind it; bring the file back, or start the run anew"
            )
        self._best = best_of(self.folder.cut(self.state.round))
        self._resume_best()

    def _resume_best(self) -> None:
        """Take up a best model that the checkpoint has behind it, and drop one of a later round."""
        if not 0 <= _round_of(self._next_path) <= self.state.round:  # or damaged
            self._next_path.unlink(missing_ok=True)
        self._promote()
        if _round_of(self._best_path) > self.state.round:
            self._best_path.unlink()
        if self._best is not None and not self._best_path.exists():
            _log.warning(
                "%s: the model of round %d, the best so far, is no longer there; only a better one "
                "will be kept",
                self.folder.path, self._best.round,
            )  # fmt: skip

    def run(self, on_round: Callable[[RoundRow], None]) -> None:
        """Every round that is left; ``on_round`` is told of each.

        Whatever ends the run but the disk, the state after the last complete round is saved.

        Raises:
            server.outcome.RunError: if the quorum is missed.
            CheckpointError: if the disk does not take the record or a checkpoint.
        """
        try:
            if self._saved < 0:
                self._save()
            for round_ in range(self.state.round + 1, self.recipe.train.rounds + 1):
                on_round(self._round(round_))
        except CheckpointError:
            raise
        except BaseException:
            with undisturbed():
                if len(self.folder.rows()) > self.state.round:  # interrupted while it was recorded
                    self.folder.cut(self.state.round)
                self._save()
            raise

    def _round(self, round_: int) -> RoundRow:
        started = time.perf_counter()
        strategy = self.strategy
        before = model_record(self.state.values)
        messages = strategy.configure_train(round_, before, ConfigRecord(), self.grid)
        after, metrics = strategy.aggregate_train(round_, self._replies(messages))
        self._tensors.unpack(model_in(after))
        values = self._tensors.packed()  # as a checkpoint holds it: no variance below zero
        loss, accuracy = self._evaluate(round_, values)
        kept = self._simulated.kept() if self._simulated else {}
        state = ServerState(round_, values, strategy.state(), kept)
        outcome = strategy.outcome
        earlier, counted = self._counted, self._interface()
        self._counted = counted
        received, sent = crossed(earlier, counted)
        row = RoundRow(
            round=round_,
            clients=len(outcome.reports),
            failures=len(outcome.failures),
            train_loss=float(metrics["train-loss"]),  # type: ignore[arg-type]
            test_loss=loss if loss is None or math.isfinite(loss) else None,
            test_accuracy=accuracy,
            payload_bytes_up=outcome.bytes_up,
            payload_bytes_down=outcome.bytes_down,
            wire_bytes_up=received,
            wire_bytes_down=sent,
            interface=counted.name if counted else None,
            interface_shared=counted.shared if counted else None,
            seconds=time.perf_counter() - started,
            contributions=outcome.contributions(),
            failed=dict(outcome.failures),
            models=outcome.models,
            updates=outcome.updates,
        )
        try:
            self._record(row, state)
        except OSError as error:
            raise CheckpointError(
                f"{self.folder.path}: cannot be written ({error.strerror}); "
                f"the checkpoint of round {self._saved} is whole: csg resume goes on from there"
            ) from error
        return row

    def _replies(self, messages: list[Message]) -> Iterable[Message]:
        return self.grid.send_and_receive(messages, timeout=self.recipe.server.round_timeout)

    def _interface(self) -> Interface | None:
        """The server's interface now; one that has gone, or got another name, ends no run."""
        try:
            return server_interface(self.recipe)
        except RecipeError as error:
            _log.warning("bytes are not counted: %s", error)
            return None

    def _evaluate(
        self, round_: int, values: NDArray[np.float32]
    ) -> tuple[float | None, float | None]:
        """Loss and accuracy of the model, which is packed as ``values``; None where not due."""
        if round_ % self.recipe.run.eval_every and round_ != self.recipe.train.rounds:
            return None, None
        if self.recipe.clients_evaluate:
            model, config = model_record(values), ConfigRecord()
            messages = self.strategy.configure_evaluate(round_, model, config, self.grid)
            found = self.strategy.aggregate_evaluate(round_, self._replies(messages))
            return (float(found["loss"]), float(found["accuracy"])) if found else (None, None)  # type: ignore[arg-type]
        result = evaluate(self._model, self._test, precision=precision_of(self.recipe))
        return result.loss, result.accuracy

    def _record(self, row: RoundRow, state: ServerState) -> None:
        """Row first: a resumed run drops rows that are newer than its checkpoint."""
        best = best_of([row], self._best)
        self.folder.append(row)
        self.state = state
        if best is not self._best:
            self._best, self._better = best, state
        due = row.round % self.recipe.run.checkpoint_every == 0
        if due or row.round == self.recipe.train.rounds:
            self._save()

    def _save(self) -> None:
        """The state, and the best model so far if that is new.

        The one before is there until the checkpoint is: a run that breaks off in between makes the
        later rounds anew, and they may not be as good then.
        """
        if self._saved == self.state.round:
            return
        recipe, better = self.recipe, self._better
        if better is not None:
            self._tensors.unpack(better.values)
            extra = {"round": torch.tensor(better.round)}
            write_checkpoint(self._next_path, self._model, recipe.model, extra)
        self._tensors.unpack(self.state.values)
        save_state(self.folder.checkpoints, self.state, self._model, recipe.model)
        self._saved, self._better = self.state.round, None
        self._promote()

    def _promote(self) -> None:
        if self._next_path.exists():
            self._next_path.rename(self._best_path)

    @property
    def _best_path(self) -> Path:
        return self.folder.checkpoints / "best.safetensors"

    @property
    def _next_path(self) -> Path:
        return self.folder.checkpoints / "best-next.safetensors"


def _round_of(path: Path) -> int:
    """The round of a best model's file, -1 if there is none."""
    try:
        return int(read_with_extra(path)[2]["round"])
    except (CheckpointError, KeyError):
        return -1
