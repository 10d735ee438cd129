"""A recipe's file, with settings over it; what a new run would pass over is refused."""

import tomllib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from datetime import date, time
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from csg_core import build, manifest
from csg_core.codecs import Nothing, codec_named
from csg_core.spec import OF_GENERATOR
from federation.recipe import Recipe, RecipeError, recipe_of
from federation.sections import PARTITIONS, RunConfig


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
    """The content of a file with settings in it, whose keys need not be any."""
    content = deepcopy(content)
    for setting in settings:
        _put(content, setting)
    return content


def _new_recipe(content: dict[str, Any], origin: str, settings: Sequence[str] = ()) -> Recipe:
    """Of a file's content, with ``settings`` in it, to which errors are put down if there are.

    What of the file a setting makes useless has its default, so that the recipe is whole again.
    """
    origin, content = "--set" if settings else origin, deepcopy(content)
    recipe = recipe_of(content, origin)
    set_ = {setting.partition("=")[0].strip() for setting in settings}
    for key, causes, reason in _unused(recipe):
        section, _, name = key.partition(".")
        default = getattr(getattr(Recipe(), section), name)
        value = content.get(section, {}).get(name, default)
        of_file = value != default and causes is not None and not set_ & causes
        if key in set_ or of_file:
            raise RecipeError(f"{origin}: {key} {value!r} {reason}")
        content.get(section, {}).pop(name, None)
    recipe = recipe_of(content, origin)
    if reason := _ruinous(recipe):
        raise RecipeError(f"{origin}: {reason}")
    refuse_elsewhere(recipe, origin)
    return recipe


def _unused(recipe: Recipe) -> Iterator[tuple[str, set[str] | None, str]]:
    """Keys that a run of this recipe passes over, the keys that make it so, and why.

    With None a file may have the key all the same, as a dense recipe says what its generated twin
    would be.
    """
    data, model = recipe.data, recipe.model
    if data.name == "digits":
        why = "is of CIFAR-10, and data.name is digits, which scikit-learn brings"
        yield "data.dir", {"data.name"}, f"{why}; leave it out, or set that"
    for rule, keys in PARTITIONS.items():
        why = f"goes with data.partition={rule}, and it is {data.partition}; leave it out"
        for key in keys if rule != data.partition else ():
            yield f"data.{key}", {"data.partition"}, f"{why}, or set that"
    if model.parametrization != "csg" or model.generator != "learned":
        for key in ("train.generator_lr", "wire.generator_every", "wire.generator_until"):
            why = "is for a learned generator, and there is none; leave it out"
            yield key, {"model.parametrization", "model.generator"}, why
    if model.parametrization == "csg" and model.generator == "learned":
        why = "is for model.generator=frozen or binary; run.seed draws a learned one"
        yield "model.generator_seed", {"model.generator"}, f"{why}; leave it out"
    for name in OF_GENERATOR if model.parametrization != "csg" else ():
        why = f"is of generated filters, and model.parametrization is {model.parametrization}"
        yield f"model.{name}", None, f"{why}; leave it out"


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
        line = getattr(wire, way)
        if codec_named(line) == Nothing():
            return (
                f"wire.{way} 'none' sends nothing, so that nothing is learned; give it to single "
                "groups, as 'fp16; norms=none'"
            )
        if not codec_named(line).bears_statistics and _sends_statistics(recipe):
            return (
                f"wire.{way} {line!r} loses running statistics, or all else beside them; give them "
                "a codec of their own, as '...; statistics=fp16', or leave them with the clients, "
                "train.batch_norm=local_statistics"
            )
    return ""


def _sends_statistics(recipe: Recipe) -> bool:
    """Whether the network has running statistics that travel."""
    return bool(manifest(build(recipe.model), recipe.train.travelling()).count("statistics"))


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


def _is_text(section: str, name: str) -> bool:
    """Whether a key of a recipe is a string, or one of several kinds of values."""
    field = Recipe.model_fields.get(section)
    keys = getattr(field and field.annotation, "model_fields", {})
    annotation = keys[name].annotation if name in keys else None
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    return str in kinds


def _put(content: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot or not section or not name:
        raise RecipeError(f"--set {setting}: give section.key=value, as train.rounds=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
    if not isinstance(value, str) and (isinstance(value, date | time) or _is_text(section, name)):
        value = text.strip()  # as run.dir=2026-01-31, or run.dir=0.10
    table = content.setdefault(section, {})
    *tables, last = name.split(".")
    place = section
    for inner in tables:
        table = table.setdefault(inner, {}) if isinstance(table, dict) else None
        place = f"{place}.{inner}"
    if not isinstance(table, dict):
        raise RecipeError(f"--set {setting}: {place} is no table of the recipe")
    table[last] = value
