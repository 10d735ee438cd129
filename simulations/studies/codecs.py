"""Every codec on one real update: bits a value, error, and time; and coders of the same symbols.

The update is that of one client's epoch on digits: generator and codes of ResNet-56 with s=12 d=72
(its running statistics are so large that they would hide the rest). Of networks and codecs of the
federated study, it is all that travels in the fourth round of one client. Times are medians on one
thread. What was measured is one JSON file, of which the tables in docs/codecs.md are made. Example:

    python -m simulations.studies.codecs
"""

import bz2
import lzma
import time
import zlib
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
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
from csg_core.payload import decode
from federation.recipe import recipe_of
from federation.recipe_file import read_recipe
from server.downlink import Downlink
from server.owed import Owed
from simulations import command
from simulations.command import positive
from simulations.machine import machine
from simulations.pages import DOCS, fill, keep_json
from simulations.studies.federated import RECIPE
from simulations.studies.federated_arms import ARMS, SHORT

PAGE = DOCS / "codecs.md"
_NETWORK = "resnet56"
RESULTS = Path(__file__).parent / "codecs" / f"{_NETWORK}.json"
LINES = ("fp32", "fp32z", "fp16", "uniform:bits=8", "uniform:bits=4", "uniform:bits=2",
         "uniform:bits=1,rotate=true", "ternary", "topk:fraction=0.01",
         "topk:fraction=0.0025,ternary=true", "ecsq:dct=false", "ecsq:step=0.5,codes=0.5",
         "ecsq:step=1", "ecsq", "ecsq:codes=1.5", "ecsq:step=3,codes=4")  # fmt: skip
# that the README does not show
_FURTHER = ("csg56-clip-momentum-ecsq-even", "csg56-tiny-clip-momentum-ecsq-predict",
            "csg-ecsq", "csg-frozen-ecsq", "dense-fp16",
            "dense-int8", "dense-topk", "dense-stc-40")  # fmt: skip
_DIGITS = ("data.name=digits", "data.clients=2", "data.images=400", "data.partition=iid")


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


def arms() -> list[str]:
    """Those whose fourth round is encoded."""
    return list(dict.fromkeys(chain(*SHORT.values(), _FURTHER)))


def measured(repeats: int) -> dict[str, Any]:
    """All that the tables show: bytes, squared error over squared update, and milliseconds."""
    update, parts = update_of(_NETWORK)
    return {
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "network": _NETWORK,
        "values": update.size,
        "codecs": {line: _on_update(codec_named(line), update, parts, repeats) for line in LINES},
        "arms": {arm: _of_arm(arm, repeats) for arm in arms()},
        "coders": _of_coders(update, parts, repeats),
    }


def _on_update(codec: Codec, update: Values, parts: Parts, repeats: int) -> dict[str, float]:
    body, times = _timed(codec, update, parts, repeats)
    error = codec.decode(body, parts) - update
    left = float((error**2).sum() / (update**2).sum())
    return {"bytes": len(body), "left_out": left, **times}


def _of_arm(arm: str, repeats: int) -> dict[str, Any]:
    """What codecs make of the fourth round of an arm, of every tensor, up and down."""
    up, down = _fourth_round(arm)
    found: dict[str, Any] = {"values": up[1].size}
    for way, (codec, values, parts) in (("up", up), ("down", down)):
        body, times = _timed(codec, values, parts, repeats)
        found[way] = {"bytes": len(body), **times}
    return found


def _fourth_round(arm: str) -> list[tuple[Codec, Values, Parts]]:
    """Update and delta of a run's fourth round of one client on digits: codec, values, parts.

    With what is owed of the rounds before, and without the server's momentum.
    """
    recipe = read_recipe(RECIPE, [*ARMS[arm], *_DIGITS])
    client = LocalClient(recipe)
    shard = Shards(recipe, client.device)[0]
    model = build(recipe.model, seed=recipe.run.seed)
    found, values = manifest(model), pack(model)
    downlink, memory = Downlink(recipe, found, values), NOTHING
    owed = Owed(found, recipe.wire.schedule)
    for round_ in range(1, 5):
        before = downlink.held
        down = downlink.predicting(codec_named(recipe.wire.downlink))  # of the deltas before
        target = owed.added_to(values)
        (payload,) = downlink.payloads(target, round_, "train", [0])
        sent = downlink.held
        owed.note(target, sent)
        left_out = 0 if memory.residual is None else memory.residual
        job = Job(payload=payload, shard=shard, round_=round_, partition=0, memory=memory)
        trained = client.train(job)
        whole = pack(client.model) - sent + left_out  # what is encoded
        up = downlink.predicting(recipe.wire.update_codec(found.parts, round_))
        assert isinstance(trained.payload, bytes)
        update = decode(trained.payload, downlink.update_label(round_), up)
        values, memory = sent + update, trained.memory
        owed.settle(round_, values, sent, np.zeros(found.trained, np.float32))
        downlink.answered(0)
    delta = target - before if recipe.wire.deltas else target
    return [(up, whole, found.parts), (down, delta, found.parts)]


def _of_coders(update: Values, parts: Parts, repeats: int) -> dict[str, Any]:
    """The symbols of steps of 1.5 deviations of each tensor, by several libraries."""
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
    return {
        "entropy_bytes": entropy_bits(symbols) / 8,
        "by": {
            name: {"bytes": len(way()), "encode_ms": _ms(way, repeats)}
            for name, way in ways.items()
        },
    }


def _timed(
    codec: Codec, values: Values, parts: Parts, repeats: int
) -> tuple[bytes, dict[str, float]]:
    """What a codec makes of values, and milliseconds to encode and decode them."""
    rng = np.random.default_rng(0)
    body = codec.encode(values, parts, rng)
    return body, {
        "encode_ms": _ms(lambda: codec.encode(values, parts, rng), repeats),
        "decode_ms": _ms(lambda: codec.decode(body, parts), repeats),
    }


def _ms(call: Callable[[], Any], repeats: int) -> float:
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        found.append(1e3 * (time.perf_counter() - began))
    return median(found)


def tables(content: Mapping[str, Any]) -> dict[str, str]:
    """Markdown tables of what was measured, by the names that the page has for them.

    ``left out`` is |error|^2 over |update|^2.
    """
    values, coders = content["values"], content["coders"]
    on_update = [
        "| codec | bytes | bits a value | left out | ms to encode | ms to decode |",
        "| --- | --: | --: | --: | --: | --: |",
        *(
            f"| `{line}` | {of['bytes']:,} | {8 * of['bytes'] / values:.2f} "
            f"| {100 * of['left_out']:.1f} % | {of['encode_ms']:.1f} | {of['decode_ms']:.1f} |"
            for line, of in content["codecs"].items()
        ),
    ]
    of_arms = [
        "| arm | values | bytes up | ms to encode | ms to decode "
        "| bytes down | ms to encode | ms to decode |",
        "| --- |" + " --: |" * 7,
        *(
            f"| `{arm}` | {of['values']:,} | "
            + " | ".join(
                f"{of[way]['bytes']:,} | {of[way]['encode_ms']:.1f} | {of[way]['decode_ms']:.1f}"
                for way in ("up", "down")
            )
            + " |"
            for arm, of in content["arms"].items()
        ),
    ]
    of_coders = [
        "| coder | bytes | of the entropy | ms to encode |",
        "| --- | --: | --: | --: |",
        *(
            f"| {name} | {of['bytes']:,} | {of['bytes'] / coders['entropy_bytes']:.3f} "
            f"| {of['encode_ms']:.1f} |"
            for name, of in coders["by"].items()
        ),
    ]
    where = (
        f"{content['network']}, {values:,} values; one core of {content['machine']['cpu']}, "
        f"{content['date']}."
    )
    found = {"codecs": on_update, "whole-models": of_arms, "coders": of_coders, "where": [where]}
    return {name: "\n".join(lines) for name, lines in found.items()}


def main() -> None:
    parser = command.parser("simulations.studies.codecs", __doc__)
    parser.add_argument("--repeats", type=positive, default=21)
    options = parser.parse_args()
    torch.set_num_threads(1)
    content = measured(options.repeats)
    keep_json(RESULTS, content)
    found = tables(content)
    print("\n\n".join(found.values()))
    fill(found, PAGE)


if __name__ == "__main__":
    command.run(main)
