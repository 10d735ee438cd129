"""The model that a run begins with, where that is not the one that its seed makes."""

from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from csg_core import ModelSpec, build, generators, manifest, pack
from csg_core.codecs.base import FLOAT16_MAX, Values
from csg_core.spec import SHAPE_OF_GENERATOR
from federation.recipe import Recipe
from server.checkpoints import CheckpointError, read_checkpoint


def started(recipe: Recipe) -> Values | None:
    """The model that ``server.start_from`` leads to, packed, float32; None if that names nothing.

    Raises:
        CheckpointError: naming the file, if it is no checkpoint, or does not fit the recipe.
    """
    server = recipe.server
    if server.start_from is None:
        return None
    path = Path(server.start_from)
    spec, model = read_checkpoint(path)
    try:
        if server.start_with == "generator":
            model = _first(recipe, spec, model)
        else:
            _check_same(recipe, spec, model)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    values = pack(model, recipe.train.travelling())
    largest = float(np.abs(values).max())
    if not largest <= FLOAT16_MAX:
        raise CheckpointError(f"{path}: holds a value of {largest:g}; {FLOAT16_MAX:g} can be sent")
    return values


def _first(recipe: Recipe, spec: ModelSpec, model: nn.Module) -> nn.Module:
    """The recipe's first model, but with another one's generator."""
    ours = recipe.model
    if ours.parametrization != "csg" or ours.generator != "learned":
        raise ValueError(
            f"the recipe's network is {_said(ours)}, which learns no generator; leave out "
            "server.start_from, or set model.generator=learned"
        )
    weight = generator_weight(model)
    if weight is None:
        raise ValueError(f"is {_said(spec)}, without a generator; take one with generated filters")
    _agree(ours, spec, SHAPE_OF_GENERATOR)
    return build(ours, seed=recipe.run.seed, generator_weight=weight)


def generator_weight(model: nn.Module) -> Tensor | None:
    """The weight of the generator of a checkpoint's model, detached; None if it has none."""
    generator = next(iter(generators(model).values()), None)
    return None if generator is None else generator.weight.detach()


def _check_same(recipe: Recipe, spec: ModelSpec, model: nn.Module) -> None:
    """Whether this is the recipe's network, down to what its seed makes and nobody sends."""
    keys = (field.name for field in fields(ModelSpec) if field.name not in ("start", "classes"))
    _agree(recipe.model, spec, keys)
    ours = build(recipe.model, seed=recipe.run.seed)
    if (what := manifest(ours).difference(manifest(model))) is not None:
        raise ValueError(f"holds another model than the recipe's: {what}")
    sent, theirs = {entry.name for entry in manifest(ours).entries}, model.state_dict()
    for name, tensor in ours.state_dict().items():
        known = name in sent or name.endswith("num_batches_tracked")
        if not known and not torch.equal(theirs[name], tensor):
            raise ValueError(
                f"{name} never travels, and is not the one that run.seed={recipe.run.seed} makes; "
                "set run.seed to the one that it was made with"
            )


def _agree(ours: ModelSpec, theirs: ModelSpec, keys: Iterable[str]) -> None:
    for key in keys:
        found, wanted = getattr(theirs, key), getattr(ours, key)
        if found != wanted:
            raise ValueError(
                f"is {_said(theirs)}, whose {key} is {found!r}; the recipe's is {wanted!r}, set "
                f"model.{key} to the same"
            )


def _said(spec: ModelSpec) -> str:
    kind = "" if spec.generator == "learned" or spec.parametrization != "csg" else spec.generator
    return f"{spec.name} {spec.kind} {kind}".rstrip()
