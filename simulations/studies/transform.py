"""What a change of basis, made of the codes alone, would save of the generator's update.

The gradient of the generator is the kernels' gradient times the codes, so that its update lies
where the codes do. Both ends know the codes. In their eigenbasis, with each code weighted by how
far it moved (which a decoder knows once it has the codes' update), the columns differ in variance,
and the entropy coder is told which is which. The bits are an order-0 entropy by class of columns;
no codec does this yet. The table goes into docs/codecs.md. Example:

    python -m simulations.studies.transform

Shape letters: V values of a slice, D code size, S slices of the network.
"""

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from csg_core import ModelSpec, build, manifest, pack
from csg_core.codecs import Parts
from csg_core.codecs.base import Values
from csg_core.codecs.entropy import entropy_bits
from csg_core.networks import NETWORKS
from simulations.machine import machine
from simulations.studies.codecs import PAGE, update_of
from simulations.studies.pages import fill

_STEPS = (1.0, 1.5, 2.5)  # deviations
_DEAD = 0.6  # where level 1 begins, in steps, as in ecsq
_CLASSES = 16  # of columns, each with a model of its own
Matrix = NDArray[np.float64]


def bases(codes_SD: Matrix, moved_SD: Matrix) -> Iterator[tuple[str, Matrix]]:
    """Orthogonal bases [D, D] of code space, the directions of most energy first."""
    yield "as it is", np.eye(codes_SD.shape[1])
    yield "eigenbasis of the codes", _eigenbasis(codes_SD)
    weights_S1 = np.linalg.norm(moved_SD, axis=1, keepdims=True)
    yield "the same, codes weighted by how far they moved", _eigenbasis(weights_S1 * codes_SD)


def bits_and_error(update_VD: Matrix, step: float, classes: int) -> tuple[float, float]:
    """Bits a value in steps of ``step`` deviations, and the part of the energy left out."""
    size = step * np.sqrt(np.mean(update_VD**2))
    levels_VD = np.sign(update_VD) * np.floor(np.abs(update_VD) / size + 1 - _DEAD)
    used = levels_VD != 0
    shift = np.mean(np.abs(levels_VD[used]) - np.abs(update_VD[used]) / size) if used.any() else 0
    decoded_VD = np.sign(levels_VD) * (np.abs(levels_VD) - shift) * size
    symbols_VD = (levels_VD - levels_VD.min()).astype(np.int32)
    bits = sum(entropy_bits(part.ravel()) for part in np.array_split(symbols_VD, classes, axis=1))
    left = float(np.sum((decoded_VD - update_VD) ** 2) / np.sum(update_VD**2))
    return bits / update_VD.size, left


def table(first: Values, update: Values, parts: Parts, code_size: int) -> str:
    """Markdown: bits a value and what is left out, for each basis and step."""
    generator_VD = _of("generator", update, parts).reshape(-1, code_size)
    codes_SD = _of("codes", first, parts).reshape(-1, code_size)
    moved_SD = _of("codes", update, parts).reshape(-1, code_size)
    steps = "".join(f" {step:g} deviations: bits | left out |" for step in _STEPS)
    lines = [
        f"| basis of the generator's columns |{steps}",
        "| --- |" + " --: | --: |" * len(_STEPS),
    ]
    for name, basis_DD in bases(codes_SD, moved_SD):
        classes = 1 if name == "as it is" else _CLASSES
        found = (bits_and_error(generator_VD @ basis_DD, step, classes) for step in _STEPS)
        cells = "".join(f" {bits:.3f} | {100 * left:.1f} % |" for bits, left in found)
        lines.append(f"| {name} |{cells}")
    return "\n".join(lines)


def _eigenbasis(rows_SD: Matrix) -> Matrix:
    vectors_DD: Matrix = np.linalg.svd(rows_SD, full_matrices=True)[2]
    return vectors_DD.T


def _of(wanted: str, values: Values, parts: Parts) -> Matrix:
    """The values of a group, one after another."""
    ends = np.cumsum([part.size for part in parts])
    tensors = zip(parts, np.split(values, ends[:-1]), strict=True)
    return np.concatenate([t for part, t in tensors if part.group == wanted]).astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.studies.transform",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--network", choices=NETWORKS, default="resnet56")
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = ModelSpec(name=options.network, classes=10)
    update, parts = update_of(options.network)
    model = build(spec, seed=0)
    assert manifest(model).parts[: len(parts)] == tuple(parts)
    first = pack(model)[: update.size]
    where = f"{options.network}, digits; {machine()['cpu']}, {time.strftime('%Y-%m-%d')}."
    tables = {"transform": table(first, update, parts, spec.code_size), "transform-where": where}
    print("\n\n".join(tables.values()))
    fill(tables, PAGE)


if __name__ == "__main__":
    main()
