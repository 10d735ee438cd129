"""A model described by a few values, and built from them."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import torch
from torch import Tensor, nn

from csg_core.conversion import generate_filters
from csg_core.generator import GeneratorKind, SliceGenerator, paper_std
from csg_core.layout import Layout
from csg_core.networks import dense_network
from csg_core.start import Start

# Puts something else in place of a dense network's kernels, with random values from a seed.
Parametrization = Callable[[nn.Module, Mapping[str, float], int], None]
_ENTRY_POINTS = "csg_fl.parametrizations"

# Type and largest value of every number: a description may come from a stranger's file, and is
# built before it is compared with the tensors there.
_MOST_WEIGHTS = 2**26  # of a generator
_BOUNDS: dict[str, tuple[type | tuple[type, ...], int]] = {
    "slice_size": (int, 256),
    "code_size": (int, 65_536),
    "kernel_size": (int, 11),
    "generator_seed": (int, 2**63 - 1),
    "width": ((int, float), 16),
    "classes": (int, 100_000),
}
_LARGEST_OPTION = 1e6
_USUAL_CLASSES = 1000
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_OWN = ("csg", "dense")
# what a parametrization without a generator passes over
OF_GENERATOR = (
    "slice_size", "code_size", "kernel_size", "generator", "generator_seed", "layout", "start"
)  # fmt: skip


# what networks that share a generator agree on
SHAPE_OF_GENERATOR = ("slice_size", "code_size", "kernel_size", "layout")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One of the named networks, dense or with generated filters.

    What only describes a generator has its default where there is none, so that descriptions of the
    same network are equal.

    Attributes:
        name: one of ``NETWORKS``.
        parametrization: ``csg`` for generated filters, ``dense`` for ordinary ones, or the name of
            an installed package's ``Parametrization``, under the entry points
            ``csg_fl.parametrizations``.
        options: what that parametrization takes, numbers by name.
        slice_size, code_size, kernel_size: of the generator.
        generator: ``learned``, ``frozen`` or ``binary``.
        generator_seed: seed of a frozen or binary generator's draw.
        layout: where slices go, ``block`` or ``flat``.
        start: first values, ``fan_in`` or ``paper``.
        width: multiplier of the channels.
        classes: outputs; None means the network's usual number.
    """

    name: str = "resnet20"
    parametrization: str = "csg"
    options: Mapping[str, float] = field(default_factory=dict, hash=False)
    slice_size: int = 12
    code_size: int = 72
    kernel_size: int = 3
    generator: GeneratorKind = "learned"
    generator_seed: int = 0
    layout: Layout = "block"
    start: Start = "fan_in"
    width: float = 1.0
    classes: int | None = None

    def __post_init__(self) -> None:
        for name, (kind, largest) in _BOUNDS.items():
            value = getattr(self, name)
            if value is None and name == "classes":
                continue
            wrong = isinstance(value, bool) or not isinstance(value, kind)
            if wrong or not int(name == "classes") <= value <= largest:
                raise ValueError(f"{name} {value!r} cannot be; use a number up to {largest:,}")
        weights = self.slice_size**2 * self.kernel_size**2 * self.code_size
        if weights > _MOST_WEIGHTS:
            raise ValueError(
                f"slice_size {self.slice_size}, kernel_size {self.kernel_size} and code_size "
                f"{self.code_size} make a generator of {weights:,} numbers; "
                f"{_MOST_WEIGHTS:,} are taken"
            )
        if not isinstance(self.options, Mapping):
            raise ValueError(f"options {self.options!r} cannot be; give numbers by name")
        if self.options and self.parametrization in _OWN:
            raise ValueError(f"options {self.options}: {self.parametrization} takes none")
        for name, value in self.options.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not abs(value) <= _LARGEST_OPTION:
                raise ValueError(f"options.{name} {value!r} cannot be; use a number")
        for own in fields(self) if self.parametrization != "csg" else ():
            if own.name in OF_GENERATOR:
                object.__setattr__(self, own.name, own.default)

    @property
    def kind(self) -> str:
        """The parametrization in a few words, as ``csg s=12 d=72``."""
        if self.parametrization == "csg":
            return f"csg s={self.slice_size} d={self.code_size}"
        options = (f"{name}={value:g}" for name, value in self.options.items())
        return " ".join([self.parametrization, *options])

    def dense_twin(self) -> "ModelSpec":
        """The same network with ordinary filters."""
        return replace(self, parametrization="dense", options={})

    def to_dict(self) -> dict[str, Any]:
        """The values by name, for JSON."""
        return asdict(self)


def build(spec: ModelSpec, *, seed: int = 0, generator_weight: Tensor | None = None) -> nn.Module:
    """The model that ``spec`` describes, its random weights drawn from ``seed``.

    The global random state is left as it was. ``generator_weight`` is a W taken from elsewhere,
    shape [s*s*k*k, D], for a learned generator to start from or a frozen one to keep.

    Raises:
        ValueError: if a value of ``spec``, or the weight's shape, cannot be.
    """
    if spec.parametrization not in parametrizations():
        raise ValueError(
            f"parametrization {spec.parametrization!r} is unknown; use one of "
            f"{', '.join(parametrizations())}"
        )
    if spec.start == "dense":
        raise ValueError("start 'dense' needs a trained network; use generate_filters on one")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # of this device alone
        model = dense_network(spec.name, width=spec.width, classes=spec.classes)
    if spec.parametrization == "csg":
        generator = generator_of(spec, seed=seed, weight=generator_weight)
        generate_filters(model, generator, layout=spec.layout, start=spec.start, seed=seed)
    elif spec.parametrization != "dense":
        try:
            change: Parametrization = _installed()[spec.parametrization].load()
        except ImportError as error:
            raise ValueError(
                f"parametrization {spec.parametrization!r} cannot be imported here ({error})"
            ) from error
        with torch.device("cpu"):
            change(model, spec.options, seed)
    return model


def parametrizations() -> tuple[str, ...]:
    """What ``ModelSpec.parametrization`` may be: this package's, and what others have installed."""
    return (*_OWN, *sorted(_installed()))


@cache
def _installed() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=_ENTRY_POINTS)}


def generator_of(spec: ModelSpec, *, seed: int = 0, weight: Tensor | None = None) -> SliceGenerator:
    """The generator that ``spec`` describes; a learned one starts from ``seed``, or ``weight``."""
    return SliceGenerator(
        spec.slice_size,
        spec.code_size,
        spec.kernel_size,
        kind=spec.generator,
        seed=seed if spec.generator == "learned" else spec.generator_seed,
        std=paper_std(spec.code_size, spec.generator) if spec.start == "paper" else None,
        weight=weight,
    )


def restore(spec: ModelSpec, state: Mapping[str, Tensor]) -> nn.Module:
    """The model that ``spec`` describes, with the tensors of a ``state_dict()``.

    Raises:
        ValueError: naming the first tensor that is missing, unknown, of another shape or kind, that
            holds NaN or infinity, or describes another generator than ``spec``.
    """
    _refuse_another_network(spec, state)
    taken = None
    if spec.generator == "frozen":  # saved whole only if it was taken from elsewhere
        taken = next((t for n, t in state.items() if n.endswith(".generator.weight")), None)
    model = build(spec, generator_weight=taken)
    expected = model.state_dict()
    for name in [*expected, *(n for n in state if n not in expected)]:
        _require_shape(
            spec, state, name, tuple(expected[name].shape) if name in expected else "absent"
        )
        floating = state[name].is_floating_point() == expected[name].is_floating_point()
        if not floating or state[name].is_complex() or state[name].layout != torch.strided:
            raise ValueError(
                f"the checkpoint is not of {spec.name}: {name} is {expected[name].dtype} in the "
                f"network and {state[name].dtype} {state[name].layout} in the checkpoint"
            )
        if floating and expected[name].is_floating_point():
            if state[name].dtype not in _FLOATS:
                raise ValueError(f"the checkpoint is of {state[name].dtype}; save it as float32")
            if not bool(torch.isfinite(state[name].to(expected[name].dtype)).all()):
                raise ValueError(f"the checkpoint is damaged: {name} holds NaN or infinity")
            if name.endswith("running_var") and bool((state[name] < 0).any()):
                raise ValueError(f"the checkpoint is damaged: {name} holds a negative variance")
        if name.endswith(".draw") and not torch.equal(state[name].cpu(), expected[name]):
            raise ValueError(
                f"the checkpoint is not of {spec.name}: {name} is {expected[name].tolist()} by the "
                f"description and {state[name].tolist()} in the checkpoint"
            )
    model.load_state_dict(state)
    return model


def _refuse_another_network(spec: ModelSpec, state: Mapping[str, Tensor]) -> None:
    """Before anything is allocated: a small file must not make a reader build a large network.

    Norms and the head, of which the file has to hold every value, are as many as kernels are wide.
    """
    usual = spec.width <= 1 and (spec.classes or 0) <= _USUAL_CLASSES
    if usual or spec.parametrization not in _OWN:
        return
    with torch.device("meta"):
        network = dense_network(spec.name, width=spec.width, classes=spec.classes)
    for name, tensor in network.state_dict().items():
        if tensor.dim() != 4 or spec.parametrization == "dense":
            _require_shape(spec, state, name, tuple(tensor.shape))


def _require_shape(
    spec: ModelSpec, state: Mapping[str, Tensor], name: str, here: tuple[int, ...] | str
) -> None:
    there = tuple(state[name].shape) if name in state else "absent"
    if here != there:
        raise ValueError(
            f"the checkpoint is not of {spec.name}: {name} is {here} in the network and "
            f"{there} in the checkpoint"
        )
