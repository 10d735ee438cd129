"""What a client keeps from round to round: in Flower's context, and in a file that outlives it.

A SuperNode's context is lost when it is restarted, and a resumed run is a new one to Flower. So a
deployed client also writes what only it has to its cache, under the run and its partition.
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
_ROUND = "round"
_STALE_S = 30 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a client keeps from round to round; it can do without, at a price.

    Attributes:
        kept: the tensors that do not travel, packed (FedBN); without, they begin anew.
        residual: what the uplink's codec left out so far, float32 [manifest.size]; without, it is
            lost.
        held: the version of the model that deltas build on; without, the server has to send a
            whole model.
    """

    kept: NDArray[np.float32] | None = None
    residual: NDArray[np.float32] | None = None
    held: Held | None = None


NOTHING = Memory()


def recall(
    context: Context, recipe: Recipe, partition: int, round_: int, taken: int | None = None
) -> Memory:
    """What this run's client of a partition kept, for ``round_``.

    What the codec left out is of an update, and is sent after that, if the server took it, and
    once: an update may be refused or lost, and a round asked for again, when a run is resumed from
    further back. ``taken`` is the last round whose update it took, where it says so. The tensors
    that stay are those of the later round, which is nearer than to begin anew.
    """
    records, numbers = context.state.array_records, context.state.metric_records
    held = None
    if _HELD in records:
        version = numbers[_VERSION]["version"]
        assert isinstance(version, int)
        array = records[_HELD][_HELD]
        held = Held.unpacked(version, array.data, array.shape[-1])
    own = {name: records[name][name].numpy() for name in (_KEPT, _RESIDUAL) if name in records}
    of = int(numbers[_ROUND]["round"]) if _ROUND in numbers else 0  # type: ignore[arg-type]
    if not own and recipe.run.superlink is not None:
        own, of = _read(_file(context, recipe, partition))
    follows = of < round_ if taken is None else of == taken
    residual = own.get(_RESIDUAL) if follows else None
    return Memory(kept=own.get(_KEPT), residual=residual, held=held)


def keep(context: Context, recipe: Recipe, partition: int, round_: int, memory: Memory) -> None:
    """Keep the memory of a round. A file that cannot be written costs a warning, no more."""
    values = {_KEPT: memory.kept, _RESIDUAL: memory.residual}
    own = {name: array for name, array in values.items() if array is not None}
    for name, array in own.items():
        context.state[name] = ArrayRecord({name: Array(array)})
    if own:
        context.state[_ROUND] = MetricRecord({"round": round_})
    held = memory.held
    if held is not None:
        shape = (1 + len(held.before), held.values.size)
        packed = Array(dtype="float16", shape=shape, stype="bytes", data=held.packed)
        context.state[_HELD] = ArrayRecord({_HELD: packed})
        context.state[_VERSION] = MetricRecord({"version": held.version})
    if own and recipe.run.superlink is not None:
        path = _file(context, recipe, partition)
        try:
            _write(path, own, round_)
        except (OSError, SafetensorError) as error:
            _log.warning("%s: what this client keeps is not written (%s)", path, error)
            with suppress(OSError):  # what it kept before has been sent
                path.unlink(missing_ok=True)


def _file(context: Context, recipe: Recipe, partition: int) -> Path:
    """By the run: recipe, which names its folder, when it began, and code, so that sizes fit."""
    started = context.run_config.get(STARTED, "")
    described = f"{recipe.model_dump_json()} {started} {code_identity()}"
    run = hashlib.sha256(described.encode()).hexdigest()[:16]
    return cache_folder() / "clients" / f"{run}-{partition}.safetensors"


def _read(path: Path) -> tuple[dict[str, NDArray[np.float32]], int]:
    """The arrays of a file, if there are any, and the round that they are of."""
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, int((file.metadata() or {})[_ROUND])
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        _log.warning("%s: what this client kept cannot be read (%s)", path, error)
    return {}, 0


def _write(path: Path, arrays: dict[str, NDArray[np.float32]], round_: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.iterdir():
        with suppress(OSError):  # another client's, renamed in between
            if time.time() - old.stat().st_mtime > _STALE_S:
                old.unlink()
    replace_file(path, save(arrays, {_ROUND: str(round_)}), private=True)
