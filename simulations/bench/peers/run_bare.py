"""Bare steps of the same work: what a round would take if it were nothing else.

As many processes as torch would use threads share out the clients, one thread each: forward,
backward and SGD of our dense network in the fastest precision, on batches of a client's sizes that
lie there. Nothing is sent, set, averaged, augmented or evaluated. Argument: the folder of the work.
"""

import multiprocessing
import sys
import time
from collections.abc import Callable
from itertools import chain
from multiprocessing.synchronize import Barrier
from pathlib import Path

import torch

from csg_core import ModelSpec, build
from simulations.bench.part import batch, training_step
from simulations.bench.peers.plain import Work, report
from simulations.bench.steps import usable_precisions

_START_S = 600.0

# of a process that steps
_barrier: Barrier | None = None
_steps: dict[int, Callable[[], None]] = {}


def _begin(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier
    torch.set_num_threads(1)


def _make(sizes: list[int]) -> None:
    """A step of each size."""
    assert _barrier is not None
    for size in set(sizes) - set(_steps):
        model = build(ModelSpec(name="resnet20", parametrization="dense")).train()
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        _steps[size] = training_step(model, *batch(size), usable_precisions()[-1])
    _barrier.wait(_START_S)  # so that each process takes one share
    for size in sizes:
        _steps[size]()


def main() -> None:
    work = Work.of(Path(sys.argv[1]))
    sizes = [
        [len(rows) for rows in torch.arange(len(work.shard(client))).split(work.batch_size)]
        for client in range(work.clients)
    ]
    processes = torch.get_num_threads()
    shares = [list(chain.from_iterable(sizes[place::processes])) for place in range(processes)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes, _begin, (context.Barrier(processes),)) as pool:
        for round_ in range(1, work.rounds + 1):
            began = time.perf_counter()
            pool.map(_make, shares, chunksize=1)
            report(round_, time.perf_counter() - began, None)


if __name__ == "__main__":
    main()
