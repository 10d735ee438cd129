"""Finding, counting and swapping the modules of a model."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from csg_core.convolution import GeneratedConv2d
from csg_core.generator import SliceGenerator


def count_trainable(model: nn.Module) -> int:
    """Number of trainable values of a model, shared ones counted once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel, AveragedModel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, DataParallel | DistributedDataParallel | AveragedModel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def generators(model: nn.Module) -> dict[str, SliceGenerator]:
    """The generators of a model by name, in order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, SliceGenerator)}


def generated(model: nn.Module) -> dict[str, GeneratedConv2d]:
    """The generated convolutions of a model by name, in order."""
    return {name: m for name, m in model.named_modules() if isinstance(m, GeneratedConv2d)}


def require_generators(model: nn.Module) -> None:
    """Raise ValueError unless the generators of all generated convolutions are modules of it."""
    there = {id(generator) for generator in generators(model).values()}
    for name, layer in generated(model).items():
        if id(layer.bank.generator) not in there:
            raise ValueError(
                f"the generator of {name} is no module of the model, as when the first generated "
                "convolution, whose child it is, was taken out: layer = "
                f"model.get_submodule({name!r}); layer.generator = layer.bank.generator"
            )


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
          "_post_accumulate_grad_hooks")  # fmt: skip


def has_hooks(hooked: nn.Module | Tensor) -> bool:
    """Whether something of a user's is called when a module runs or a gradient is computed."""
    return any(getattr(hooked, name, None) for name in _HOOKS)


def refresh(model: nn.Module) -> None:
    """Have all kernels made anew; needed only after parameters were written through ``.data``."""
    for layer in generated(model).values():
        layer.bank.forget()


def swap_modules(model: nn.Module, replacements: Mapping[int, nn.Module]) -> None:
    """Put ``replacements[id(child)]`` wherever such a child stands, shared children included."""
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if id(child) in replacements:
                parent._modules[child_name] = replacements[id(child)]
