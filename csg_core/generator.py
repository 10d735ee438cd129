"""The Convolutional Slice Generator: the small shared network that makes every kernel.

One generator serves a whole network: slice = W . code, without bias (Omidvar et al. 2021,
section 3). W has shape [V, D].

Shape letters: S slices, V values of a slice (s*s*k*k), D code size.
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor, nn

GeneratorKind = Literal["learned", "frozen", "binary"]
GENERATOR_KINDS: tuple[GeneratorKind, ...] = get_args(GeneratorKind)

_COLUMN_LENGTH = 2.0


def paper_std(code_size: int, kind: GeneratorKind = "learned") -> float:
    """Standard deviation of W's entries in the released code.

    Kaiming for a fan-in of ``code_size``; a binary generator is the sign of such a draw, times 0.5.
    """
    if code_size < 1:
        raise ValueError(f"code_size {code_size} cannot be; use 1 or more")
    return 0.5 if kind == "binary" else math.sqrt(2.0 / code_size)


class SliceGenerator(nn.Module):
    """Maps codes to slices with one matrix W (Omidvar et al. 2021, section 3).

    Three kinds:

    - ``learned``: W is a parameter.
    - ``frozen``: W never trains and never travels. It is drawn from ``seed``, or taken from
      elsewhere with ``weight``.
    - ``binary``: W is +std or -std, the sign of a draw from ``seed``; never trains, never travels.

    A seeded W that does not train is rebuilt from integer arithmetic alone, so it is bit-identical
    on any machine and thread count. Its state_dict holds ``draw``, three integers that describe it
    (kind, seed, the bits of std), not W.

    Args:
        slice_size: s, filters and channels of a slice. The paper's are 12 and 16.
        code_size: D, numbers that make a slice. The paper's are 72 and 128.
        kernel_size: k, height and width of the kernels.
        kind: how W comes about, see above.
        seed: seed of the draw, 0 to 2**63 - 1.
        std: standard deviation of W's entries; None gives W's columns a length of about 2, so
            that a step on the codes moves kernels about as far as a step on dense kernels would
            (the best of 0.5 to 8 in short central runs of ResNet-20).
        weight: W itself, shape [s*s*k*k, D], for ``frozen`` (or as the start of ``learned``).

    Raises:
        ValueError: if a size, the kind, the seed or the weight cannot be.
    """

    draw: Tensor | None
    weight: Tensor

    def __init__(
        self,
        slice_size: int = 12,
        code_size: int = 72,
        kernel_size: int = 3,
        *,
        kind: GeneratorKind = "learned",
        seed: int = 0,
        std: float | None = None,
        weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(slice_size, code_size, kernel_size)
        if kind not in GENERATOR_KINDS:
            raise ValueError(
                f"generator {kind!r} is unknown; use one of {', '.join(GENERATOR_KINDS)}"
            )
        check_seed(seed)
        if std is not None and not _is_deviation(std):
            raise ValueError(f"std {std} is no standard deviation; use a positive number")
        seed = int(seed)  # of numpy, as the sizes may be
        self.slice_size = int(slice_size)
        self.code_size = code_size = int(code_size)
        self.kernel_size = int(kernel_size)
        self.kind: GeneratorKind = kind
        self.std = _COLUMN_LENGTH / math.sqrt(self.slice_values) if std is None else std
        if weight is not None:
            self._take(weight)
        elif kind == "learned":
            rng = torch.Generator().manual_seed(seed)
            drawn = torch.randn(self.slice_values, code_size, generator=rng, device="cpu")
            self.weight = nn.Parameter(drawn.mul_(self.std))
            self.register_buffer("draw", None)
        else:
            self.register_buffer("weight", self._draw(seed), persistent=False)
            bits = int(np.float64(self.std).view(np.int64))
            described = [GENERATOR_KINDS.index(kind), seed, bits]
            self.register_buffer("draw", torch.tensor(described, dtype=torch.int64))

    @property
    def slice_values(self) -> int:
        """Numbers in one slice: s * s * k * k."""
        return self.slice_size**2 * self.kernel_size**2

    def forward(self, codes_SD: Tensor) -> Tensor:
        """Slices [S, V] from codes [S, D]."""
        return codes_SD @ self.weight.t()

    def describe(self) -> dict[str, Any]:
        """Everything another machine must agree on for the same codes to mean the same kernels."""
        description: dict[str, Any] = {
            "kind": self.kind,
            "slice_size": self.slice_size,
            "code_size": self.code_size,
            "kernel_size": self.kernel_size,
        }
        if self.draw is not None:
            description |= {"seed": int(self.draw[1]), "std": self.std}
        elif not self.weight.requires_grad:  # it does not travel
            values = self.weight.detach().to("cpu", torch.float32).contiguous().numpy()
            description["sha256"] = hashlib.sha256(values.tobytes()).hexdigest()
        return description

    def extra_repr(self) -> str:
        return (
            f"kind={self.kind}, slice_size={self.slice_size}, code_size={self.code_size}, "
            f"kernel_size={self.kernel_size}"
        )

    def _take(self, weight: Tensor) -> None:
        if not isinstance(weight, Tensor):
            raise ValueError(f"generator weight is a {type(weight).__name__}; give a tensor")
        expected = (self.slice_values, self.code_size)
        if tuple(weight.shape) != expected:
            raise ValueError(
                f"generator weight has shape {tuple(weight.shape)}; slice size {self.slice_size}, "
                f"code size {self.code_size} and kernel size {self.kernel_size} need {expected}"
            )
        if self.kind == "binary":
            raise ValueError("a binary generator is drawn from its seed; use kind='frozen'")
        if weight.layout != torch.strided or not weight.is_floating_point():
            raise ValueError(f"generator weight is {weight.dtype} {weight.layout}; give floats")
        if not bool(torch.isfinite(weight).all()):
            raise ValueError("the generator's weight holds NaN or infinity; give a finite one")
        if not bool(weight.any()):
            raise ValueError("the generator's weight is zero everywhere; give another")
        if self.kind == "learned":
            self.weight = nn.Parameter(weight.detach().clone())
        else:
            self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("draw", None)

    def _draw(self, seed: int) -> Tensor:
        """W from raw Philox bits: no transcendental function, no order of summation."""
        count = self.slice_values * self.code_size
        bits = np.random.Philox(key=seed).random_raw(count)
        if self.kind == "binary":
            unit = np.where(bits >> np.uint64(63), np.float32(1), np.float32(-1))
        else:  # uniform over the odd multiples of 2**-24 in (-1, 1), scaled to unit variance
            odd = 2 * (bits >> np.uint64(40)).astype(np.int64) + 1 - 2**24
            unit = odd.astype(np.float32) * np.float32(2.0**-24) * np.float32(math.sqrt(3.0))
        drawn = (unit * np.float32(self.std)).reshape(self.slice_values, self.code_size)
        return torch.from_numpy(drawn)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """A drawn W is drawn anew in another dtype, so that float32 gets back all of its digits."""
        before = self.weight.dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.draw is not None and self.weight.dtype != before and not self.weight.is_meta:
            self.weight = self._draw(int(self.draw[1])).to(self.weight)
        return self

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        given: Tensor | None = state_dict.get(f"{prefix}draw")
        if self.draw is not None and given is not None and given.shape == self.draw.shape:
            kind, seed, bits = given.tolist()
            std = float(np.int64(bits).view(np.float64))
            if not (0 < kind < len(GENERATOR_KINDS) and seed >= 0 and _is_deviation(std)):
                raise ValueError(f"{prefix}draw {given.tolist()} describes no generator")
            self.kind, self.std = GENERATOR_KINDS[kind], std
            on = given.device if self.weight.is_meta else self.weight.device
            self.weight = self._draw(seed).to(on, self.weight.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _is_deviation(std: float) -> bool:
    """Whether it is one as a float32, in which W is drawn."""
    most = float(np.finfo(np.float32).max) / 2  # draws go to the square root of three
    return float(np.finfo(np.float32).tiny) <= std <= most


def check_seed(seed: object) -> None:
    """Raise ValueError unless it is a seed, a whole number of 0 to 2**63 - 1."""
    _require_whole("seed", seed)
    if not 0 <= seed < 2**63:  # type: ignore[operator]
        raise ValueError(f"seed {seed} is out of range; use 0 to 2**63 - 1")


def _require_whole(name: str, value: object) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError(f"{name} {value!r} cannot be; use a whole number")


def _check_sizes(slice_size: int, code_size: int, kernel_size: int) -> None:
    sizes = {"slice size": slice_size, "code size": code_size, "kernel size": kernel_size}
    for name, value in sizes.items():
        _require_whole(name, value)
        if value < 1:
            raise ValueError(f"{name} {value} is too small; use 1 or more")
    values = slice_size**2 * kernel_size**2
    if code_size > values:
        raise ValueError(
            f"code size {code_size} is larger than the slice it makes: "
            f"{slice_size} x {slice_size} x {kernel_size} x {kernel_size} = {values} values"
        )
