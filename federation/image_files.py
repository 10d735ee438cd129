"""Images out of files: parquet, CIFAR-10's python batches, and pictures in folders by class."""

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csg_core.images import ImageSet
from federation.data_sets import CLASSES, DATA_SETS, SIDE, DataError
from federation.sections import DataSet


def load_parquet(path: str | os.PathLike[str], *, classes: int | None = CLASSES) -> ImageSet:
    """Decode a parquet file with the columns of ``uoft-cs/cifar10``: img (struct: bytes), label.

    With ``classes`` None there are as many as the labels say.

    Raises:
        DataError: if the file is missing, is no parquet file, lacks the columns, or holds images
            that cannot be decoded or differ in size.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a parquet file in the layout of CIFAR-10")
    try:
        table = pq.read_table(path)
        encoded = pa.compute.struct_field(table["img"], "bytes").to_pylist()
        labels = table["label"].cast(pa.int64()).to_numpy()
    except KeyError as error:
        raise DataError(
            f"{path}: has no column {error}; need img (struct: bytes) and label"
        ) from error
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"{path}: cannot be read as parquet with img and label ({reason})"
        ) from error
    if not encoded:
        raise DataError(f"{path}: holds no images")
    try:
        images = torch.from_numpy(np.stack([_pixels(io.BytesIO(item)) for item in encoded]))
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"{path}: holds an image that cannot be used ({error})") from error
    if classes is None:
        classes = 1 + int(max((label for label in labels if label >= 0), default=0))
    try:
        return ImageSet(images, torch.tensor(labels), classes)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def load_batch(path: Path) -> ImageSet:
    """Read one of CIFAR-10's official python batches: pickled, but no code in it is executed.

    Raises:
        DataError: if the file is missing, damaged, or holds anything but arrays and texts.
    """
    try:
        with path.open("rb") as file:
            content = _ArraysOnly(file, encoding="bytes").load()
        data = np.asarray(content[b"data"])
        labels = torch.tensor(content[b"labels"], dtype=torch.int64)
        images = torch.from_numpy(data).reshape(-1, 3, SIDE, SIDE).permute(0, 2, 3, 1)
        return ImageSet(images.contiguous(), labels, CLASSES)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; the copy of CIFAR-10 is incomplete") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(f"{path}: is no usable batch of CIFAR-10 ({reason})") from error


class _ArraysOnly(pickle.Unpickler):
    """Builds numpy arrays and nothing else."""

    _ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "encode"})

    def find_class(self, module: str, name: str) -> Any:
        if name in self._ALLOWED and module.split(".")[0] in {"numpy", "_codecs"}:
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a batch")


def load_folder(folder: str | os.PathLike[str], data: DataSet = "cifar10") -> ImageSet:
    """A client's own pictures for a data set: one sub-folder per class, its name or its number.

    Pictures of other sizes are resized to 32 x 32, and normalised as the data set is.

    Raises:
        DataError: if there are none, a sub-folder is no class, or a picture cannot be used.
    """
    folder, facts = Path(folder), DATA_SETS[data]
    numbers = {name: number for number, name in enumerate(facts.names)}
    numbers |= {str(number): number for number in range(CLASSES)}
    images, labels = [], []
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir())
        for sub in below:
            if sub.name not in numbers:
                raise DataError(
                    f"{sub}: is no class; call sub-folders {', '.join(facts.names)} or 0 ..."
                )
            for path in sorted(path for path in sub.iterdir() if path.is_file()):
                images.append(_picture(path))
                labels.append(numbers[sub.name])
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from error
    if not images:
        raise DataError(f"{folder}: holds no pictures; put them in one sub-folder per class")
    pictures = torch.from_numpy(np.stack(images))
    return ImageSet(pictures, torch.tensor(labels), CLASSES, facts.mean, facts.std)


def _picture(path: Path) -> np.ndarray:
    try:
        return _pixels(path, resize=True)
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"{path}: is no picture that can be used ({error})") from error


def _pixels(source: Path | io.BytesIO, *, resize: bool = False) -> np.ndarray:
    from PIL import Image

    with Image.open(source) as image:
        if image.mode[0] in "IF":  # integers and floats, which Pillow would cut off at 255
            raise ValueError(f"mode {image.mode}, of more than 8 bits a channel; save it with 8")
        picture = image.convert("RGB")
    if resize and picture.size != (SIDE, SIDE):
        picture = picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(picture)
