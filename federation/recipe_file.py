"""A recipe's file, with settings over it; what a new run would pass over is refused."""

import tomllib
from collections.abc import Collection, Sequence
from copy import deepcopy
from datetime import date, time
from pathlib import Path
from typing import Any

from csg_core.codecs import GeneratorSchedule, Nothing, codec_named
from federation.recipe import Recipe, RecipeError, recipe_of
from federation.sections import PARTITIONS, DataConfig, RunConfig


def read_recipe(path: Path, settings: Sequence[str] = (), *, dense: bool = False) -> Recipe:
    """The recipe of a TOML file, or its dense twin, with ``key=value`` settings over it.

    Raises:
        RecipeError: if the file or a value cannot be used.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: is no TOML ({error})") from error
    if dense:
        content = recipe_of(content, str(path)).dense_twin().model_dump(exclude_none=True)
    try:
        return _new_recipe(_with(content, settings), str(path), settings)
    except RecipeError:
        if settings:
            _new_recipe(content, str(path))  # else it is the settings that are named
        raise


def _with(content: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    content = deepcopy(content)
    for setting in settings:
        _put(content, setting)
    return content


def _new_recipe(content: dict[str, Any], origin: str, settings: Sequence[str] = ()) -> Recipe:
    """Of a file's content, with ``settings`` in it, to which errors are put down if there are."""
    origin = "--set" if settings else origin
    recipe = recipe_of(content, origin)
    keys = {setting.partition("=")[0].strip() for setting in settings}
    reasons = _unused_of_data(recipe.data, keys), _unused_of_generators(recipe), _ruinous(recipe)
    if reason := next(filter(None, reasons), ""):
        raise RecipeError(f"{origin}: {reason}")
    refuse_elsewhere(recipe, origin)
    return recipe


def _unused_of_data(data: DataConfig, set_: Collection[str]) -> str:
    """What of the data would not be looked at; a file's keys may be, if the rule was set anew."""
    if data.dir is not None and data.name == "digits":
        return f"data.dir {data.dir!r}: digits are in no folder; leave it out, or set data.name"
    for rule, keys in PARTITIONS.items():
        for key in keys if rule != data.partition else ():
            value, asked = getattr(data, key), f"data.{key}" in set_ or "data.partition" not in set_
            if asked and value != DataConfig.model_fields[key].default:
                return (
                    f"data.{key} {value:g} goes with data.partition={rule}, and it is "
                    f"{data.partition}; leave it out, or set that"
                )
    return ""


def _unused_of_generators(recipe: Recipe) -> str:
    """What is for a learned generator, where there is none."""
    model, train, wire = recipe.model, recipe.train, recipe.wire
    if model.parametrization == "csg" and model.generator == "learned":
        return ""
    if train.generator_lr != 1:
        return (
            f"train.generator_lr {train.generator_lr:g} is for a learned generator, and there is "
            "none; leave it out"
        )
    if wire.schedule != GeneratorSchedule():
        return (
            f"wire.generator_every {wire.generator_every}, generator_until {wire.generator_until} "
            "are for a learned generator, and there is none; leave them out"
        )
    return ""


def _ruinous(recipe: Recipe) -> str:
    """What keeps a run from coming to anything; runs of before may have it."""
    data, wire = recipe.data, recipe.wire
    if data.holdout and recipe.train.batch_norm == "average":
        return (
            f"data.holdout {data.holdout:g}: with train.batch_norm=average the server evaluates, "
            "and nobody would look at those images; leave it out"
        )
    if not wire.deltas and not codec_named(wire.downlink).holds_models:
        return (
            f"wire.downlink {wire.downlink!r} is for what is new in a model, and ruins one that is "
            "sent whole; set wire.deltas=true, or wire.downlink=fp16"
        )
    for way in ("uplink", "downlink"):
        if codec_named(getattr(wire, way)) == Nothing():
            return (
                f"wire.{way} 'none' sends nothing, so that nothing is learned; give it to single "
                "groups, as 'fp16; norms=none'"
            )
    return ""


def refuse_elsewhere(recipe: Recipe, origin: str) -> None:
    """Refuse what is for clients that run in another way; ``origin`` is named in errors.

    Raises:
        RecipeError: naming the first such value.
    """
    run = recipe.run
    others = {"local": ("client_cpus", "client_gpus"), "flower": ("workers",)}
    of_machine = tuple(key for keys in others.values() for key in keys)
    for key in others[run.engine] if run.superlink is None else of_machine:
        value = getattr(run, key)
        if value == RunConfig.model_fields[key].default:
            continue
        if run.superlink is not None:
            raise RecipeError(
                f"{origin}: run.{key} {value:g} is for clients on this machine, and the clients "
                f"are those of run.superlink {run.superlink!r}; leave it out"
            )
        engine = "flower" if run.engine == "local" else "local"
        raise RecipeError(
            f"{origin}: run.{key} {value:g} goes with run.engine={engine}; leave it out, or set "
            "that"
        )


def _put(content: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot:
        raise RecipeError(f"--set {setting}: give section.key=value, as train.rounds=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    if isinstance(value, date | time):  # as run.dir=2026-01-31
        value = text.strip()
    table = content.setdefault(section, {})
    *tables, last = name.split(".")
    place = section
    for inner in tables:
        table = table.setdefault(inner, {}) if isinstance(table, dict) else None
        place = f"{place}.{inner}"
    if not isinstance(table, dict):
        raise RecipeError(f"--set {setting}: {place} is no table of the recipe")
    table[last] = value
