"""Where images come from: parquet files in the hub's layout, and scikit-learn's digits."""

import io
import os
import re
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from csg_core.images import ImageSet

CIFAR10_CLASSES = 10


class DataError(ValueError):
    """A file of images that cannot be used; the message names it and the remedy."""


def load_parquet(path: str | os.PathLike[str], *, classes: int = CIFAR10_CLASSES) -> ImageSet:
    """Decode a parquet file with the columns of ``uoft-cs/cifar10``: img (struct: bytes), label.

    Raises:
        DataError: if the file is missing, is no parquet file, lacks the columns, or holds images
            that cannot be decoded or differ in size.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

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
        decoded = [np.asarray(Image.open(io.BytesIO(item)).convert("RGB")) for item in encoded]
        images = torch.from_numpy(np.stack(decoded))
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"{path}: holds an image that cannot be used ({error})") from error
    try:
        return ImageSet(images, torch.tensor(labels), classes)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def load_split(folder: str | os.PathLike[str], split: Literal["train", "test"]) -> ImageSet:
    """All images of one split of CIFAR-10, from the parquet files below a folder.

    A split is one file, ``train.parquet``, or several, ``train-00000-of-00002.parquet`` and so on.

    Raises:
        DataError: if there is no such file, there are several copies, or one cannot be used.
    """
    named = re.compile(rf"{split}(-\d+-of-\d+)?\.parquet")
    files = sorted(path for path in Path(folder).rglob("*.parquet") if named.fullmatch(path.name))
    if not files:
        raise DataError(
            f"{folder}: has no {split}.parquet or {split}-*-of-*.parquet; name the folder that "
            "holds CIFAR-10 in the parquet layout of uoft-cs/cifar10"
        )
    whole = [path for path in files if path.stem == split]
    if len({path.parent for path in files}) > 1 or (whole and len(files) > 1):
        raise DataError(f"{folder}: holds several copies of {split}; name the folder of one")
    parts = [load_parquet(file) for file in files]
    sizes = {tuple(part.images.shape[1:]) for part in parts}
    if len(sizes) > 1:
        raise DataError(f"{folder}: the images of {split} differ in size, {sorted(sizes)}")
    images, labels = (torch.cat([getattr(p, n) for p in parts]) for n in ("images", "labels"))
    return ImageSet(images, labels, CIFAR10_CLASSES)


def load_digits(*, train: bool) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, resized to 32 x 32 x 3: four fifths to train.

    Raises:
        DataError: if scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise DataError("digits needs scikit-learn; install the extra csg-fl[digits]") from error
    bunch = datasets.load_digits()
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(bunch.target))
    cut = len(order) * 4 // 5
    chosen = order[:cut] if train else order[cut:]
    grey = torch.from_numpy(bunch.images[chosen]).float()[:, None] * (255 / 16)
    large = F.interpolate(grey, size=(32, 32), mode="bilinear", align_corners=False)
    images = large.round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    labels = torch.from_numpy(bunch.target[chosen].astype(np.int64))
    return ImageSet(images, labels, 10, mean=(0.305,) * 3, std=(0.323,) * 3)
