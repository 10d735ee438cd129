"""The options that describe a model, shared by the commands that build one."""

import argparse

from csg_core import NETWORKS, ModelSpec
from csg_core.generator import GENERATOR_KINDS
from csg_core.layout import LAYOUTS
from csg_core.spec import OF_GENERATOR, parametrizations


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the network and everything that a ``ModelSpec`` takes."""
    usual = ModelSpec()
    group = parser.add_argument_group("model")
    group.add_argument("network", nargs="?", default=usual.name, help=", ".join(NETWORKS))
    add = group.add_argument
    add("--parametrization", choices=parametrizations(), default=usual.parametrization,
        help="generated filters, ordinary ones, or those of a rival")  # fmt: skip
    add("--slice-size", type=int, default=usual.slice_size, help="filters and channels of a slice")
    add("--code-size", type=int, default=usual.code_size, help="numbers that make a slice")
    add("--kernel-size", type=int, default=usual.kernel_size,
        help="height and width of the kernels that are generated; 5 for blazefl-cnn")  # fmt: skip
    add("--generator", choices=GENERATOR_KINDS, default=usual.generator,
        help="frozen and binary ones never train and never travel")  # fmt: skip
    add("--generator-seed", type=int, default=usual.generator_seed, help="seed of its draw")
    add("--layout", choices=LAYOUTS, default=usual.layout, help="where slices go in a kernel")
    add("--start", choices=("fan_in", "paper"), default=usual.start, help="first values of codes")
    add("--width", type=float, default=usual.width, help="multiplier of the channels")


def spec_from(options: argparse.Namespace, *, classes: int | None = None) -> ModelSpec:
    """The model that the options describe.

    Raises:
        ValueError: if they cannot be, or one of them is of generated filters and there are none.
    """
    usual = ModelSpec()
    for name in OF_GENERATOR if options.parametrization != "csg" else ():
        if (value := getattr(options, name)) != getattr(usual, name):
            raise ValueError(
                f"{name} {value} is of generated filters, and the parametrization is "
                f"{options.parametrization}; leave it out"
            )
    return ModelSpec(
        name=options.network,
        parametrization=options.parametrization,
        slice_size=options.slice_size,
        code_size=options.code_size,
        kernel_size=options.kernel_size,
        generator=options.generator,
        generator_seed=options.generator_seed,
        layout=options.layout,
        start=options.start,
        width=options.width,
        classes=classes,
    )
