"""What codecs do to some rounds of training, without training again for each.

A few clients train for some rounds while everything travels in float32. Then the same updates are
sent through each codec as rounds send them: error feedback at every client, deltas from the server,
each against what was given before. What the server has and what clients are given at the end is
compared with float32's by the logits of images that no client has, with the statistics of their
batch: the squared change, as a part of what the last round changed. The updates are those of
float32, so a codec that spoils training looks better here than it is. The table goes into
docs/codecs.md. Example:

    python -m simulations.studies.replay --data cifar10/ --copy "JPEG copy of CIFAR-10"
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.job import Job
from client.local import LocalClient
from client.shard import Shard, Shards
from csg_core import build, manifest, pack, unpack
from csg_core.codecs import Parts, codec_named
from csg_core.codecs.base import Values
from csg_core.networks import NETWORKS
from csg_core.payload import decode
from federation.recipe import recipe_of
from server.downlink import Downlink
from simulations.machine import machine
from simulations.studies.codecs import PAGE
from simulations.studies.pages import fill

LINES = (
    "uniform:bits=4; statistics=ecsq", "ternary; statistics=ecsq",
    "topk:fraction=0.01; statistics=ecsq", "ecsq:fine=1.5,detail=1,dct=false",
    "ecsq:fine=1.5,detail=1", "ecsq:detail=1", "ecsq:step=1", "ecsq", "ecsq:step=2.2",
    "ecsq:step=3",
)  # fmt: skip
_JUDGES = 768  # images by whose logits models are compared
_BATCH = 256


@dataclass(frozen=True)
class Recording:
    """Rounds of training in float32, of R rounds and C clients with N values.

    Attributes:
        parts: of the model.
        first: the model that the first round began with, float32 [N].
        updates: float32 [R, C, N].
        model: any; its values are overwritten.
        judges: normalised images, float32 [B, 3, H, W].
    """

    parts: Parts
    first: Values
    updates: NDArray[np.float32]
    model: nn.Module
    judges: Tensor

    def logits(self, values: Values) -> Tensor:
        """What a model says of the judges, each batch with statistics of its own."""
        unpack(self.model, values)
        self.model.train()
        with torch.no_grad():
            return torch.cat([self.model(batch) for batch in self.judges.split(_BATCH)])


@dataclass(frozen=True, slots=True)
class Replayed:
    """Bytes of a client's payloads in a round, without headers, over the second half of the rounds;
    and the change of the logits that the codec is to blame for.
    """

    up: float
    down: float
    server: float
    clients: float


def record(network: str, data: dict[str, object], *, rounds: int, images: int) -> Recording:
    """Let clients train, all of them in every round, on so many images each."""
    recipe = recipe_of({"model": {"name": network}, "data": data}, "the study")
    client = LocalClient(recipe)
    shards = Shards(recipe, client.device)
    clients = range(recipe.data.clients - 1)  # the last one's images judge
    model = build(recipe.model, seed=recipe.run.seed)
    found = manifest(model)
    downlink = Downlink(recipe, found, pack(model))
    values = first = downlink.first
    updates = np.empty((rounds, len(clients), found.size), np.float32)
    for round_ in range(1, rounds + 1):
        payloads = downlink.payloads(values, round_, "train", [*clients])
        for number, payload in zip(clients, payloads, strict=True):
            whole = shards[number]
            shard = Shard(whole.images, whole.train_rows[:images], whole.holdout_rows)
            job = Job(payload=payload, shard=shard, round_=round_, partition=number)
            trained = client.train(job)
            label = downlink.update_label(round_)
            updates[round_ - 1, number] = decode(trained.payload, label, codec_named("fp32"))
        values = values + updates[round_ - 1].mean(axis=0)
    judges = shards[len(clients)]
    chosen = judges.images.images[judges.train_rows[:_JUDGES]]
    return Recording(found.parts, first, updates, model, judges.images.normalise(chosen))


def replay(recording: Recording, line: str) -> Replayed:
    """Send the recorded updates through a codec, in both directions."""
    codec, rng = codec_named(line), np.random.default_rng(0)
    parts, updates = recording.parts, recording.updates
    exact = model = given = recording.first
    left = np.zeros_like(updates[0])
    up, down = [], []
    for now in updates:
        before, exact = exact, exact + now.mean(axis=0)
        wanted = now + left
        bodies = [codec.encode(values, parts, rng) for values in wanted]
        got = np.stack([codec.decode(body, parts) for body in bodies])
        left = wanted - got
        model = model + got.mean(axis=0)
        delta = codec.encode(model - given, parts, rng)
        given = given + codec.decode(delta, parts)
        up.append(np.mean([len(body) for body in bodies]))
        down.append(len(delta))
    right = recording.logits(exact)
    moved = (recording.logits(before) - right).square().mean()

    def change(values: Values) -> float:
        return float((recording.logits(values) - right).square().mean() / moved)

    half = len(updates) // 2
    return Replayed(float(np.mean(up[half:])), float(np.mean(down[half:])),
                    change(model), change(given))  # fmt: skip


def table(recording: Recording, lines: tuple[str, ...] = LINES) -> str:
    """Markdown: bytes and change of logits, a row for each codec."""
    rows = ["| codec, both ways | kB up | kB down | change at the server | at clients |",
            "| --- | --: | --: | --: | --: |"]  # fmt: skip
    for line in lines:
        found = replay(recording, line)
        rows.append(
            f"| `{line}` | {found.up / 1e3:.1f} | {found.down / 1e3:.1f} "
            f"| {100 * found.server:.1f} % | {100 * found.clients:.1f} % |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.studies.replay",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--data", type=Path, metavar="DIR",
                        help="CIFAR-10; digits, which are built in, without")  # fmt: skip
    parser.add_argument("--copy", default="CIFAR-10", help="what the images are, for the page")
    parser.add_argument("--clients", type=int, default=4, help="of which one's images judge (4)")
    parser.add_argument("--rounds", type=int, default=8, help="(8)")
    parser.add_argument("--images", type=int, default=1000, help="of each client (1000)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data: dict[str, object] = {"clients": options.clients, "partition": "dirichlet"}
    data |= {"dir": str(options.data)} if options.data else {"name": "digits"}
    recording = record(options.network, data, rounds=options.rounds, images=options.images)
    where = (
        f"{options.network}, {recording.updates.shape[2]:,} values; {options.rounds} rounds of "
        f"{options.clients - 1} clients with up to {options.images:,} images of "
        f"{options.copy if options.data else 'digits'}, Dirichlet(0.5); {machine()['cpu']}, "
        f"{time.strftime('%Y-%m-%d')}."
    )
    tables = {"replay": table(recording), "replay-where": where}
    print("\n\n".join(tables.values()))
    fill(tables, PAGE)


if __name__ == "__main__":
    main()
