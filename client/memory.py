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
    context: Context,
    recipe: Recipe,
    partition: int,
    round_: int,
    taken: int | None = None,
    resumed: int | None = None,
) -> Memory:
    """What this run's client of a partition kept, for ``round_``.

    What the codec left out is of an update, and is sent after that, if the server took it, and
    once: an update may be refused or lost, and a round asked for again, when a run is resumed from
    further back. ``taken`` is the last round whose update it took, where it says so; ``resumed``
    the one that a run goes on from which does not know that of this client: it took none later. If
    the residual of that is not the last one, but the one that the last one began with, this is owed
    still. The tensors that stay are those of the later round, which is nearer than to begin anew.
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
    if not own and _has_file(recipe):
        own, rounds = _read(_file(context, recipe, partition))
    last = rounds.get(_ROUND, 0)
    owed = {last: _RESIDUAL}
    if _ROUND_BEFORE in rounds:
        owed[rounds[_ROUND_BEFORE]] = _BEFORE
    if taken is not None:
        of = taken
    elif resumed is not None:
        of = max((round_ for round_ in owed if round_ <= resumed), default=0)
    else:
        of = last if last < round_ else 0
    residual = own.get(owed[of]) if of in owed else None
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
    has_file = _has_file(recipe)
    owed = before.residual if has_file and memory.residual is not None else None
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
    if own and has_file:
        path = _file(context, recipe, partition)
        try:
            if _deployed(recipe):
                _drop_stale(path.parent)
            _write(path, own, rounds)
        except (OSError, SafetensorError) as error:
            _log.warning("%s: what this client keeps is not written (%s)", path, error)
            with suppress(OSError):  # what it kept before has been sent
                path.unlink(missing_ok=True)


def _deployed(recipe: Recipe) -> bool:
    return recipe.run.superlink is not None


def _has_file(recipe: Recipe) -> bool:
    """Whether what this client keeps is lost with its process, but for a file of its own."""
    return recipe.run.engine == "flower"


def _file(context: Context, recipe: Recipe, partition: int) -> Path:
    """By when the run began, and by the code, so that sizes fit; in a cache by the recipe, too.

    That names the folder of a run, which tells it from others. Where the file lies in that folder,
    this may be moved, and how the run is run be changed.
    """
    described = f"{context.run_config.get(STARTED, '')} {code_identity()}"
    home = Path(str(recipe.run.dir))
    if _deployed(recipe):
        home = cache_folder()
        longer = {"train": {"rounds"}}  # as a run may be made
        described = f"{recipe.model_dump_json(exclude=longer)} {described}"
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
