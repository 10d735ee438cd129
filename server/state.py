"""Everything that a run carries from round to round, and its checkpoints."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from csg_core import ModelSpec, pack
from csg_core.entries import Group
from server.checkpoints import CheckpointError, read_with_extra, write_checkpoint

_log = logging.getLogger(__name__)
_KEPT_FILES = 2

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class ServerState:
    """After ``round`` rounds: the packed model, what the strategy carries, and clients' states.

    ``clients`` are by partition, of the engine ``local`` alone, whose clients may keep something
    between rounds.
    """

    round: int
    values: NDArray[np.float32]
    carried: Arrays = field(default_factory=dict)
    clients: Mapping[int, NDArray[np.uint8]] = field(default_factory=dict)


def checkpoint_path(folder: Path, round_: int) -> Path:
    """Where the checkpoint of a round lies."""
    return folder / f"round-{round_:06d}.safetensors"


def checkpoint_paths(folder: Path) -> list[Path]:
    """Of every round that has one, the newest last."""
    found = folder.glob("round-*.safetensors")
    return sorted(found, key=lambda path: (len(path.name), path.name))  # of a million rounds, too


def save_state(folder: Path, state: ServerState, model: nn.Module, spec: ModelSpec) -> Path:
    """Write a checkpoint of ``state``, whose values ``model`` has, and drop all but the last two.

    Raises:
        CheckpointError: if it cannot be written; the ones before are unharmed.
    """
    extra: dict[str, Tensor] = {"round": torch.tensor(state.round)}
    for name, array in state.carried.items():
        extra[f"carried/{name}"] = torch.from_numpy(np.array(array))
    for partition, values in state.clients.items():
        extra[f"client/{partition}"] = torch.from_numpy(np.array(values))
    path = checkpoint_path(folder, state.round)
    write_checkpoint(path, model, spec, extra)
    for old in checkpoint_paths(folder)[:-_KEPT_FILES]:
        old.unlink(missing_ok=True)
    return path


def load_state(folder: Path, spec: ModelSpec, groups: tuple[Group, ...]) -> ServerState:
    """The newest state whose checkpoint is whole; damaged ones are named in the log.

    Raises:
        CheckpointError: if there is none.
    """
    damaged = []
    for path in reversed(checkpoint_paths(folder)):
        try:
            found, model, extra = read_with_extra(path)
            if found != spec:
                raise CheckpointError(f"{path}: is of another model than config.toml says")
            return _state(model, extra, groups)
        except (CheckpointError, KeyError) as error:
            _log.warning("%s; the checkpoint before it is used", error)
            damaged.append(str(error))
    raise CheckpointError(
        f"{folder}: holds no checkpoint to go on from; start the run anew"
        + (f" ({damaged[0]})" if damaged else "")
    )


def _state(model: nn.Module, extra: dict[str, Tensor], groups: tuple[Group, ...]) -> ServerState:
    def under(prefix: str) -> dict[str, NDArray[Any]]:
        return {n.removeprefix(prefix): t.numpy() for n, t in extra.items() if n.startswith(prefix)}

    clients = {int(partition): values for partition, values in under("client/").items()}
    return ServerState(int(extra["round"]), pack(model, groups), under("carried/"), clients)
