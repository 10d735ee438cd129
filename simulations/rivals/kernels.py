"""Kernels of a network's convolutions as functions of other parameters, by torch's parametrize."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Kernel(nn.Module, ABC):
    """A kernel [O, I, k, k] from a parametrization's tensors, in float32 whatever autocast says."""

    def forward(self, *tensors: Tensor) -> Tensor:
        device = tensors[0].device.type
        with torch.autocast(device, enabled=False):
            kernel = self.kernel(*tensors)
        return kernel.contiguous(memory_format=torch.channels_last)

    @abstractmethod
    def kernel(self, *tensors: Tensor) -> Tensor:
        """The kernel, [O, I, k, k]."""


def convert(model: nn.Module, kernel_of: Callable[[nn.Conv2d], Kernel | None], seed: int) -> None:
    """Give every ungrouped convolution the kernel that ``kernel_of`` makes for it, if it makes one.

    Values are drawn from ``seed``; the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for conv in _convolutions(model):
            kernel = kernel_of(conv)
            if kernel is not None:
                parametrize.register_parametrization(conv, "weight", kernel)


def _convolutions(model: nn.Module) -> Iterator[nn.Conv2d]:
    yield from [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
