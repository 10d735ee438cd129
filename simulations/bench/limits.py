"""How fast a bare training step is here, and what bounds it.

The arms of a network take turns, a step each, so that all see the same load of the machine. An arm
differs in one thing from the step of a generated network in its precision, in batches of 64; an arm
of several processes has these step at the same time. The smaller network is compiled, too,
where there is a C++ compiler; an arm of the larger takes most of a minute to compile.
"""

import multiprocessing
import os
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
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
COMPILED = "resnet20"
SIZES = (10, 20, 32, 128)
FIRST = "csg, batch of 64"
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

    @property
    def images(self) -> int:
        """Of a step of all processes together."""
        return self.batch_size * self.processes

    def step(self) -> Callable[[], None]:
        """A step on random images, to be made again and again."""
        images, labels = batch(self.batch_size, channels_last=self.channels_last)
        return training_step(self.model(), images, labels, self.precision, compiled=self.compiled)


def arms_of(network: str) -> dict[Precision, dict[str, Arm]]:
    """By precision, a step and what differs from it in one thing."""
    return {
        precision: _variants(Arm(network, precision=precision)) for precision in usable_precisions()
    }


def _variants(first: Arm) -> dict[str, Arm]:
    dense = replace(first, parametrization="dense")
    arms = {
        FIRST: first,
        "dense": dense,
        "contiguous": replace(first, channels_last=False),
    }
    compiler = shutil.which(os.environ.get("CXX", "g++"))  # as torch looks for one
    if first.network == COMPILED and compiler:
        arms |= {
            "torch.compile": replace(first, compiled=True),
            "dense, torch.compile": replace(dense, compiled=True),
        }
    arms |= {f"batch of {size}": replace(first, batch_size=size) for size in SIZES}
    many = torch.get_num_threads()
    if many > 1:
        apart = f"{many} processes of one thread"
        arms |= {
            apart: replace(first, processes=many),
            f"dense, {apart}": replace(dense, processes=many),
        }
    return arms


def measure(
    _images: str | None = None, *, networks: Sequence[str] = NETWORKS, turns: int = 6
) -> dict[str, Any]:
    """Images a second by arm, the share of operators in a step, and what a product reaches."""
    precisions = usable_precisions()
    return {
        "rates": [row for network in networks for row in rates(arms_of(network), turns)],
        "shares": {
            f"{network}, {precision}": shares(Arm(network, precision=precision))
            for network in networks
            for precision in precisions
        },
        "product_gflops": {precision: product_gflops(precision) for precision in precisions},
    }


def rates(arms: Mapping[Precision, Mapping[str, Arm]], turns: int) -> list[dict[str, Any]]:
    """Rows of images a second; ratios are to the first arm of the precision, in the same turn."""
    every = [arm for of in arms.values() for arm in of.values()]
    most = max(arm.processes for arm in every)
    with _Stepping(most) as stepping:
        calls = {
            str(n): partial(stepping.step, arm) if arm.processes > 1 else arm.step()
            for n, arm in enumerate(every)
        }
        timed = time_in_turn(calls, turns)
    seconds = {arm: timed[str(n)] for n, arm in enumerate(every)}
    return [
        {
            **asdict(arm),
            "arm": name,
            "images_per_second": arm.images / statistics.median(seconds[arm]),
            "ratio": statistics.median(
                arm.images / own / (of[FIRST].images / base)
                for own, base in zip(seconds[arm], seconds[of[FIRST]], strict=True)
            ),
            "gflops": arm.images / statistics.median(seconds[arm]) * flops_of_image(arm) / 1e9,
        }
        for of in arms.values()
        for name, arm in of.items()
    ]


class _Stepping:
    """Processes that share out the threads and make steps at the same time; none for one."""

    def __init__(self, processes: int) -> None:
        self._processes, self._pool = processes, None
        if processes > 1:
            context = multiprocessing.get_context("spawn")
            threads = max(1, torch.get_num_threads() // processes)
            barrier = context.Barrier(processes)
            self._pool = context.Pool(processes, _begin, (threads, barrier))

    def __enter__(self) -> "_Stepping":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.terminate()

    def step(self, arm: Arm) -> None:
        """One step in each process."""
        assert self._pool is not None
        self._pool.map(_step_here, [arm] * self._processes, chunksize=1)


# of a process that steps
_barrier: Barrier | None = None
_steps: dict[Arm, Callable[[], None]] = {}


def _begin(threads: int, barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier
    torch.set_num_threads(threads)


def _step_here(arm: Arm) -> None:
    assert _barrier is not None
    if arm not in _steps:
        _steps[arm] = arm.step()
    _barrier.wait(_START_S)  # so that each process takes one; another may have failed
    _steps[arm]()


def flops_of_image(arm: Arm) -> float:
    """Floating-point operations of a step for each image, kernels' generation included."""
    return _flops(Arm(arm.network, arm.parametrization, batch_size=arm.batch_size)) / arm.batch_size


@cache
def _flops(arm: Arm) -> int:
    step = arm.step()
    with FlopCounterMode(display=False) as counted:
        step()
    return int(counted.get_total_flops())


def shares(arm: Arm) -> dict[str, float]:
    """Of the time of a step, by kind of operator."""
    step = arm.step()
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
    lines = ["| network | precision | arm | images a second | of the first | GFLOP/s "
             "| of a matrix product's |",
             "| --- | --- | --- | --: | --: | --: | --: |"]  # fmt: skip
    for row in found["rates"]:
        part = 100 * row["gflops"] / found["product_gflops"][row["precision"]]
        lines.append(f"| {row['network']} | {row['precision']} | {row['arm']} "
                     f"| {row['images_per_second']:,.0f} | {row['ratio']:.2f} "
                     f"| {row['gflops']:.0f} | {part:.0f} % |")  # fmt: skip
    steps = list(found["shares"])
    times = [f"| of a step's time | {' | '.join(steps)} |",
             "| --- |" + " --: |" * len(steps)]  # fmt: skip
    for kind in found["shares"][steps[0]]:
        cells = (f"{100 * found['shares'][step][kind]:.1f} %" for step in steps)
        times.append(f"| {kind} | {' | '.join(cells)} |")
    reached = ", ".join(f"{rate:.0f} in {p}" for p, rate in found["product_gflops"].items())
    product = f"GFLOP/s of a product of {_MATRIX:,} rows and columns: {reached}."
    return {"limits": "\n".join(lines), "profile": "\n".join(times), "product": product}
