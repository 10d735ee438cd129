"""Recipes: everything that defines a run, as TOML, checked by one model."""

import math
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from csg_core import GROUPS, NETWORKS, ModelSpec
from csg_core.codecs import GeneratorSchedule, codec_named
from csg_core.exchange import Group
from csg_core.spec import parametrizations

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10_000_000, strict=True)]

_CLIENT_APP = "client.app:app"  # this package's own
_CLASSES = 10  # of CIFAR-10 and of digits
_IMAGES = {"cifar10": 50_000, "digits": 1437}  # to train on


class RecipeError(ValueError):
    """A recipe that cannot be used; one line that names the key, the value and the remedy."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class DataConfig(_Section):
    """Which images there are, and how they are shared out."""

    name: Literal["cifar10", "digits"] = Field("cifar10", description="data set")
    dir: str | None = Field(None, description="folder of CIFAR-10; else $CSG_DATA_DIR, download")
    clients: Count = Field(10, description="clients that the training images are shared among")
    partition: Literal["iid", "dirichlet", "pathological", "shards"] = Field(
        "iid", description="rule"
    )
    alpha: Positive = Field(0.5, description="of dirichlet: small is uneven")
    min_images: Count = Field(10, description="of dirichlet: fewest images of a client")
    classes_per_client: Count = Field(2, description="of pathological")
    shards_per_client: Count = Field(
        2, description="of shards: equal pieces of the images in the order of their classes"
    )
    holdout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="fraction of its shard that a client keeps for evaluation, where norms stay "
        "with the clients and the server has no whole model",
    )

    def rule(self) -> dict[str, Any]:
        """What shards depend on."""
        more: dict[str, tuple[str, ...]] = {
            "iid": (),
            "dirichlet": ("alpha", "min_images"),
            "pathological": ("classes_per_client",),
            "shards": ("shards_per_client",),
        }
        return {key: getattr(self, key) for key in ("partition", "clients", *more[self.partition])}


class TrainConfig(_Section):
    """Rounds, and what a client does in one."""

    rounds: Count = Field(20, description="rounds of federated training")
    clients_per_round: Count | None = Field(None, description="cohort; none: all clients")
    local_epochs: Count = Field(1, description="passes over its shard that a client makes a round")
    batch_size: Count = Field(64, description="images of a step")
    lr: Positive = Field(0.05, description="learning rate of SGD in round 1")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD; begins anew each round")
    weight_decay: NotNegative = Field(5e-4, description="of SGD")
    lr_schedule: Literal["constant", "cosine", "step"] = Field(
        "constant",
        description="over rounds: cosine to zero, or a tenth from 1/2 and again from 3/4 on",
    )
    clip_norm: Positive | None = Field(None, description="largest norm of a step's gradient")
    batch_norm: Literal["average", "local_statistics", "local"] = Field(
        "average",
        description="norms averaged with the rest; running means and variances kept by each "
        "client; or the norms altogether (FedBN)",
    )
    augment: bool = Field(True, description="shift and mirror training images at random")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of training and evaluation; auto: bf16 where the hardware has it"
    )

    def factor(self, round_: int) -> float:
        """Learning rate of a round, from 1 on, as a fraction of ``lr``."""
        done = (round_ - 1) / self.rounds
        if self.lr_schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        if self.lr_schedule == "step":
            return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
        return 1.0

    def travelling(self) -> tuple[Group, ...]:
        """The groups of tensors that are exchanged."""
        kept: dict[str, tuple[Group, ...]] = {
            "average": (),
            "local_statistics": ("statistics",),
            "local": ("norms", "statistics"),
        }
        return tuple(group for group in GROUPS if group not in kept[self.batch_norm])


class ServerConfig(_Section):
    """How updates are made one, and how long is waited for them."""

    strategy: Literal[
        "fedavg", "fedavgm", "fedadam", "fedyogi", "fedmedian", "fedtrimmedavg", "krum", "fedprox"
    ] = Field("fedavg", description="Flower's strategy of that name")
    options: dict[str, float] = Field(
        default_factory=dict, description="what that strategy takes, as server_momentum or eta"
    )
    min_clients: Count | None = Field(
        None, description="quorum of good updates; none: half of the cohort, at least one"
    )
    round_timeout: float = Field(
        3600.0, gt=0, le=2_592_000, description="seconds for the clients of a round, up to 30 days"
    )
    gather_timeout: NotNegative = Field(
        60.0,
        description="seconds that the first round waits for all of data.clients to connect; then "
        "it goes on with the quorum",
    )
    max_examples: Count | None = Field(
        None, description="examples that a client may claim at most; none: all of the data set's"
    )


class WireConfig(_Section):
    """Codecs by direction."""

    uplink: str = Field("fp32", description="of updates")
    downlink: str = Field("fp32", description="of the model, or of its deltas")
    feedback: bool = Field(
        True, description="clients add what the uplink's codec left out to their next update"
    )
    deltas: bool = Field(
        False, description="send clients what is new since the version they hold, where possible"
    )
    generator_every: Count = Field(
        1,
        description="rounds from one in which a learned generator trains and travels to the next; "
        "codes always do; needs deltas",
    )
    generator_until: Count | None = Field(
        None, description="the last round in which a learned generator trains; needs deltas"
    )

    @field_validator("uplink", "downlink")
    @classmethod
    def _known(cls, line: str) -> str:
        codec_named(line)
        return line

    @model_validator(mode="after")
    def _meaningful(self) -> "WireConfig":
        if not self.deltas and "none" in self.downlink:
            raise ValueError(
                f"downlink {self.downlink!r} would send zeros for a model; set wire.deltas=true"
            )
        if self.schedule != GeneratorSchedule() and not self.deltas:
            raise ValueError(
                f"generator_every {self.generator_every}, generator_until {self.generator_until}: "
                "whole models always hold the generator; set wire.deltas=true"
            )
        return self

    @property
    def schedule(self) -> GeneratorSchedule:
        """The rounds in which a learned generator trains and travels."""
        return GeneratorSchedule(self.generator_every, self.generator_until)


class RunConfig(_Section):
    """Where and how a run runs."""

    engine: Literal["local", "flower"] = Field(
        "local", description="on this machine alone, or Flower's Simulation Engine (Ray)"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of everything that is drawn")
    eval_every: Count = Field(1, description="rounds between evaluations; the last is evaluated")
    checkpoint_every: Count = Field(1, description="rounds between checkpoints")
    dir: str | None = Field(None, description="the run's folder; none: one in runs/")
    device: str = Field("auto", description="auto (cuda if there is one), cpu, cuda, cuda:1 ...")
    client_app: str = Field(
        _CLIENT_APP, description="the ClientApp, as module:name; to simulate others"
    )
    superlink: str | None = Field(
        None,
        description="flower engine: HOST:PORT of a running SuperLink whose SuperNodes are the "
        "clients; none: one is started for a simulation",
    )
    superlink_ca: str | None = Field(
        None, description="file of the certificate that proves run.superlink; none: no encryption"
    )
    patience: Positive = Field(
        120.0,
        description="seconds that csg run waits for a SuperLink that does not answer, or for a "
        "server side that takes the run up",
    )
    interface: str = Field(
        "auto",
        description="network interface of the server whose bytes are recorded, as eth0; auto: with "
        "run.superlink that of the default route; none: no bytes are recorded, at clients neither",
    )
    workers: int = Field(
        1,
        ge=0,
        le=1024,
        strict=True,
        description="local engine: processes that clients train in; 0: one for each of torch's "
        "threads; 1: this process",
    )
    cohort: Count = Field(
        1,
        description="local engine: clients that train at once, models stacked and steps batched, "
        "in this process; 1: one after another",
    )
    client_cpus: Positive = Field(1.0, description="flower engine: CPUs of a simulated client")
    client_gpus: NotNegative = Field(0.0, description="flower engine: GPUs of a simulated client")


class Recipe(_Section):
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
        if run.cohort == 1:
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
        if run.client_app != _CLIENT_APP:
            raise ValueError(
                f"run.cohort {run.cohort} trains clients of {_CLIENT_APP} only, and run.client_app "
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
        """The same with an ordinary network."""
        return self.model_copy(update={"model": self.model.dense_twin()})

    def to_toml(self) -> str:
        """Every value, resolved; keys without a value are left out."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))


def read_recipe(path: Path, settings: Sequence[str] = ()) -> Recipe:
    """The recipe of a TOML file, with ``key=value`` settings over it.

    Raises:
        RecipeError: if the file or a value cannot be used.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: is no TOML ({error})") from error
    for setting in settings:
        _put(content, setting)
    return recipe_of(content, str(path))


def recipe_of(content: dict[str, Any], origin: str) -> Recipe:
    """The recipe of parsed content; ``origin`` is named in errors.

    Raises:
        RecipeError: naming the first value that cannot be.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {_first(error)}") from error


def _put(content: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    section, dot, name = key.strip().partition(".")
    if not equals or not dot:
        raise RecipeError(f"--set {setting}: give section.key=value, as train.rounds=5")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word is a string
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
