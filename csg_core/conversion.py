"""Put generated filters into any CNN, in place."""

import collections
import copy
import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from csg_core.bank import KernelBank
from csg_core.convolution import GeneratedConv2d
from csg_core.generator import SliceGenerator, check_seed, paper_std
from csg_core.layout import Layout, check_layout
from csg_core.modules import count_trainable, generated, has_hooks, swap_modules
from csg_core.start import STARTS, Start, check_finite, draw_codes, fit_to_kernels

Selection = Callable[[str, nn.Conv2d], bool] | Iterable[str]


@dataclass(frozen=True, slots=True)
class Replaced:
    """A convolution that now generates its kernel.

    ``error`` is |K - K'| / |K| between the kernel it held and the fitted one; None unless fitted.
    """

    name: str
    kernel_shape: tuple[int, ...]
    codes: int
    error: float | None = None


@dataclass(frozen=True, slots=True)
class Left:
    """A convolution that was left as it was, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """What ``generate_filters`` did. Counts are of trainable parameters, each counted once."""

    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]
    parameters_before: int
    parameters_after: int

    def __str__(self) -> str:
        lines = [
            f"{len(self.replaced)} convolutions generated, {len(self.left)} left; trainable "
            f"parameters {self.parameters_before:,} -> {self.parameters_after:,}"
        ]
        if self.parameters_after > self.parameters_before:
            lines.append("  these are more; for so small a network take a SliceGenerator of a "
                         "smaller slice_size or code_size")  # fmt: skip
        for done in self.replaced:
            shape = "x".join(map(str, done.kernel_shape))
            error = "" if done.error is None else f", relative error {done.error:.3f}"
            lines.append(f"  generated {done.name}: {shape} from {done.codes} codes{error}")
        lines += [f"  left      {left.name}: {left.reason}" for left in self.left]
        return "\n".join(lines)


def generate_filters(
    model: nn.Module,
    generator: SliceGenerator | None = None,
    *,
    select: Selection | None = None,
    layout: Layout = "block",
    start: Start = "fan_in",
    seed: int = 0,
) -> ConversionReport:
    """Replace convolutions of ``model`` by ones whose kernels ``generator`` makes, in place.

    Either everything asked for is done, or the model is left untouched and an error raised.

    Args:
        model: any CNN. The generator becomes the child ``generator`` of the first generated
            convolution, whatever the modules around it do with their children, so it stands once
            in ``state_dict()`` and ``parameters()``. So what is done with the parameters of that
            stage, as freezing it or taking it out of the model, is done with the generator of the
            whole network: keep ``csg_core.generators(model)`` out of it.
        generator: the shared generator; None makes the paper's (s = 12, D = 72, 3 x 3), learned,
            to go with ``start``. One of another device or dtype is copied; one that another model
            uses is shared with it, and ``dense`` changes it for both.
        select: which convolutions to take, as names or as a function of name and convolution.
            None takes every ungrouped k x k convolution of the generator's kernel size with more
            than 3 input channels that trains.
        layout: where slices go, ``block`` (the paper's) or ``flat`` (the released models').
        start: first values, ``fan_in``, ``paper`` or ``dense`` (fitted to the present kernels).
        seed: seed of the codes' draw.

    Returns:
        What was replaced, what was left and why, and the trainable parameters before and after.

    Raises:
        ValueError: if a named convolution cannot be generated, none is left to generate, the
            generator makes filters of this model already, kernels to fit are not finite, or W is
            zero or not finite, or the seed is out of range.
    """
    check_layout(layout)
    check_seed(seed)
    if start not in STARTS:
        raise ValueError(f"start {start!r} is unknown; use one of {', '.join(STARTS)}")
    if generator is None:
        generator = SliceGenerator(std=paper_std(72) if start == "paper" else None)
    elif not isinstance(generator, SliceGenerator):
        raise ValueError(f"generator {generator!r} is none; give a SliceGenerator")
    elif any(module is generator for module in model.modules()):
        raise ValueError("this generator makes filters of the model already; pass another one")
    taken, left = _choose(model, generator.kernel_size, select)
    if start == "dense":
        check_finite(taken)
    before = count_trainable(model)
    reference = taken[0][1].weight
    if (generator.weight.device, generator.weight.dtype) != (reference.device, reference.dtype):
        generator = copy.deepcopy(generator).to(device=reference.device, dtype=reference.dtype)
    bank = KernelBank(generator, layout)
    layers = [GeneratedConv2d(conv, bank) for _, conv in taken]
    errors: list[float | None] = [None] * len(layers)
    if start == "dense":
        kernels = [conv.weight.detach() for _, conv in taken]
        errors = list(fit_to_kernels(layers, kernels, generator))
    else:
        draw_codes(layers, generator, start=start, seed=seed)
    swap_modules(model, {id(conv): layer for (_, conv), layer in zip(taken, layers, strict=True)})
    layers[0].generator = generator
    return ConversionReport(
        replaced=tuple(
            Replaced(conv_name, tuple(conv.weight.shape), len(layer.codes), error)
            for (conv_name, conv), layer, error in zip(taken, layers, errors, strict=True)
        ),
        left=left,
        parameters_before=before,
        parameters_after=count_trainable(model),
    )


def _choose(
    model: nn.Module, kernel_size: int, select: Selection | None
) -> tuple[list[tuple[str, nn.Conv2d]], tuple[Left, ...]]:
    convs = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    wants = _wanted(model, select)
    named = select is not None and not callable(select)
    tied, listed = _tied(model), _listed(model)
    taken: list[tuple[str, nn.Conv2d]] = []
    left: list[Left] = []
    for name, conv in convs:
        obstacle = _obstacle(name, conv, kernel_size)
        if obstacle is None and id(conv.weight) in tied:
            obstacle = "shares its weight with another module"
        if obstacle is None and (place := listed.get(id(conv))):
            obstacle = (
                f"is also in {place}, where it would stay; use nn.ModuleList or nn.ModuleDict"
            )
        if wants is not None and not wants(name, conv):
            left.append(Left(name, "not selected"))
        elif obstacle is not None and named:
            raise ValueError(f"convolution {name} cannot be generated: {obstacle}")
        elif obstacle is not None:
            left.append(Left(name, obstacle))
        elif wants is None and conv.in_channels <= 3:
            left.append(Left(name, f"has only {conv.in_channels} input channels"))
        elif wants is None and not conv.weight.requires_grad:
            left.append(Left(name, "is frozen"))
        else:
            taken.append((name, conv))
    if not taken:
        reasons = "; ".join(f"{item.name} {item.reason}" for item in left[:3])
        if generated(model):
            reasons = f"its others are generated already; {reasons}"
        raise ValueError(f"no convolution of this model can be generated ({reasons or 'none'})")
    places = {(conv.weight.device, conv.weight.dtype) for _, conv in taken}
    if any(device.type == "meta" for device, _ in places):
        raise ValueError("the convolutions have no values (device meta); model.to_empty first")
    if len(places) > 1:
        found = ", ".join(sorted(f"{device} {dtype}" for device, dtype in places))
        raise ValueError(f"the convolutions differ in device or dtype ({found}); move them first")
    return taken, tuple(left)


def _wanted(model: nn.Module, select: Selection | None) -> Callable[[str, nn.Conv2d], bool] | None:
    if select is None or callable(select):
        return select
    # a convolution that stands in several places has as many names
    named = {
        n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, nn.Conv2d)
    }
    chosen = {select} if isinstance(select, str) else set(select)
    if others := [name for name in chosen if not isinstance(name, str)]:
        raise ValueError(f"select holds a {type(others[0]).__name__}; give names, or a function")
    for name in sorted(chosen - named.keys()):
        near = difflib.get_close_matches(name, sorted(named), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"the model has no convolution {name!r}{hint}")
    taken = {id(named[name]) for name in chosen}
    return lambda _, conv: id(conv) in taken


def _tied(model: nn.Module) -> set[int]:
    """Ids of the parameters that more than one module holds."""
    held = [id(p) for module in model.modules() for p in module._parameters.values()]
    return {key for key, count in collections.Counter(held).items() if count > 1}


def _listed(model: nn.Module) -> dict[int, str]:
    """Where modules hold convolutions in plain lists, tuples and dicts, by the convolution's id."""
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            held = value.values() if isinstance(value, dict) else value
            if isinstance(value, list | tuple | dict) and not name.startswith("_"):
                place = f"the {type(value).__name__} {path}{'.' if path else ''}{name}"
                found |= {id(item): place for item in held if isinstance(item, nn.Conv2d)}
    return found


def _obstacle(name: str, conv: nn.Conv2d, kernel_size: int) -> str | None:
    """Why this convolution cannot be generated, or None."""
    if type(conv) is not nn.Conv2d:
        return f"is a {type(conv).__name__}, whose own behaviour would be lost"
    if "weight" not in conv._parameters:
        return "computes its weight itself (weight norm or the like); remove that first"
    if conv.groups != 1:
        return f"has {conv.groups} groups; only ungrouped convolutions can be generated"
    if tuple(conv.kernel_size) != (kernel_size, kernel_size):
        height, width = conv.kernel_size
        return f"is {height} x {width}; the generator makes {kernel_size} x {kernel_size}"
    if has_hooks(conv) or has_hooks(conv.weight):
        return "has hooks, which would be lost; remove them first"
    if "forward" in vars(conv):
        return "has a forward of its own, which would be lost"
    if not conv.weight.is_floating_point():
        return f"has a weight of {conv.weight.dtype}; codes are real numbers"
    if name == "":
        return "is the model itself; wrap it in a module first"
    return None
