"""What clients that train at once gain on a GPU: images a second of their steps.

The same batches, which lie on the device already, in steps as ``run.cohort`` takes them (each
client's a branch of one CUDA graph), in those of stacked models by ``torch.func`` (grouped
convolutions, as one graph, too), and in those of one client that are not captured.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn

from client.replicas import Batch, Replicas
from csg_core import ModelSpec, build
from csg_core.evaluation import Precision
from csg_core.images import ImageSet
from federation.sections import TrainConfig
from simulations.bench.part import CLASSES
from simulations.bench.stacked import Stacked
from simulations.machine import device_name

NEEDS_IMAGES = False
NETWORKS = (("resnet20", "csg"), ("resnet56", "csg"))
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
COHORTS = (1, 10, 20)
_BATCH = 64
_WARM_UP = 5  # steps, of which the last is a captured one
_SECONDS = 0.4  # that an arm is timed for, at least


def measure(_images: str | None) -> dict[str, Any] | None:
    """Images a second by network, precision and number of clients; nothing without a GPU."""
    if not torch.cuda.is_available():
        return None
    device = torch.device("cuda")
    rows = [
        {"network": network, "kind": kind, "precision": precision}
        | _speeds(network, kind, precision, device)
        for (network, kind), precision in product(NETWORKS, PRECISIONS)
    ]
    return {"device": device_name(device), "rows": rows}


def tables(found: dict[str, Any]) -> dict[str, str]:
    """Markdown: a row for each network and precision."""
    rows = found["rows"]
    ways = {"at once": "at_once", "stacked": "stacked"}  # by what is said of them
    ways = {said: way for said, way in ways.items() if all(way in row for row in rows)}
    heads = "".join(f" {count} {said} |" for said in ways for count in COHORTS)
    lines = [
        f"| network, precision | one by one, not captured |{heads}",
        "| --- | --: |" + " --: |" * len(ways) * len(COHORTS),
    ]
    for row in rows:
        together = [row[way][str(count)] for way in ways.values() for count in COHORTS]
        cells = "".join(f" {speed:,.0f} |" for speed in [row["one_by_one"], *together])
        lines.append(f"| {row['network']}, {row['kind']}, {row['precision']} |{cells}")
    lines.append(f"\nImages a second on one {found['device']}, batches of {_BATCH}.")
    return {"cohort": "\n".join(lines)}


def _speeds(network: str, kind: Any, precision: Precision, device: torch.device) -> dict[str, Any]:
    data, batches = _batches(max(COHORTS), device)
    model = build(ModelSpec(name=network, parametrization=kind)).to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    at_once, stacked, one_by_one = {}, {}, 0.0
    for count in COHORTS:
        replicas = Replicas(model, count, data, train=TrainConfig(), mu=0.0, precision=precision)
        replicas.set_lr(1e-3)
        at_once[str(count)] = _images_per_second(
            partial(replicas.step, 0, batches[:count]), images=count * _BATCH
        )
        if count == 1:
            one_by_one = _images_per_second(
                partial(replicas.step_uncaptured, 0, batches[:1]), images=_BATCH
            )
        del replicas  # their graphs' memory
        stacked[str(count)] = _stacked_speed(model, data, batches[:count], precision)
    return {"one_by_one": one_by_one, "at_once": at_once, "stacked": stacked}


def _stacked_speed(
    model: nn.Module, data: ImageSet, batches: Sequence[Batch], precision: Precision
) -> float:
    stacked = Stacked(model, len(batches), data, train=TrainConfig(), precision=precision)
    stacked.set_lr(1e-3)
    beside = torch.cuda.Stream()  # where work is begun that is captured afterwards
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(_WARM_UP):
            stacked.step(batches)
    torch.cuda.current_stream().wait_stream(beside)
    stacked.capture(batches)
    return _images_per_second(partial(stacked.replay, batches), images=len(batches) * _BATCH)


def _images_per_second(step: Callable[[], object], images: int) -> float:
    for _ in range(_WARM_UP):
        step()
    torch.cuda.synchronize()
    steps, began = 0, time.perf_counter()
    while steps < _WARM_UP or time.perf_counter() - began < _SECONDS:
        step()
        torch.cuda.synchronize()
        steps += 1
    return steps * images / (time.perf_counter() - began)


def _batches(count: int, device: torch.device) -> tuple[ImageSet, list[Batch]]:
    rng = torch.Generator().manual_seed(0)
    shape = (count * _BATCH, 32, 32, 3)
    images = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8).to(device)
    labels = torch.randint(0, CLASSES, (count * _BATCH,), generator=rng).to(device)
    parts = zip(images.split(_BATCH), labels.split(_BATCH), strict=True)
    return ImageSet(images, labels, CLASSES), list(parts)
