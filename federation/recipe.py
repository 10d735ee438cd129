"""Recipes: everything that defines a run, as TOML, checked by one model."""

import tomllib
from collections.abc import Sequence
from dataclasses import replace
from datetime import date, time
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError, field_validator, model_validator

from csg_core import NETWORKS, ModelSpec
from csg_core.codecs import codec_named
from csg_core.spec import parametrizations
from federation.sections import (
    CLIENT_APP,
    DataConfig,
    RunConfig,
    Section,
    ServerConfig,
    TrainConfig,
    WireConfig,
)

_CLASSES = 10  # of CIFAR-10 and of digits
_IMAGES = {"cifar10": 50_000, "digits": 1437}  # to train on


class RecipeError(ValueError):
    """A recipe that cannot be used; one line that names the key, the value and the remedy."""


class Recipe(Section):
    """A run, complete."""

    model: ModelSpec = ModelSpec(classes=_CLASSES)
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    server: ServerConfig = ServerConfig()
    wire: WireConfig = WireConfig()
    run: RunConfig = RunConfig()

    @field_validator("model")
    @classmethod
    def _of_the_data(cls, model: ModelSpec) -> ModelSpec:
        if model.classes not in (None, _CLASSES):
            raise ValueError(f"classes {model.classes}: the data has {_CLASSES}; leave it out")
        return replace(model, classes=_CLASSES)

    @model_validator(mode="after")
    def _consistent(self) -> "Recipe":
        if self.model.name not in NETWORKS:
            raise ValueError(
                f"model.name {self.model.name!r} is unknown; use one of {', '.join(NETWORKS)}"
            )
        if self.model.parametrization not in parametrizations():
            raise ValueError(
                f"model.parametrization {self.model.parametrization!r} is unknown; use one of "
                f"{', '.join(parametrizations())}"
            )
        if self.cohort > self.data.clients:
            raise ValueError(
                f"train.clients_per_round {self.cohort} is more than data.clients "
                f"{self.data.clients}; ask for at most that many"
            )
        if self.quorum > self.cohort:
            raise ValueError(
                f"server.min_clients {self.quorum} is more than the cohort of {self.cohort}; "
                "no round could succeed"
            )
        if self.server.start_with != "model" and self.server.start_from is None:
            raise ValueError(
                f"server.start_with {self.server.start_with!r} goes with server.start_from; set "
                "that too"
            )
        whole = self.server.start_from is not None and self.server.start_with == "model"
        if whole and self.train.batch_norm != "average":
            raise ValueError(
                f"train.batch_norm {self.train.batch_norm!r} has clients begin with norms of the "
                "seed's, which do not fit a trained model; set server.start_with=generator, or "
                "train.batch_norm=average"
            )
        if self.run.superlink is not None and self.run.engine != "flower":
            raise ValueError(
                f"run.superlink {self.run.superlink!r} goes with run.engine=flower; set that too"
            )
        if self.run.superlink_ca is not None and self.run.superlink is None:
            raise ValueError(
                f"run.superlink_ca {self.run.superlink_ca!r} goes with run.superlink; set that too"
            )
        if self.train.batch_norm != "average" and not self.data.holdout:
            raise ValueError(
                f"train.batch_norm {self.train.batch_norm} leaves the server no whole model to "
                "evaluate; set data.holdout, as 0.1, so that clients evaluate"
            )
        return self

    @model_validator(mode="after")
    def _trains_at_once(self) -> "Recipe":
        run = self.run
        if run.cohort in (None, 1):
            return self
        if run.engine != "local":
            raise ValueError(
                f"run.cohort {run.cohort} goes with run.engine=local; leave it out, or set that"
            )
        if run.workers != 1:
            raise ValueError(
                f"run.cohort {run.cohort} trains in one process, and run.workers is {run.workers}; "
                "leave one of them out"
            )
        if run.client_app != CLIENT_APP:
            raise ValueError(
                f"run.cohort {run.cohort} trains clients of {CLIENT_APP} only, and run.client_app "
                f"is {run.client_app!r}; leave one of them out"
            )
        return self

    @property
    def cohort(self) -> int:
        """Clients of a round."""
        return self.train.clients_per_round or self.data.clients

    @property
    def quorum(self) -> int:
        """Good updates that a round needs."""
        return self.server.min_clients or max(1, self.cohort // 2)

    @property
    def clients_evaluate(self) -> bool:
        """Whether clients evaluate on held-out images, and not the server on the test images."""
        return self.train.batch_norm != "average"

    @property
    def most_examples(self) -> int:
        """Examples that a client may claim."""
        return self.server.max_examples or _IMAGES[self.data.name]

    def dense_twin(self) -> "Recipe":
        """The same as FedAvg has it: an ordinary network, unclipped, sent whole in float32.

        It begins with its seed's model: what a recipe starts from fits no dense network.
        """
        train = self.train.model_copy(update={"clip_norm": None})
        plain: dict[str, Any] = {
            "strategy": "fedavg",
            "options": {},
            "start_from": None,
            "start_with": "model",
        }
        server = self.server.model_copy(update=plain)
        twin = {"train": train, "server": server, "wire": WireConfig()}
        return self.model_copy(update={"model": self.model.dense_twin(), **twin})

    def to_toml(self) -> str:
        """Every value, resolved; keys without a value are left out."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


def read_recipe(path: Path, settings: Sequence[str] = (), *, dense: bool = False) -> Recipe:
    """The recipe of a TOML file, or its dense twin, with ``key=value`` settings over it.

    Raises:
        RecipeError: if the file or a value cannot be used.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: is no TOML ({error})") from error
    if dense:
        content = recipe_of(content, str(path)).dense_twin().model_dump(exclude_none=True)
    for setting in settings:
        _put(content, setting)
    recipe = _validated(content, str(path), settings)
    refuse_passed_over(recipe, str(path), settings)
    return recipe


def refuse_passed_over(recipe: Recipe, origin: str, settings: Sequence[str] = ()) -> None:
    """Refuse what of a new recipe a run would pass over; ``origin`` is named in errors.

    Raises:
        RecipeError: naming the first such value.
    """
    if reason := _passed_over(recipe):
        raise RecipeError(f"{_origin(origin, reason.split()[0], settings)}: {reason}")


def _passed_over(recipe: Recipe) -> str:
    """What of a new recipe a run would pass over, or be ruined by; runs of before may have it."""
    data, wire, run = recipe.data, recipe.wire, recipe.run
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
    others = {"local": ("client_cpus", "client_gpus"), "flower": ("workers",)}
    of_machine = tuple(key for keys in others.values() for key in keys)
    for key in others[run.engine] if run.superlink is None else of_machine:
        value = getattr(run, key)
        if value == RunConfig.model_fields[key].default:
            continue
        if run.superlink is not None:
            return (
                f"run.{key} {value:g} is for clients on this machine, and the clients are those of "
                f"run.superlink {run.superlink!r}; leave it out"
            )
        engine = "flower" if run.engine == "local" else "local"
        return f"run.{key} {value:g} goes with run.engine={engine}; leave it out, or set that"
    return ""


def recipe_of(content: dict[str, Any], origin: str) -> Recipe:
    """The recipe of parsed content; ``origin`` is named in errors.

    Raises:
        RecipeError: naming the first value that cannot be.
    """
    return _validated(content, origin)


def _validated(content: dict[str, Any], origin: str, settings: Sequence[str] = ()) -> Recipe:
    """The recipe; in errors a value that a setting gave is put down to it, and not to the file."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise RecipeError(f"{_origin(origin, key, settings)}: {_first(error)}") from error


def _origin(origin: str, key: str, settings: Sequence[str]) -> str:
    return "--set" if key in [of.partition("=")[0].strip() for of in settings] else origin


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
    for inner in tables:
        table = table.setdefault(inner, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise RecipeError(f"--set {setting}: {section} is no table of the recipe")
    table[last] = value


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    key = ".".join(str(part) for part in found["loc"])
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{key} is unknown; {_known_keys(found['loc'])}"
    if not isinstance(found["input"], str | int | float | None):
        return f"{key}: {message}" if key else message
    return f"{key} = {found['input']!r}: {message}"


def _known_keys(place: tuple[int | str, ...]) -> str:
    sections = Recipe.model_fields
    if len(place) < 2 or place[0] not in sections:
        return f"a recipe has {', '.join(sections)}"
    section = sections[str(place[0])].annotation
    keys = getattr(section, "model_fields", None) or getattr(section, "__dataclass_fields__", {})
    return f"[{place[0]}] has {', '.join(keys)}"
