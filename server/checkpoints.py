"""Checkpoint files: reading any kind this project knows, writing its own."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from csg_core import (
    ModelSpec,
    extra_in,
    from_released,
    from_safetensors,
    is_released,
    to_safetensors,
)
from federation.files import replace_file


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the reason."""


def write_checkpoint(
    path: Path, model: nn.Module, spec: ModelSpec, extra: Mapping[str, Tensor] | None = None
) -> None:
    """Write a safetensors checkpoint; a file already there is replaced whole or kept whole.

    ``extra`` tensors are written along with the model's.

    Raises:
        CheckpointError: if it cannot be written, as on a full disk.
    """
    content = to_safetensors(model, spec, extra)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror}); a file that was there is unchanged"
        ) from error


def read_checkpoint(path: Path) -> tuple[ModelSpec, nn.Module]:
    """The description and the model of a checkpoint, this project's or the paper's authors'.

    No code in a file is ever executed: pickles are read weights-only.

    Raises:
        CheckpointError: if the file is missing, truncated, no checkpoint, or of no known network.
    """
    spec, model, _ = read_with_extra(path)
    return spec, model


def read_with_extra(path: Path) -> tuple[ModelSpec, nn.Module, dict[str, Tensor]]:
    """The same, with the tensors that ``write_checkpoint`` wrote along; raises as it does."""
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; give the file of a checkpoint")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give a checkpoint")
    try:
        if _is_pickle(path):
            return *_from_pickle(path), {}
        state, metadata = _read_safetensors(path)
        return *from_safetensors(state, metadata), extra_in(state)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # whatever else a stranger's tensors and description may bring about
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{path}: is no usable checkpoint ({reason})") from error


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file begins with its header's length, whose lowest byte may be a pickle's 0x80,
    # and the header with a brace.
    return start[8:] != b"{" and (start[:1] == b"\x80" or zipfile.is_zipfile(path))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: is truncated or no checkpoint (neither safetensors nor torch.save)"
        ) from error


def _from_pickle(path: Path) -> tuple[ModelSpec, nn.Module]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise many kinds
        raise CheckpointError(
            f"{path}: is truncated, damaged or holds more than tensors; none of it was executed"
        ) from error
    state = content.get("net", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(t, Tensor) for name, t in state.items()
    ):
        raise CheckpointError(f"{path}: holds no state_dict of tensors")
    if not is_released(state):
        raise CheckpointError(
            f"{path}: is of no network this project knows; it reads its own safetensors "
            "checkpoints and the released ones of Associative Convolutional Layers"
        )
    return from_released(state)
