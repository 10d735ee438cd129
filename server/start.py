"""The model that a run begins with, where that is not the one that its seed makes."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from csg_core import Manifest, ModelSpec, manifest, pack, split
from federation.recipe import Recipe
from server.checkpoints import CheckpointError, read_checkpoint

Values = NDArray[np.float32]


def started(recipe: Recipe, ours: Manifest, first: Values) -> Values | None:
    """The packed model with what ``server.start_from`` names; None if that names nothing.

    Args:
        ours: of the recipe's model, the groups that travel.
        first: the model that the seed makes, packed, float32 [ours.size].

    Raises:
        CheckpointError: if the file is no checkpoint, or holds nothing of the kind.
    """
    server = recipe.server
    if server.start_from is None:
        return None
    path = Path(server.start_from)
    spec, model = read_checkpoint(path)
    groups = recipe.train.travelling()
    theirs, values = manifest(model, groups), pack(model, groups)
    if server.start_with == "model":
        if (other := ours.difference(theirs)) is not None:
            raise CheckpointError(f"{path}: holds another model than the recipe's: {other}")
        return values
    found = {(e.name, e.shape): array for e, array in split(values, theirs.entries).items()}
    mixed = first.copy()
    made = {e: array for e, array in split(mixed, ours.entries).items() if e.group == "generator"}
    if not made:
        raise CheckpointError(
            f"{path}: the recipe's model has no learned generator that it could give its own to"
        )
    for entry, array in made.items():
        if (entry.name, entry.shape) not in found:
            wanted = " x ".join(map(str, entry.shape))
            raise CheckpointError(
                f"{path}: holds no generator of {wanted} values, as the recipe's model has; it is "
                f"{_said(spec)}"
            )
        array[:] = found[entry.name, entry.shape]
    return mixed


def _said(spec: ModelSpec) -> str:
    sizes = f" s={spec.slice_size} d={spec.code_size}" if spec.parametrization == "csg" else ""
    learned = "" if spec.generator == "learned" or not sizes else f" {spec.generator}"
    return f"{spec.name} {spec.parametrization}{sizes}{learned}"
