"""The device and the precision that a recipe comes to on this machine."""

import torch

from csg_core.evaluation import Precision, fastest_precision
from federation.recipe import Recipe, RecipeError


def device_named(name: str) -> torch.device:
    """A device that computes here.

    Raises:
        ValueError: if it does not.
    """
    try:
        device = torch.device(name)
        float(torch.zeros((), device=device))
    # AssertionError: torch without CUDA; ImportError: a device of another package
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"{name!r} cannot be used here; use cpu") from error
    return device


def device_of(recipe: Recipe) -> torch.device:
    """The recipe's device, usable here.

    Raises:
        RecipeError: if it is not.
    """
    name = recipe.run.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return device_named(name)
    except ValueError as error:
        raise RecipeError(f"run.device {error}") from error


def precision_of(recipe: Recipe) -> Precision:
    """The recipe's precision, ``auto`` resolved for its device."""
    precision = recipe.train.precision
    return fastest_precision(device_of(recipe)) if precision == "auto" else precision
