"""What a client keeps from round to round: in Flower's context, and in a file that outlives it.

A SuperNode's context is lost when it is restarted, and a resumed run is a new one to Flower. So a
client also writes what only it has to a file, under the run and its partition: a deployed one in
its cache, one of Flower's simulation in the run's folder. The engine ``local`` keeps contexts in
its checkpoints, and its clients write nothing.
"""

import hashlib
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, MetricRecord
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from csg_core.broadcast import Held
from federation.cache import cache_folder
from federation.code import code_identity
from federation.files import replace_file
from federation.messages import STARTED
from federation.recipe import Recipe

_log = logging.getLogger(__name__)

# keys in a context's state
_KEPT, _RESIDUAL, _HELD, _VERSION = "kept", "residual", "held", "held-version"
_BEFORE = "residual-before"
_ROUND, _ROUND_BEFORE = "round", "round-before"
_STALE_S = 30 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a client keeps from round to round; it can do without, at a price.

    Attributes:
        kept: the tensors that do not travel, packed (FedBN); without, they begin anew.
        residual: what the uplink's codec left out so far, float32 [manifest.size]; without, it is
            lost.
        residual_of: the round of the update that it was left out of.
        held: the version of the model that deltas build on; without, the server has to send a
            whole model.
    """

    kept: NDArray[np.float32] | None = None
    residual: NDArray[np.float32] | None = None
    residual_of: int = 0
    held: Held | None = None


NOTHING = Memory()


def recall(
    context: Context, recipe: Recipe, partition: int, round_: int, taken: int | None = None
) -> Memory:
    """What this run's client of a partition kept, for ``round_``.

    What the codec left out is of an update, and is sent after that, if the server took it, and
    once: an update may be refused or lost, and a round asked for again, when a run is resumed from
    further back. ``taken`` is the last round whose update it took, where it says so: if that is not
    the last one, but the one whose residual the last one began with, this is owed still. The
    tensors that stay are those of the later round, which is nearer than to begin anew.
    """
    records, numbers = context.state.array_records, context.state.metric_records
    held = None
    if _HELD in records:
        version = numbers[_VERSION]["version"]
        assert isinstance(version, int)
        array = records[_HELD][_HELD]
        held = Held.unpacked(version, array.data, array.shape[-1])
    names = (_KEPT, _RESIDUAL, _BEFORE)
    own = {name: records[name][name].numpy() for name in names if name in records}
    rounds = {name: _round(numbers[name]) for name in (_ROUND, _ROUND_BEFORE) if name in numbers}
    if not own and _writes(recipe):
        own, rounds = _read(_file(context, recipe, partition))
    last, before = rounds.get(_ROUND, 0), rounds.get(_ROUND_BEFORE)
    name, of = _RESIDUAL, last
    if taken is not None and taken == before:
        name, of = _BEFORE, before
    follows = of < round_ if taken is None else of == taken
    residual = own.get(name) if follows else None
    return Memory(kept=own.get(_KEPT), residual=residual, residual_of=of, held=held)


def keep(
    context: Context,
    recipe: Recipe,
    partition: int,
    round_: int,
    memory: Memory,
    before: Memory = NOTHING,
) -> None:
    """Keep the memory of a round. A file that cannot be written costs a warning, no more.

    ``before`` is what the round began with: a client whose update may be lost on its way, as it is
    where the run ends before its checkpoint, goes back to what was owed then.
    """
    writes = _writes(recipe)
    owed = before.residual if writes and memory.residual is not None else None
    values = {_KEPT: memory.kept, _RESIDUAL: memory.residual, _BEFORE: owed}
    own = {name: array for name, array in values.items() if array is not None}
    rounds = {_ROUND: round_} if own else {}
    if owed is not None:
        rounds[_ROUND_BEFORE] = before.residual_of
    if memory.residual is not None:
        for name in (_BEFORE, _ROUND_BEFORE):
            context.state.pop(name, None)
    for name, array in own.items():
        context.state[name] = ArrayRecord({name: Array(array)})
    for name, of in rounds.items():
        context.state[name] = MetricRecord({"round": of})
    held = memory.held
    if held is not None:
        shape = (1 + len(held.before), held.values.size)
        packed = Array(dtype="float16", shape=shape, stype="bytes", data=held.packed)
        context.state[_HELD] = ArrayRecord({_HELD: packed})
        context.state[_VERSION] = MetricRecord({"version": held.version})
    if own and writes:
        path = _file(context, recipe, partition)
        try:
            if recipe.run.superlink is not None:
                _drop_stale(path.parent)
            _write(path, own, rounds)
        except (OSError, SafetensorError) as error:
            _log.warning("%s: what this client keeps is not written (%s)", path, error)
            with suppress(OSError):  # what it kept before has been sent
                path.unlink(missing_ok=True)


def _writes(recipe: Recipe) -> bool:
    """Whether nothing but the client itself makes what it keeps outlive its process."""
    return recipe.run.engine == "flower"


def _file(context: Context, recipe: Recipe, partition: int) -> Path:
    """By the run: recipe, when it began, and code, so that sizes fit.

    In a cache, a run's folder tells it from others; that of a simulation may be moved.
    """
    home, changes = cache_folder(), {"train": {"rounds"}}  # a run may be made longer
    if recipe.run.superlink is None:
        home, changes = Path(str(recipe.run.dir)), changes | {"run": {"dir"}}
    started = context.run_config.get(STARTED, "")
    described = f"{recipe.model_dump_json(exclude=changes)} {started} {code_identity()}"
    run = hashlib.sha256(described.encode()).hexdigest()[:16]
    return home / "clients" / f"{run}-{partition}.safetensors"


def _round(record: MetricRecord) -> int:
    found = record["round"]
    assert isinstance(found, int)
    return found


def _read(path: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, int]]:
    """The arrays of a file, if there are any, and the rounds that they are of."""
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            rounds = {name: int(of) for name, of in (file.metadata() or {}).items()}
            if _ROUND not in rounds:
                raise KeyError(_ROUND)
            return arrays, rounds
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        _log.warning("%s: what this client kept cannot be read (%s)", path, error)
    return {}, {}


def _write(path: Path, arrays: dict[str, NDArray[np.float32]], rounds: dict[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = {name: str(of) for name, of in rounds.items()}
    replace_file(path, save(arrays, texts), private=True)


def _drop_stale(folder: Path) -> None:
    """Remove what clients of runs of long ago kept in a cache."""
    for old in folder.glob("*"):
        with suppress(OSError):  # another client's, renamed in between
            if time.time() - old.stat().st_mtime > _STALE_S:
                old.unlink()
