"""What generated filters cost in time and memory, beside the dense network.

Four arms of each network are stepped in turn, and compared by the median of the ratios of
neighbouring steps:

- dense: the ordinary network;
- csg: generated filters, all kernels from one product per step;
- per-layer: the same network, each layer making its own kernel at every pass, as in the released
  code;
- folded: the generated network folded back to a plain one.
"""

import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from csg_core import GeneratedConv2d, ModelSpec, build, fold
from csg_core.evaluation import Precision, autocast, fastest_precision
from simulations.bench.part import WARM_UP, batch, time_in_turn, training_step

NEEDS_IMAGES = False
ARMS = ("dense", "csg", "per-layer", "folded")
NETWORKS = ("resnet20", "resnet56")
_BATCH = 64


class PerLayerConv2d(GeneratedConv2d):
    """Makes its own kernel at every pass: the straightforward way, for comparison only."""

    @property
    def weight(self) -> Tensor:
        return self.bank.make_alone(self)


def measure(
    _images: str | None = None,
    *,
    networks: Sequence[str] = NETWORKS,
    size: int = _BATCH,
    repeats: int = 15,
) -> list[dict[str, Any]]:
    """A row for each network, in every precision that this processor is made for."""
    return [
        compare(network, precision, size, repeats)
        for network in networks
        for precision in usable_precisions()
    ]


def usable_precisions() -> list[Precision]:
    """float32, and bfloat16 where there are instructions for it."""
    fastest = fastest_precision(torch.device("cpu"))
    return [p for p in get_args(Precision) if p in ("fp32", fastest)]


def compare(network: str, precision: Precision, size: int, repeats: int) -> dict[str, Any]:
    """Ratios to the dense network of a training step and of an evaluation pass, and memory."""
    images, labels = batch(size)
    models = {arm: _model(network, arm) for arm in ARMS}
    steps = {a: training_step(m, images, labels, precision) for a, m in models.items()}
    trained = time_in_turn(steps, repeats)
    passes = {a: _evaluation(m.eval(), images, precision) for a, m in models.items()}
    evaluated = time_in_turn(passes, repeats * 2)
    return {
        "network": network,
        "precision": precision,
        "dense_step_ms": 1e3 * statistics.median(trained["dense"]),
        "dense_evaluation_ms": 1e3 * statistics.median(evaluated["dense"]),
        "step_ratio": {arm: _ratio(trained, arm) for arm in ARMS[1:]},
        "evaluation_ratio": {arm: _ratio(evaluated, arm) for arm in ARMS[1:]},
        "peak_memory_mb": {arm: _peak_memory(network, arm, precision, size) for arm in ARMS},
    }


def tables(found: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Markdown: steps, evaluations and memory."""
    lines = [
        "| network, precision | step: csg | per-layer | folded | evaluation: csg | per-layer "
        "| folded | peak MB: dense | csg |",
        "| --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in found:
        ratios = [row[kind][arm] for kind in ("step_ratio", "evaluation_ratio") for arm in ARMS[1:]]
        cells = [f"{row['network']} {row['precision']}", *(f"{ratio:.3f}" for ratio in ratios)]
        cells += [f"{row['peak_memory_mb'][arm]:.0f}" for arm in ("dense", "csg")]
        lines.append(f"| {' | '.join(cells)} |")
    return {"steps": "\n".join(lines)}


def _model(network: str, arm: str) -> nn.Module:
    dense = arm == "dense"
    model = build(ModelSpec(name=network, parametrization="dense" if dense else "csg"))
    if arm == "folded":
        model = fold(model)
    if arm == "per-layer":
        for module in model.modules():
            if isinstance(module, GeneratedConv2d):
                module.__class__ = PerLayerConv2d
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _evaluation(model: nn.Module, images: Tensor, precision: Precision) -> Callable[[], None]:
    def evaluation() -> None:
        with torch.inference_mode(), autocast(images.device, precision):
            model(images)

    return evaluation


def _ratio(seconds: dict[str, list[float]], arm: str) -> float:
    return statistics.median(
        mine / dense for mine, dense in zip(seconds[arm], seconds["dense"], strict=True)
    )


def _peak_memory(network: str, arm: str, precision: Precision, size: int) -> float:
    """Peak resident megabytes that training steps add, in a process of their own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_memory_of_steps, (network, arm, precision, size))


def _memory_of_steps(network: str, arm: str, precision: Precision, size: int) -> float:
    images, labels = batch(size)
    Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
    before = _peak_kilobytes()
    step = training_step(_model(network, arm), images, labels, precision)
    for _ in range(WARM_UP):
        step()
    return (_peak_kilobytes() - before) * 1024 / 1e6


def _peak_kilobytes() -> int:
    (line,) = (
        text for text in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in text
    )
    return int(line.split()[1])
