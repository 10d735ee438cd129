"""Models as bytes, in formats that others read: safetensors and ONNX.

For a plain network call ``fold`` first; its ``state_dict()`` then has ordinary ``weight`` tensors.
"""

import hashlib
import io
import json
import warnings
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor, nn

from csg_core.folding import fold
from csg_core.modules import require_generators, unwrap
from csg_core.spec import ModelSpec, restore

_SPEC_KEY = "csg_core.spec"
_DIGEST_KEY = "csg_core.digest"
_EXTRA = "extra/"


def to_safetensors(
    model: nn.Module, spec: ModelSpec | None = None, extra: Mapping[str, Tensor] | None = None
) -> bytes:
    """The model's ``state_dict()`` in the safetensors format.

    ``spec``, if given, is stored in the metadata, so that ``from_safetensors`` can rebuild it.
    ``extra`` tensors go along under names of their own; ``extra_in`` finds them again.

    Raises:
        ValueError: if a generator is no longer a module of the model, so that the file would lack
            it, or the state holds something else than tensors.
    """
    model = unwrap(model)
    require_generators(model)
    state = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise ValueError(
                f"{name} is a {kind}, for which safetensors has no place; leave it out"
            )
        state[name] = tensor.detach().cpu().clone().contiguous()
    for name, tensor in (extra or {}).items():
        state[_EXTRA + name] = tensor.detach().cpu().clone().contiguous()
    metadata = {"format": "pt", _DIGEST_KEY: _digest(state)}
    if spec is not None:
        metadata[_SPEC_KEY] = json.dumps(spec.to_dict(), sort_keys=True)
    return safetensors.torch.save(state, metadata)


def from_safetensors(
    state: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[ModelSpec, nn.Module]:
    """The description and the model that ``to_safetensors`` wrote with a spec.

    Args:
        state: the tensors, as ``safetensors.torch.load_file`` gives them.
        metadata: that of the file, as ``safetensors.safe_open(..., "pt").metadata()`` gives it.

    Raises:
        ValueError: if there is no usable spec, the tensors are not those of its model, or they are
            not the ones that were written.
    """
    if metadata.get(_DIGEST_KEY, "") not in ("", _digest(state)):
        raise ValueError("the checkpoint is damaged: its digest is not that of its tensors")
    if _SPEC_KEY not in metadata:
        raise ValueError(
            "the file does not say which network it holds (no csg_core.spec); name a checkpoint "
            "of a run"
        )
    try:
        spec = ModelSpec(**json.loads(metadata[_SPEC_KEY]))
    except (TypeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"the network's description cannot be read ({error})") from error
    return spec, restore(spec, {n: t for n, t in state.items() if not n.startswith(_EXTRA)})


def extra_in(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that were written along with a model."""
    return {n.removeprefix(_EXTRA): t for n, t in state.items() if n.startswith(_EXTRA)}


def to_onnx(
    model: nn.Module, *, image_size: tuple[int, int] = (32, 32), channels: int = 3
) -> bytes:
    """The folded model in evaluation mode as an ONNX graph.

    Input ``images``, float32 [batch, channels, height, width], normalised; output ``logits``
    [batch, classes]. The batch size is free.

    Raises:
        ValueError: if the model takes no such images.
        ModuleNotFoundError: if the extra ``onnx`` is not installed.
    """
    folded = fold(model).eval().float().cpu()
    images = torch.zeros(2, channels, *image_size)
    try:
        folded(images)
    except RuntimeError as error:
        shape = f"{channels} channels and {image_size[0]} x {image_size[1]} pixels"
        raise ValueError(f"the model takes no images of {shape} ({error}); give others") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of torch's own code
        program = torch.onnx.export(
            folded,
            (images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    buffer = io.BytesIO()
    program.save(buffer)  # type: ignore[arg-type]
    return buffer.getvalue()


def _digest(state: Mapping[str, Tensor]) -> str:
    """Stands for names, types, shapes and values of all tensors."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        tensor = state[name].cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        if tensor.numel():  # torch views no empty one as bytes
            digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
