"""Recipes by name, and the options of commands that read one."""

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path

from federation.recipe import Recipe, RecipeError
from federation.recipe_file import read_recipe

_FOLDER = Path(__file__).parent / "recipes"
_DENSE = "-dense"


def recipe_names() -> list[str]:
    """All recipes of this package; each has a twin ``-dense``, unless it is dense itself."""
    names = []
    for path in sorted(_FOLDER.glob("*.toml")):
        model = tomllib.loads(path.read_text("utf-8")).get("model", {})
        dense = model.get("parametrization") == "dense"
        names += [path.stem] if dense else [path.stem, path.stem + _DENSE]
    return names


def add_recipe_options(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add RECIPE and ``--set``."""
    parser.add_argument(
        "recipe",
        metavar="RECIPE",
        nargs=None if required else "?",
        help=f"{', '.join(recipe_names())}, or a TOML file",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a value of the recipe, as train.rounds=5 (again for more)",
    )


def set_options(values: Sequence[str]) -> list[str]:
    """Arguments of a command that give it these values, KEY=VALUE, by ``--set``."""
    return [part for value in values for part in ("--set", value)]


def recipe_from(options: argparse.Namespace) -> tuple[str, Recipe]:
    """The recipe's name and the recipe that the options ask for.

    Raises:
        RecipeError: if there is no such recipe, or a value cannot be used.
    """
    asked: str = options.recipe
    if asked.endswith(".toml") or "/" in asked:
        path = Path(asked)
        if path.is_dir():
            raise RecipeError(f"{asked}: is a folder; give a recipe's TOML file or its name")
        if not path.is_file():
            raise RecipeError(f"{asked}: no such file; give a recipe's TOML file or its name")
        return path.stem, read_recipe(path, options.set)
    if asked not in recipe_names():
        raise RecipeError(
            f"recipe {asked!r} is unknown; use one of {', '.join(recipe_names())}, or a TOML file"
        )
    path = _FOLDER / f"{asked.removesuffix(_DENSE)}.toml"
    return asked, read_recipe(path, options.set, dense=asked.endswith(_DENSE))
