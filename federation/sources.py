"""Where images come from: CIFAR-10 in its usual forms, folders of pictures, and digits."""

import importlib.util
import io
import os
import pickle
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from csg_core.images import CIFAR10_MEAN, CIFAR10_STD, ImageSet
from federation.cache import cache_folder, cached
from federation.sections import DataSet

Split = Literal["train", "test"]
CIFAR10_CLASSES = 10
CIFAR10_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip
_DIGITS: dict[str, Any] = {"mean": (0.305,) * 3, "std": (0.323,) * 3}
# means and deviations of the channels, of pixels scaled to 0..1
STATISTICS = {"cifar10": (CIFAR10_MEAN, CIFAR10_STD), "digits": (_DIGITS["mean"], _DIGITS["std"])}
_NAMES = {"cifar10": CIFAR10_NAMES, "digits": tuple(map(str, range(10)))}
_SIZE = 32
_OFFICIAL = "cifar-10-batches-py"  # folder in the official archive
_BATCHES = {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}
_FORMS = (
    "CIFAR-10 as its official python batches (data_batch_1 ... test_batch) or as parquet in the "
    "layout of uoft-cs/cifar10 (train*.parquet, test*.parquet)"
)


class DataError(ValueError):
    """Images that cannot be used; the message names the file or folder and the remedy."""


def load_images(name: str, folder: str | os.PathLike[str] | None, split: Split) -> ImageSet:
    """One split of a data set by name, decoded once and from then on mapped from the cache.

    CIFAR-10 is looked for in ``folder``, else in ``$CSG_DATA_DIR``, else downloaded.

    Raises:
        DataError: if there is no such data set, it cannot be found, or it cannot be used.
    """
    if name == "digits":
        return load_digits(train=split == "train")
    if name != "cifar10":
        raise DataError(f"data set {name!r} is unknown; use cifar10 or digits")
    folder = folder or os.environ.get("CSG_DATA_DIR")
    return load_split(folder if folder else _download(), split)


def load_split(folder: str | os.PathLike[str], split: Split) -> ImageSet:
    """One split of CIFAR-10 from a folder; decoded images are kept in the cache.

    Raises:
        DataError: if there are no such files, there are several copies, or one cannot be used.
    """
    files, read = _find(Path(folder), split)

    def decode() -> tuple[np.ndarray, np.ndarray]:
        parts = [read(file) for file in files]
        sizes = {tuple(part.images.shape[1:]) for part in parts}
        if len(sizes) > 1:
            raise DataError(f"{folder}: the images of {split} differ in size, {sorted(sizes)}")
        images = torch.cat([part.images for part in parts])
        return images.numpy(), torch.cat([part.labels for part in parts]).numpy()

    images, labels = cached(f"cifar10-{split}", files, decode)
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels), CIFAR10_CLASSES)


def _find(folder: Path, split: Split) -> tuple[list[Path], Callable[[Path], ImageSet]]:
    try:
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such folder; name one that holds {_FORMS}, or none (data.dir, "
                "$CSG_DATA_DIR) to have it downloaded"
            )
        os.scandir(folder).close()
        named = re.compile(rf"{split}(-\d+-of-\d+)?\.parquet")
        parquet = sorted(p for p in folder.rglob("*.parquet") if named.fullmatch(p.name))
        batches = sorted(folder.rglob(_BATCHES[split][0]))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); check its mode") from error
    if batches and not parquet:
        if len(batches) > 1:
            raise DataError(f"{folder}: holds several copies of {split}; name the folder of one")
        return [batches[0].parent / name for name in _BATCHES[split]], load_batch
    if not parquet:
        raise DataError(f"{folder}: has no {split} images; name a folder that holds {_FORMS}")
    whole = [path for path in parquet if path.stem == split]
    if len({path.parent for path in parquet}) > 1 or (whole and len(parquet) > 1):
        raise DataError(f"{folder}: holds several copies of {split}; name the folder of one")
    if not whole:
        count = int(parquet[0].stem.rpartition("-")[2])
        for number in range(count):
            name = f"{split}-{number:05d}-of-{count:05d}.parquet"
            if not (parquet[0].parent / name).is_file():
                raise DataError(f"{folder}: {name} is missing; the copy of CIFAR-10 is incomplete")
        if len(parquet) != count:
            raise DataError(f"{folder}: holds several copies of {split}; name the folder of one")
    return parquet, load_parquet


def _download() -> Path:
    """CIFAR-10 by torchvision, into the cache; not again if it is there."""
    from csg_core.networks.from_torchvision import torchvision

    folder = cache_folder() / "downloads"
    remedy = f"set data.dir or $CSG_DATA_DIR to a folder that holds {_FORMS}"
    whole = folder / "cifar10"
    for there in (whole, folder / _OFFICIAL):  # the latter is of versions before
        if all((there / name).exists() for names in _BATCHES.values() for name in names):
            return there
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
            torchvision().datasets.CIFAR10(partial, download=True)
            try:
                os.rename(Path(partial) / _OFFICIAL, whole)
            except OSError:
                if not whole.exists():  # else another process was faster
                    raise
    except ModuleNotFoundError as error:
        raise DataError(
            f"CIFAR-10 is not named and torchvision, which downloads it, is not installed: {remedy}"
        ) from error
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"CIFAR-10 could not be downloaded ({reason}): {remedy}") from error
    return whole


def load_parquet(
    path: str | os.PathLike[str], *, classes: int | None = CIFAR10_CLASSES
) -> ImageSet:
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
        images = torch.from_numpy(data).reshape(-1, 3, _SIZE, _SIZE).permute(0, 2, 3, 1)
        return ImageSet(images.contiguous(), labels, CIFAR10_CLASSES)
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
    folder, names = Path(folder), _NAMES[data]
    numbers = {name: number for number, name in enumerate(names)}
    numbers |= {str(number): number for number in range(len(names))}
    images, labels = [], []
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir())
        for sub in below:
            if sub.name not in numbers:
                raise DataError(f"{sub}: is no class; call sub-folders {', '.join(names)} or 0 ...")
            for path in sorted(path for path in sub.iterdir() if path.is_file()):
                images.append(_picture(path))
                labels.append(numbers[sub.name])
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error})") from error
    if not images:
        raise DataError(f"{folder}: holds no pictures; put them in one sub-folder per class")
    pictures = torch.from_numpy(np.stack(images))
    return ImageSet(pictures, torch.tensor(labels), len(names), *STATISTICS[data])


def _picture(path: Path) -> np.ndarray:
    try:
        return _pixels(path, resize=True)
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"{path}: is no picture that can be used ({error})") from error


def _pixels(source: Path | io.BytesIO, *, resize: bool = False) -> np.ndarray:
    from PIL import Image

    with Image.open(source) as image:
        picture = image.convert("RGB")
    if resize and picture.size != (_SIZE, _SIZE):
        picture = picture.resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def load_digits(*, train: bool) -> ImageSet:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, resized to 32 x 32 x 3: four fifths to train.

    Raises:
        DataError: if scikit-learn is not installed.
    """
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError("digits needs scikit-learn; install the extra csg-fl[digits]")
    source = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    images, labels = cached("digits", [source], _decode_digits)
    cut = len(labels) * 4 // 5
    part = slice(cut) if train else slice(cut, None)
    return ImageSet(torch.from_numpy(images[part]), torch.from_numpy(labels[part]), 10, **_DIGITS)


def _decode_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets  # takes a second

    bunch = datasets.load_digits()
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(bunch.target))
    grey = torch.from_numpy(bunch.images[order]).float()[:, None] * (255 / 16)
    large = F.interpolate(grey, size=(_SIZE, _SIZE), mode="bilinear", align_corners=False)
    images = large.round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    return images.numpy(), bunch.target[order].astype(np.int64)
