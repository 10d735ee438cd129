"""Every codec on one real update: bits a value, error, and time; and coders of the same symbols.

The update is that of one client's epoch on digits: generator and codes of ResNet-56 with s=12 d=72
(its running statistics are so large that they would hide the rest). Of networks and codecs of the
federated study, it is all that travels in the fourth round of one client. Times are medians on one
thread. The tables go into docs/codecs.md. Example:

    python -m simulations.studies.codecs
"""

import bz2
import lzma
import time
import zlib
from collections.abc import Callable, Iterable
from itertools import chain
from statistics import median
from typing import Any

import numpy as np
import torch
import zstandard

from client.job import Job
from client.local import LocalClient
from client.memory import NOTHING
from client.shard import Shards
from csg_core import build, manifest, pack
from csg_core.codecs import Codec, Parts, codec_named, total
from csg_core.codecs.base import Values
from csg_core.codecs.entropy import code, entropy_bits
from csg_core.networks import NETWORKS
from csg_core.payload import decode
from federation.recipe import recipe_of
from federation.recipe_file import read_recipe
from server.downlink import Downlink
from simulations import command
from simulations.command import positive
from simulations.machine import machine
from simulations.pages import DOCS, fill
from simulations.studies.federated import RECIPE
from simulations.studies.federated_arms import ARMS, SHORT

PAGE = DOCS / "codecs.md"
LINES = ("fp32", "fp32z", "fp16", "uniform:bits=8", "uniform:bits=4", "uniform:bits=2",
         "uniform:bits=1,rotate=true", "ternary", "topk:fraction=0.01",
         "topk:fraction=0.0025,ternary=true", "ecsq:dct=false", "ecsq:step=0.5,codes=0.5",
         "ecsq:step=1", "ecsq", "ecsq:codes=1.5", "ecsq:step=3,codes=4")  # fmt: skip
# of rivals and schedules that the README does not show
_FURTHER = ("csg-ecsq", "csg-frozen-ecsq", "dense-fp16", "dense-int8", "dense-one-bit",
            "dense-topk", "dense-stc-40")  # fmt: skip
_DIGITS = ("data.name=digits", "data.clients=2", "data.images=400", "data.partition=iid")
_COLUMNS = "| codec | bytes | bits a value | left out | ms to encode | ms to decode |"


def update_of(network: str) -> tuple[Values, Parts]:
    """What one epoch on digits changes in generator and codes, without error feedback."""
    recipe = recipe_of(
        {"model": {"name": network}, "data": {"name": "digits", "clients": 2}}, "the study"
    )
    client = LocalClient(recipe)
    shard = Shards(recipe, client.device)[0]
    model = build(recipe.model, seed=recipe.run.seed)
    found = manifest(model)
    downlink = Downlink(recipe, found, pack(model))
    (payload,) = downlink.payloads(downlink.held, 1, "train", [0])
    trained = client.train(Job(payload=payload, shard=shard, round_=1, partition=0))
    assert isinstance(trained.payload, bytes)
    update = decode(trained.payload, downlink.update_label(1), codec_named("fp32"))
    parts = [part for part in found.parts if part.group in ("generator", "codes")]  # the first ones
    return update[: total(parts)], parts


def codecs(update: Values, parts: Parts, repeats: int) -> str:
    """Markdown: each codec on the update; ``left out`` is |error|^2 over |update|^2."""
    rows = [_row(line, update, parts, repeats) for line in LINES]
    return "\n".join([_COLUMNS, "| --- | --: | --: | --: | --: | --: |", *rows])


def _row(line: str, update: Values, parts: Parts, repeats: int) -> str:
    codec = codec_named(line)
    body, encode, decode_ = _timed(codec, update, parts, repeats)
    error = codec.decode(body, parts) - update
    left = 100 * float((error**2).sum() / (update**2).sum())
    bits = 8 * len(body) / update.size
    return (
        f"| `{line}` | {len(body):,} | {bits:.2f} | {left:.1f} % | {encode:.1f} | {decode_:.1f} |"
    )


def whole_models(arms: Iterable[str], repeats: int) -> str:
    """Markdown: what codecs make of the fourth round of their arms, of every tensor."""
    lines = [
        "| arm | values | bytes up | ms to encode | ms to decode "
        "| bytes down | ms to encode | ms to decode |",
        "| --- |" + " --: |" * 7,
    ]
    for arm in arms:
        found = _fourth_round(arm)
        cells = [f"`{arm}`", f"{found[0][1].size:,}"]
        for codec, values, parts in found:
            body, encode, decode_ = _timed(codec, values, parts, repeats)
            cells += [f"{len(body):,}", f"{encode:.1f}", f"{decode_:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _fourth_round(arm: str) -> list[tuple[Codec, Values, Parts]]:
    """Update and delta of a run's fourth round of one client on digits: codec, values, parts."""
    recipe = read_recipe(RECIPE, [*ARMS[arm], *_DIGITS])
    client = LocalClient(recipe)
    shard = Shards(recipe, client.device)[0]
    model = build(recipe.model, seed=recipe.run.seed)
    found, values = manifest(model), pack(model)
    downlink, memory = Downlink(recipe, found, values), NOTHING
    for round_ in range(1, 5):
        before = downlink.held
        down = downlink.predicting(codec_named(recipe.wire.downlink))  # of the deltas before
        (payload,) = downlink.payloads(values, round_, "train", [0])
        delta = values - before
        job = Job(payload=payload, shard=shard, round_=round_, partition=0, memory=memory)
        trained = client.train(job)
        up = downlink.predicting(recipe.wire.update_codec(found.parts, round_))
        assert isinstance(trained.payload, bytes)
        update = decode(trained.payload, downlink.update_label(round_), up)
        values, memory = downlink.held + update, trained.memory
        downlink.answered(0)
    return [(up, update, found.parts), (down, delta, found.parts)]


def coders(update: Values, parts: Parts, repeats: int) -> str:
    """Markdown: the symbols of steps of 1.5 deviations of each tensor, by several libraries."""
    ends = np.cumsum([part.size for part in parts])
    tensors = np.split(update, ends[:-1])
    steps = np.concatenate([np.full(t.size, 1.5 * np.sqrt(np.mean(t**2))) for t in tensors])
    symbols = np.clip(np.rint(update / steps), -127, 127).astype(np.int32)
    symbols -= symbols.min()
    raw, alphabet = symbols.astype(np.uint8).tobytes(), int(symbols.max()) + 1
    ways: dict[str, Callable[[], bytes]] = {
        "constriction, range coder": lambda: code(symbols, alphabet),
        "zstandard, level 3": lambda: zstandard.compress(raw, 3),
        "zstandard, level 19": lambda: zstandard.compress(raw, 19),
        "zlib, level 9": lambda: zlib.compress(raw, 9),
        "bz2": lambda: bz2.compress(raw),
        "lzma": lambda: lzma.compress(raw),
    }
    bound = entropy_bits(symbols) / 8
    lines = ["| coder | bytes | of the entropy | ms to encode |", "| --- | --: | --: | --: |"]
    for name, way in ways.items():
        size = len(way())
        lines.append(f"| {name} | {size:,} | {size / bound:.3f} | {_ms(way, repeats):.1f} |")
    return "\n".join(lines)


def _timed(codec: Codec, values: Values, parts: Parts, repeats: int) -> tuple[bytes, float, float]:
    """What a codec makes of values, and milliseconds to encode and decode them."""
    rng = np.random.default_rng(0)
    body = codec.encode(values, parts, rng)
    encode = _ms(lambda: codec.encode(values, parts, rng), repeats)
    return body, encode, _ms(lambda: codec.decode(body, parts), repeats)


def _ms(call: Callable[[], Any], repeats: int) -> float:
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - began))
    return median(found)


def main() -> None:
    parser = command.parser("simulations.studies.codecs", __doc__)
    parser.add_argument("--network", choices=NETWORKS, default="resnet56")
    parser.add_argument("--repeats", type=positive, default=21)
    options = parser.parse_args()
    torch.set_num_threads(1)
    update, parts = update_of(options.network)
    here = machine()
    tables = {
        "codecs": codecs(update, parts, options.repeats),
        "whole-models": whole_models(
            dict.fromkeys(chain(*SHORT.values(), _FURTHER)), options.repeats
        ),
        "coders": coders(update, parts, options.repeats),
        "where": f"{options.network}, {update.size:,} values; one core of {here['cpu']}, "
        f"{time.strftime('%Y-%m-%d')}.",
    }
    print("\n\n".join(tables.values()))
    fill(tables, PAGE)


if __name__ == "__main__":
    command.run(main)
