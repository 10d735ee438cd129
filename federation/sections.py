"""What every key of a recipe means: the sections of its TOML."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from csg_core import GROUPS
from csg_core.entries import Group

DataSet = Literal["cifar10", "digits"]
Partition = Literal["iid", "dirichlet", "pathological", "shards"]
Schedule = Literal["constant", "cosine", "step"]  # of the learning rate
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, le=10_000_000, strict=True)]

# rules by which images are shared out, and the keys that are for each alone
PARTITIONS: dict[Partition, tuple[str, ...]] = {
    "iid": (),
    "dirichlet": ("alpha", "min_images"),
    "pathological": ("classes_per_client",),
    "shards": ("shards_per_client",),
}

CLIENT_APP = "client.app:app"  # this package's own


def lr_factor(schedule: Schedule, done: float) -> float:
    """Learning rate as a fraction of the first, when this fraction of the training is done."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if schedule == "step":
        return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01
    return 1.0


class Section(BaseModel):
    """A table of a recipe; keys that it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, coerce_numbers_to_str=True)


class DataConfig(Section):
    """Which images there are, and how they are shared out."""

    name: DataSet = Field("cifar10", description="data set")
    dir: str | None = Field(None, description="folder of CIFAR-10; else $CSG_DATA_DIR, download")
    images: Count | None = Field(
        None, description="training images that are shared out, drawn by the seed; none: all"
    )
    clients: Count = Field(10, description="clients that the training images are shared among")
    partition: Partition = Field("iid", description="rule")
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
        keys = ("partition", "clients", "images", *PARTITIONS[self.partition])
        return {key: getattr(self, key) for key in keys}


class TrainConfig(Section):
    """Rounds, and what a client does in one."""

    rounds: Count = Field(20, description="rounds of federated training")
    clients_per_round: Count | None = Field(None, description="cohort; none: all clients")
    local_epochs: Count = Field(1, description="passes over its shard that a client makes a round")
    batch_size: Count = Field(64, description="images of a step")
    lr: Positive = Field(0.05, description="learning rate of SGD in round 1")
    generator_lr: Positive = Field(
        1.0, description="learning rate of a learned generator, as a fraction of lr"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD; begins anew each round")
    weight_decay: NotNegative = Field(5e-4, description="of SGD")
    lr_schedule: Schedule = Field(
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
        return lr_factor(self.lr_schedule, (round_ - 1) / self.rounds)

    def travelling(self) -> tuple[Group, ...]:
        """The groups of tensors that are exchanged."""
        kept: dict[str, tuple[Group, ...]] = {
            "average": (),
            "local_statistics": ("statistics",),
            "local": ("norms", "statistics"),
        }
        return tuple(group for group in GROUPS if group not in kept[self.batch_norm])


class ServerConfig(Section):
    """How updates are made one, and how long is waited for them."""

    strategy: Literal[
        "fedavg", "fedavgm", "fedadam", "fedyogi", "fedmedian", "fedtrimmedavg", "krum", "fedprox"
    ] = Field("fedavg", description="Flower's strategy of that name")
    options: dict[str, NotNegative] = Field(
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
    start_from: str | None = Field(
        None, description="checkpoint that the first model is taken from; none: the seed makes it"
    )
    start_with: Literal["model", "generator"] = Field(
        "model",
        description="what is taken from that checkpoint: all that travels, or the generator, which "
        "fits other networks too",
    )


class RunConfig(Section):
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
        CLIENT_APP, description="the ClientApp, as module:name; to simulate others"
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
    cohort: Count | None = Field(
        None,
        description="local engine: clients that train at once, each on a copy of the model, in "
        "this process; none: ten on a GPU, else one after another",
    )
    client_cpus: Positive = Field(1.0, description="flower engine: CPUs of a simulated client")
    client_gpus: NotNegative = Field(0.0, description="flower engine: GPUs of a simulated client")

    @field_validator("superlink")
    @classmethod
    def _address(cls, address: str | None) -> str | None:
        if address is None:
            return None
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65_536:
            raise ValueError("give HOST:PORT, as fl.example.org:8000")
        return address
