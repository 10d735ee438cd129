"""What generated filters cost in time and memory, beside the dense network, in one run.

Four arms of each network are stepped in turn, so that all see the same load of the machine, and
compared by the median of the ratios of neighbouring steps:

- dense: the ordinary network;
- csg: generated filters, all kernels from one product per step;
- per-layer: the same network, each layer making its own kernel at every pass, as in the released
  code;
- folded: the generated network folded back to a plain one.

Example: python -m simulations.bench --networks resnet20 --precision bf16
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csg_core import GeneratedConv2d, ModelSpec, build, fold
from csg_core.evaluation import Precision, autocast
from simulations.machine import machine

RESULTS = Path(__file__).parent / "studies" / "bench.json"
ARMS = ("dense", "csg", "per-layer", "folded")
CLASSES = 10
WARM_UP = 3


class PerLayerConv2d(GeneratedConv2d):
    """Makes its own kernel at every pass: the straightforward way, for comparison only."""

    @property
    def weight(self) -> Tensor:
        return self.bank.make_alone(self)


def main() -> None:
    options = _options()
    rows = []
    for network in options.networks:
        for precision in options.precision:
            row = measure(network, precision, options.batch_size, options.repeats)
            rows.append(row)
            print(_line(row), flush=True)
    if options.out is not None:
        answer = {"machine": machine(), "batch_size": options.batch_size, "rows": rows}
        options.out.write_text(json.dumps(answer, indent=1) + "\n")


def measure(network: str, precision: Precision, batch_size: int, repeats: int) -> dict[str, Any]:
    """Ratios to the dense network of a training step and of an evaluation pass, and memory."""
    images, labels = _batch(batch_size)
    models = {arm: _model(network, arm) for arm in ARMS}
    steps = {a: _training_step(m, images, labels, precision) for a, m in models.items()}
    trained = _time_in_turn(steps, repeats)
    passes = {a: _evaluation(m.eval(), images, precision) for a, m in models.items()}
    evaluated = _time_in_turn(passes, repeats * 2)
    return {
        "network": network,
        "precision": precision,
        "dense_step_ms": 1e3 * statistics.median(trained["dense"]),
        "dense_evaluation_ms": 1e3 * statistics.median(evaluated["dense"]),
        "step_ratio": {arm: _ratio(trained, arm) for arm in ARMS[1:]},
        "evaluation_ratio": {arm: _ratio(evaluated, arm) for arm in ARMS[1:]},
        "peak_memory_mb": {arm: _peak_memory(network, arm, precision, batch_size) for arm in ARMS},
    }


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


def _batch(batch_size: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, 32, 32, generator=rng)
    labels = torch.randint(0, CLASSES, (batch_size,), generator=rng)
    return images.contiguous(memory_format=torch.channels_last), labels


def _training_step(
    model: nn.Module, images: Tensor, labels: Tensor, precision: Precision
) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        with autocast(images.device, precision):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _evaluation(model: nn.Module, images: Tensor, precision: Precision) -> Callable[[], None]:
    def evaluation() -> None:
        with torch.inference_mode(), autocast(images.device, precision):
            model(images)

    return evaluation


def _time_in_turn(calls: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    for call in calls.values():
        for _ in range(WARM_UP):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def _ratio(seconds: dict[str, list[float]], arm: str) -> float:
    return statistics.median(
        mine / dense for mine, dense in zip(seconds[arm], seconds["dense"], strict=True)
    )


def _peak_memory(network: str, arm: str, precision: Precision, batch_size: int) -> float:
    """Peak resident megabytes that training steps add, in a process of their own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_memory_of_steps, (network, arm, precision, batch_size))


def _memory_of_steps(network: str, arm: str, precision: Precision, batch_size: int) -> float:
    images, labels = _batch(batch_size)
    Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
    before = _peak_kilobytes()
    step = _training_step(_model(network, arm), images, labels, precision)
    for _ in range(WARM_UP):
        step()
    return (_peak_kilobytes() - before) * 1024 / 1e6


def _peak_kilobytes() -> int:
    (line,) = (
        text for text in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in text
    )
    return int(line.split()[1])


def _line(row: dict[str, Any]) -> str:
    step, evaluation, memory = (
        "  ".join(f"{arm} {value:.{digits}f}" for arm, value in row[key].items())
        for key, digits in (("step_ratio", 3), ("evaluation_ratio", 3), ("peak_memory_mb", 0))
    )
    return (
        f"{row['network']} {row['precision']}: dense step {row['dense_step_ms']:.1f} ms, "
        f"evaluation {row['dense_evaluation_ms']:.1f} ms\n"
        f"  step / dense step:             {step}\n"
        f"  evaluation / dense evaluation: {evaluation}\n"
        f"  peak memory in MB:             {memory}"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--precision", nargs="+", choices=get_args(Precision),
                        default=list(get_args(Precision)))  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--out", type=Path, help=f"JSON file to write, as {RESULTS.name}")
    return parser.parse_args()


if __name__ == "__main__":
    main()
