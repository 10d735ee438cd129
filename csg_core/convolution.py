"""A convolution whose kernel is generated from its codes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csg_core.bank import KernelBank
from csg_core.layout import KernelForm


class GeneratedConv2d(nn.Module):
    """Stands in for one ungrouped ``nn.Conv2d``; trains ``codes`` [S, D] instead of a kernel.

    It is made by ``generate_filters``, keeps the convolution's stride, padding, dilation and bias,
    and gets its kernel from the bank of the network's generator. It is not an ``nn.Conv2d``: code
    that writes into ``conv.weight`` of every convolution would write into a value that is made
    anew at the next step.

    Args:
        conv: the convolution to stand in for.
        bank: the bank that makes the kernels.
    """

    def __init__(self, conv: nn.Conv2d, bank: KernelBank) -> None:
        super().__init__()
        self.in_channels = conv.in_channels
        self.out_channels = conv.out_channels
        self.kernel_size = _pair(conv.kernel_size)
        self.stride = _pair(conv.stride)
        self.padding = conv.padding if isinstance(conv.padding, str) else _pair(conv.padding)
        self.dilation = _pair(conv.dilation)
        self.groups = 1
        self.padding_mode = conv.padding_mode
        self.bias = conv.bias
        self.training = conv.training
        self.form = KernelForm(
            out_channels=conv.out_channels,
            in_channels=conv.in_channels,
            kernel_size=bank.generator.kernel_size,
            slice_size=bank.generator.slice_size,
            layout=bank.layout,
            channels_last=_is_channels_last(conv.weight),
        )
        codes = conv.weight.new_zeros(self.form.slices, bank.generator.code_size)
        self.codes = nn.Parameter(codes, requires_grad=conv.weight.requires_grad)
        self.bank = bank
        bank.add(self)

    @property
    def weight(self) -> Tensor:
        """The generated kernel, shape [out, in, k, k]; differentiable in the codes and in W."""
        return self.bank.kernel(self)

    def forward(self, x: Tensor) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            x = F.pad(x, self._pads(), mode=self.padding_mode)
            padding = 0
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation)

    def train(self, mode: bool = True) -> "GeneratedConv2d":
        self.bank.forget()
        super().train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GeneratedConv2d":
        """Convert codes and bias; ``.to(memory_format=...)`` is for 4-D tensors, so for kernels."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        kept = torch.channels_last if self.form.channels_last else torch.contiguous_format
        probe = torch.empty(1, 2, 2, 2, device=self.codes.device).to(memory_format=kept)
        self.form = replace(self.form, channels_last=_is_channels_last(fn(probe)))
        self.bank.forget()
        return self

    def extra_repr(self) -> str:
        codes, code_size = self.codes.shape
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, codes={codes}x{code_size}"
        )

    def _pads(self) -> list[int]:
        """Left, right, top, bottom, in the order ``F.pad`` takes them."""
        pads: list[int] = []
        for axis in (1, 0):
            if self.padding == "valid":
                pads += [0, 0]
            elif self.padding == "same":
                total = self.dilation[axis] * (self.kernel_size[axis] - 1)
                pads += [total // 2, total - total // 2]
            else:
                side = int(self.padding[axis])
                pads += [side, side]
        return pads


def _is_channels_last(kernel: Tensor) -> bool:
    return not kernel.is_contiguous() and kernel.is_contiguous(memory_format=torch.channels_last)


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    height, width = values
    return height, width
