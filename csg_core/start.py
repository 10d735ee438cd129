"""Where training starts: the first codes (and, fitted to a dense network, the first generator).

Three starts:

- ``fan_in``: every kernel starts with He's standard deviation for its own fan-in,
  sqrt(2 / (in * k * k)), whatever the generator's scale.
- ``paper``: codes are standard normal, as in the released code; with its generator every kernel
  starts with a standard deviation of about 1.4 in every layer.
- ``dense``: codes and generator are fitted to the kernels that the convolutions hold, so that a
  trained network is compressed rather than trained anew.

Shape letters: S slices, V values of a slice, D code size.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from csg_core.convolution import GeneratedConv2d
from csg_core.generator import SliceGenerator
from csg_core.layout import slices_from_kernels

Start = Literal["fan_in", "paper", "dense"]
STARTS: tuple[Start, ...] = get_args(Start)

# The slice matrix has surplus entries, which no kernel uses; filling them with the approximation
# and factorising again lowers the error of what is used. It settles within a few sweeps.
_SURPLUS_SWEEPS = 10


def draw_codes(
    layers: Sequence[GeneratedConv2d],
    generator: SliceGenerator,
    *,
    start: Literal["fan_in", "paper"],
    seed: int,
) -> None:
    """Draw every layer's codes in place, from ``seed`` and the order of the layers.

    Raises:
        ValueError: if the generator's weight is zero everywhere, or not finite.
    """
    rng = torch.Generator()
    rng.manual_seed(int(np.random.SeedSequence((seed, 1)).generate_state(1, np.uint64)[0]))
    root_mean_square = float(generator.weight.detach().double().pow(2).mean().sqrt())
    if not 0 < root_mean_square < math.inf:
        raise ValueError(
            f"the generator's weight has a root mean square of {root_mean_square:g}; give it "
            "finite values, not all of them zero"
        )
    with torch.no_grad():
        for layer in layers:
            drawn = torch.randn(layer.codes.shape, generator=rng, device="cpu")
            if start == "fan_in":
                fan_in = layer.in_channels * math.prod(layer.kernel_size)
                per_unit = root_mean_square * math.sqrt(generator.code_size)
                drawn *= math.sqrt(2.0 / fan_in) / per_unit
            layer.codes.copy_(drawn)


def fit_to_kernels(
    layers: Sequence[GeneratedConv2d],
    kernels: Sequence[Tensor],
    generator: SliceGenerator,
) -> list[float]:
    """Fit codes, and W if it is learned, to the given kernels in the least-squares sense.

    The slice matrix [S, V] of all kernels is approximated by its best approximation of rank D
    (truncated singular value decomposition); its surplus entries, which are cut off again, are
    free. With a frozen or binary generator only the codes are fitted.

    Returns:
        For each layer the relative error |K - K'| / |K| of the kernel that it makes now.
    """
    pairs = list(zip(layers, kernels, strict=True))
    cut = [slices_from_kernels([kernel.double()], layer.form)[0] for layer, kernel in pairs]
    used = [slices_from_kernels([torch.ones_like(k)], layer.form)[0] for layer, k in pairs]
    slices_SV, used_SV = torch.cat(cut), torch.cat(used).bool()
    weight_VD, codes_SD = _factorise(slices_SV, used_SV, generator)
    errors = []
    with torch.no_grad():
        if generator.kind == "learned":
            generator.weight.copy_(weight_VD)
        for (layer, kernel), codes in zip(pairs, codes_SD.split([*map(len, cut)]), strict=True):
            layer.codes.copy_(codes)
            wanted, made = kernel.double(), layer.bank.make_alone(layer).double()
            errors.append(float((made - wanted).norm() / wanted.norm().clamp_min(1e-30)))
    return errors


def _factorise(
    slices_SV: Tensor, used_SV: Tensor, generator: SliceGenerator
) -> tuple[Tensor, Tensor]:
    filled = slices_SV
    fixed = None if generator.kind == "learned" else generator.weight.detach().double()
    inverse = None if fixed is None else torch.linalg.pinv(fixed)
    column_norm = generator.std * math.sqrt(generator.slice_values)
    for _ in range(_SURPLUS_SWEEPS):
        if fixed is None or inverse is None:
            basis_VD = _leading_directions(filled, generator)
            weight_VD, codes_SD = basis_VD * column_norm, filled @ basis_VD / column_norm
        else:
            weight_VD, codes_SD = fixed, filled @ inverse.t()
        if bool(used_SV.all()):
            break
        filled = torch.where(used_SV, slices_SV, codes_SD @ weight_VD.t())
    return weight_VD, codes_SD


def _leading_directions(slices_SV: Tensor, generator: SliceGenerator) -> Tensor:
    """Orthonormal [V, D]: the D leading right singular vectors, completed at random if fewer."""
    S, V = slices_SV.shape
    wanted = min(generator.code_size, S, V)
    if S < V:
        values, left = torch.linalg.eigh(slices_SV @ slices_SV.t())
        leading = slices_SV.t() @ left[:, -wanted:]
        kept = values[-wanted:] > values[-1] * 1e-14
        leading = leading[:, kept]
    else:
        leading = torch.linalg.eigh(slices_SV.t() @ slices_SV)[1][:, -wanted:]
    spare = generator.weight.detach().double()[:, leading.shape[1] :]
    basis: Tensor = torch.linalg.qr(torch.cat([leading, spare], dim=1))[0]
    return basis


def check_finite(kernels: Sequence[tuple[str, nn.Conv2d]]) -> None:
    """Raise ValueError naming the first convolution whose kernel holds NaN or infinity."""
    for name, conv in kernels:
        if not bool(torch.isfinite(conv.weight).all()):
            raise ValueError(
                f"{name}.weight holds NaN or infinity; start='dense' needs a trained, finite kernel"
            )
