"""How fast a bare training step is here, and what bounds it.

Every arm differs from the first in one thing, or from the dense one; those in bf16 from the ones in
bf16, which is what clients do where the processor has instructions for it. An arm is measured in
processes of its own; the arms take turns, and the ratio to the first is of the same turn.
"""

import multiprocessing
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from csg_core import ModelSpec, build
from csg_core.evaluation import Precision
from simulations.bench.part import batch, time_in_turn, training_step
from simulations.bench.steps import usable_precisions

NEEDS_IMAGES = False
NETWORKS = ("resnet20", "resnet56")
SIZES = (10, 32, 128)
_IMAGES = 1_000  # that an arm is timed on, at least
_START_S = 600.0
_MATRIX = 2048  # rows and columns of the product that stands for what the processor can do
_TYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
_SHARES = {  # of operators' names
    "convolutions forward": ("mkldnn_convolution", "cudnn_convolution", "thnn_conv2d"),
    "convolutions backward": ("convolution_backward",),
    "batch normalisation": ("native_batch_norm", "native_batch_norm_backward"),
    "matrix products": ("mm", "bmm", "addmm"),
    "activations": ("relu", "relu_", "clamp_min", "clamp_min_", "threshold_backward"),
    "copies": ("copy_", "clone", "contiguous", "index", "index_put_"),
}


@dataclass(frozen=True, slots=True)
class Arm:
    """How a step is made."""

    network: str
    parametrization: str = "csg"
    precision: Precision = "fp32"
    channels_last: bool = True
    compiled: bool = False
    batch_size: int = 64
    processes: int = 1  # the threads are shared out among them

    def model(self) -> nn.Module:
        """A network, ready to train."""
        model = build(ModelSpec(name=self.network, parametrization=self.parametrization))
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model.train()


def arms_of(network: str) -> dict[str, Arm]:
    """A step in float32, and what differs from it in one thing; the same in bf16, where usable.

    The precision that clients take here has more arms: compiled steps, and sizes of batches.
    """
    first = Arm(network)
    arms = {"csg, float32, channels_last, batch of 64, one process": first} | _variants(first)
    taken, prefix = first, ""
    if "bf16" in usable_precisions():
        taken, prefix = replace(first, precision="bf16"), "bf16, "
        arms["bf16"] = taken
        arms |= {prefix + name: arm for name, arm in _variants(taken).items()}
    arms |= {f"{prefix}batch of {size}": replace(taken, batch_size=size) for size in SIZES}
    dense = replace(taken, parametrization="dense")
    arms |= {
        f"{prefix}torch.compile": replace(taken, compiled=True),
        f"{prefix}dense, torch.compile": replace(dense, compiled=True),
    }
    return arms | {f"{prefix}dense, {name}": arm for name, arm in _apart(dense).items()}


def _variants(base: Arm) -> dict[str, Arm]:
    return {
        "dense": replace(base, parametrization="dense"),
        "contiguous": replace(base, channels_last=False),
    } | _apart(base)


def _apart(base: Arm) -> dict[str, Arm]:
    many = torch.get_num_threads()
    if many == 1:
        return {}
    return {f"{many} processes of one thread": replace(base, processes=many)}


def measure(
    _images: str | None = None, *, networks: Sequence[str] = NETWORKS, turns: int = 1
) -> dict[str, Any]:
    """Images a second by arm, the share of operators in a step, and what a product reaches."""
    precisions = usable_precisions()
    return {
        "rates": [row for network in networks for row in _rates(network, turns)],
        "shares": {
            f"{network}, {precision}": shares(Arm(network, precision=precision))
            for network in networks
            for precision in precisions
        },
        "product_gflops": {precision: product_gflops(precision) for precision in precisions},
    }


def _rates(network: str, turns: int) -> list[dict[str, Any]]:
    arms = arms_of(network)
    found: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(turns):
        for name, arm in arms.items():
            found[name].append(rate(arm))
    first, *_ = found.values()
    return [
        {
            **asdict(arms[name]),
            "arm": name,
            "images_per_second": statistics.median(rates),
            "ratio": statistics.median(a / b for a, b in zip(rates, first, strict=True)),
            "gflops": statistics.median(rates) * flops_of_image(arms[name]) / 1e9,
        }
        for name, rates in found.items()
    ]


def rate(arm: Arm) -> float:
    """Images a second of all processes of an arm together."""
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // arm.processes)
    barrier = context.Barrier(arm.processes)
    with context.Pool(arm.processes, _begin, (threads, barrier)) as pool:
        rates = pool.map(_rate_here, [arm] * arm.processes, chunksize=1)
        pool.close()
        pool.join()  # so that they clean up behind torch.compile
        return sum(rates)


_barrier: Barrier | None = None  # of a measuring process


def _begin(threads: int, barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier
    torch.set_num_threads(threads)


def _rate_here(arm: Arm) -> float:
    assert _barrier is not None
    images, labels = batch(arm.batch_size, channels_last=arm.channels_last)
    step = training_step(arm.model(), images, labels, arm.precision, compiled=arm.compiled)
    step()  # compiles
    _barrier.wait(_START_S)  # another process may have failed
    repeats = max(8, _IMAGES // arm.batch_size)
    seconds = time_in_turn({"step": step}, repeats)["step"]
    return arm.batch_size / statistics.median(seconds)


def flops_of_image(arm: Arm) -> float:
    """Floating-point operations of a step for each image, kernels' generation included."""
    images, labels = batch(arm.batch_size)
    step = training_step(replace(arm, compiled=False).model(), images, labels, "fp32")
    with FlopCounterMode(display=False) as counted:
        step()
    return float(counted.get_total_flops()) / arm.batch_size


def shares(arm: Arm) -> dict[str, float]:
    """Of the time of a step, by kind of operator."""
    images, labels = batch(arm.batch_size)
    step = training_step(arm.model(), images, labels, arm.precision)
    step()
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(3):
            step()
    times = {e.key.removeprefix("aten::"): e.self_cpu_time_total for e in profiled.key_averages()}
    whole = sum(times.values())
    found = {kind: sum(times.get(n, 0.0) for n in of) / whole for kind, of in _SHARES.items()}
    return found | {"all else": 1 - sum(found.values())}


def product_gflops(precision: Precision) -> float:
    """Of a product of square matrices, a yardstick; convolutions in float32 go beyond it."""
    a, b = torch.randn(2, _MATRIX, _MATRIX, dtype=_TYPES[precision])
    seconds = time_in_turn({"product": lambda: torch.mm(a, b)}, 10)["product"]
    return 2 * _MATRIX**3 / statistics.median(seconds) / 1e9


def tables(found: dict[str, Any]) -> dict[str, str]:
    """Markdown: images a second, and where the time of a step goes."""
    lines = ["| network | arm | images a second | of the first | GFLOP/s | of a product's |",
             "| --- | --- | --: | --: | --: | --: |"]  # fmt: skip
    for row in found["rates"]:
        part = 100 * row["gflops"] / found["product_gflops"][row["precision"]]
        lines.append(f"| {row['network']} | {row['arm']} | {row['images_per_second']:,.0f} "
                     f"| {row['ratio']:.2f} | {row['gflops']:.0f} | {part:.0f} % |")  # fmt: skip
    steps = list(found["shares"])
    times = [f"| of a step's time | {' | '.join(steps)} |",
             "| --- |" + " --: |" * len(steps)]  # fmt: skip
    for kind in found["shares"][steps[0]]:
        cells = (f"{100 * found['shares'][step][kind]:.1f} %" for step in steps)
        times.append(f"| {kind} | {' | '.join(cells)} |")
    reached = ", ".join(f"{rate:.0f} in {p}" for p, rate in found["product_gflops"].items())
    product = f"GFLOP/s of a product of {_MATRIX:,} rows and columns: {reached}."
    return {"limits": "\n".join(lines), "profile": "\n".join(times), "product": product}
