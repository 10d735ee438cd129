"""What changes of basis save of the updates of generator and codes.

The kernels' gradient is nearly even over a kernel's places, and so ``ecsq`` writes the generator's
update by spatial frequency. The other bases are made of what both ends have: the generator's
gradient is the kernels' gradient times the codes, so that its columns lie where the codes do, each
weighted by how far it moved, which a decoder knows once it has the codes' update; the codes'
gradient is the kernels' times the generator. No codec uses those two. The bits are an order-0
entropy by class. The table goes into docs/codecs.md. Example:

    python -m simulations.studies.transform

Shape letters: V values of a slice, D code size, S slices of the network.
"""

import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from csg_core import ModelSpec, build, manifest, pack
from csg_core.codecs import Part, Parts
from csg_core.codecs.base import Values
from csg_core.codecs.ecsq import energies
from csg_core.codecs.entropy import entropy_bits
from csg_core.codecs.spatial import bands_of, to_frequencies
from csg_core.networks import NETWORKS
from simulations import command
from simulations.machine import machine
from simulations.pages import fill
from simulations.studies.codecs import PAGE, update_of

_STEPS = (1.0, 1.5, 2.5)  # deviations
_COLUMNS = 8  # of a class
Matrix = NDArray[np.float64]
Classes = NDArray[np.int64]


def table(first: Values, update: Values, parts: Parts) -> str:
    """Markdown: bits a value and what is left out, for each basis and step."""
    steps = "".join(f" {step:g} deviations: bits | left out |" for step in _STEPS)
    lines = [f"| update |{steps}", "| --- |" + " --: | --: |" * len(_STEPS)]
    for name, turned, classes in ways(first, update, parts):
        found = (bits_and_error(turned, classes, step) for step in _STEPS)
        cells = "".join(f" {bits:.3f} | {100 * left:.1f} % |" for bits, left in found)
        lines.append(f"| {name} |{cells}")
    return "\n".join(lines)


def ways(first: Values, update: Values, parts: Parts) -> Iterator[tuple[str, Matrix, Classes]]:
    """Each way to write an update: its name, the values in their basis, and a class for each.

    Args:
        first: the model that both ends have, of the same parts: a generator and codes.
        update: what it changed by.
    """
    (generator,) = (part for part in parts if part.group == "generator")
    size = generator.grid.inner
    codes_SD, moved_SD = (_of("codes", v, parts).reshape(-1, size) for v in (first, update))
    held_VD, changed_VD = (_of("generator", v, parts).reshape(-1, size) for v in (first, update))
    classes_D = np.arange(size) // _COLUMNS
    yield from _of_generator(generator, changed_VD, codes_SD, moved_SD, classes_D)
    even_SD = _of_one_deviation(moved_SD, [p.size // size for p in parts if p.group == "codes"])
    yield from _of_codes(generator, held_VD, even_SD, classes_D)


def _of_generator(
    generator: Part, changed_VD: Matrix, codes_SD: Matrix, moved_SD: Matrix, classes_D: Classes
) -> Iterator[tuple[str, Matrix, Classes]]:
    bands_VD = bands_of(generator).reshape(changed_VD.shape).astype(np.int64)
    turned_VD = _turned(generator, changed_VD)
    yield "generator as it is", changed_VD, np.zeros_like(bands_VD)
    yield "generator by spatial frequency: `ecsq`", turned_VD, bands_VD
    weights_S1 = np.linalg.norm(moved_SD, axis=1, keepdims=True)
    basis_DD = _eigenbasis(weights_S1 * codes_SD)
    yield ("the same, columns in the basis of the codes that moved", turned_VD @ basis_DD,
           bands_VD * len(basis_DD) + classes_D)  # fmt: skip


def _of_codes(
    generator: Part, held_VD: Matrix, changed_SD: Matrix, classes_D: Classes
) -> Iterator[tuple[str, Matrix, Classes]]:
    yield "codes as they are: `ecsq`", changed_SD, np.zeros_like(changed_SD, np.int64)
    expected = energies(generator)
    expected_V1 = np.tile(expected, len(held_VD) // len(expected))[:, None]
    basis_DD = _eigenbasis(np.sqrt(expected_V1) * _turned(generator, held_VD))
    classes_SD = np.broadcast_to(classes_D, changed_SD.shape)
    yield "codes in the basis of the generator that is held", changed_SD @ basis_DD, classes_SD


def _turned(generator: Part, values_VD: Matrix) -> Matrix:
    """A generator by spatial frequency."""
    flat = to_frequencies(values_VD.ravel().astype(np.float32), [generator])
    return flat.reshape(values_VD.shape).astype(np.float64)


def bits_and_error(values: Matrix, classes: Classes, step: float) -> tuple[float, float]:
    """Bits a value in steps of ``step`` deviations, and the part of the energy left out."""
    size = step * np.sqrt(np.mean(values**2))
    levels = np.sign(values) * np.rint(np.abs(values) / size)
    used = levels != 0
    shift = np.mean(np.abs(levels[used]) - np.abs(values[used]) / size) if used.any() else 0
    decoded = np.sign(levels) * (np.abs(levels) - shift) * size
    symbols = (levels - levels.min()).astype(np.int32)
    bits = sum(entropy_bits(symbols[classes == one]) for one in np.unique(classes))
    left = float(np.sum((decoded - values) ** 2) / np.sum(values**2))
    return bits / values.size, left


def _eigenbasis(rows_SD: Matrix) -> Matrix:
    """Orthogonal, [D, D]: the directions of most energy first."""
    vectors_DD: Matrix = np.linalg.svd(rows_SD, full_matrices=True)[2]
    return vectors_DD.T


def _of_one_deviation(rows_SD: Matrix, counts: list[int]) -> Matrix:
    """The rows of each layer over their root mean square, since each has steps of its own."""
    layers = np.split(rows_SD, np.cumsum(counts)[:-1])
    return np.concatenate([rows / np.sqrt(np.mean(rows**2)) for rows in layers])


def _of(wanted: str, values: Values, parts: Parts) -> Matrix:
    """The values of a group, one after another."""
    ends = np.cumsum([part.size for part in parts])
    tensors = zip(parts, np.split(values, ends[:-1]), strict=True)
    return np.concatenate([t for part, t in tensors if part.group == wanted]).astype(np.float64)


def main() -> None:
    parser = command.parser("simulations.studies.transform", __doc__)
    parser.add_argument("--network", choices=NETWORKS, default="resnet56")
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = ModelSpec(name=options.network, classes=10)
    update, parts = update_of(options.network)
    model = build(spec, seed=0)
    assert manifest(model).parts[: len(parts)] == tuple(parts)
    first = pack(model)[: update.size]
    where = f"{options.network}, digits; {machine()['cpu']}, {time.strftime('%Y-%m-%d')}."
    tables = {"transform": table(first, update, parts), "transform-where": where}
    print("\n\n".join(tables.values()))
    fill(tables, PAGE)


if __name__ == "__main__":
    command.run(main)
