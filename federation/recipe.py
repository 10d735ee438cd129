"""Recipes: everything that defines a run, as TOML, checked by one model."""

from dataclasses import replace
from typing import Any

import tomli_w
from pydantic import ValidationError, field_validator, model_validator

from csg_core import NETWORKS, ModelSpec
from csg_core.spec import parametrizations
from federation.data_sets import CLASSES, DATA_SETS
from federation.sections import (
    CLIENT_APP,
    DataConfig,
    RunConfig,
    Section,
    ServerConfig,
    TrainConfig,
)
from federation.wire_section import WireConfig


class RecipeError(ValueError):
    """A recipe that cannot be used; one line that names the key, the value and the remedy."""


class Recipe(Section):
    """A run, complete."""

    model: ModelSpec = ModelSpec(classes=CLASSES)
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    server: ServerConfig = ServerConfig()
    wire: WireConfig = WireConfig()
    run: RunConfig = RunConfig()

    @field_validator("model")
    @classmethod
    def _of_the_data(cls, model: ModelSpec) -> ModelSpec:
        if model.classes not in (None, CLASSES):
            raise ValueError(f"classes {model.classes}: the data has {CLASSES}; leave it out")
        return replace(model, classes=CLASSES)

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
        return self.server.max_examples or DATA_SETS[self.data.name].training

    def dense_twin(self) -> "Recipe":
        """The same as FedAvg has it: an ordinary network, unclipped, sent whole in float32.

        It begins with its seed's model: what a recipe starts from fits no dense network.
        """
        train = self.train.model_copy(update={"clip_norm": None, "generator_lr": 1.0})
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


def recipe_of(content: dict[str, Any], origin: str) -> Recipe:
    """The recipe of parsed content; ``origin`` is named in errors.

    Raises:
        RecipeError: naming the first value that cannot be.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    key = ".".join(str(part) for part in found["loc"])
    message = found["msg"].removeprefix("Value error, ")
    if found["type"] in ("model_type", "dataclass_type"):
        message = f"give a table, as [{key}] with its keys below it"
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
