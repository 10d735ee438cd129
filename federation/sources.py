"""Where the images of a data set come from: CIFAR-10 in its usual forms, and digits."""

import importlib.util
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from csg_core.images import ImageSet
from federation.cache import cache_folder, cached
from federation.data_sets import CLASSES, DATA_SETS, SIDE, DataError
from federation.image_files import load_batch, load_parquet

Split = Literal["train", "test"]
_OFFICIAL = "cifar-10-batches-py"  # folder in the official archive
_BATCHES = {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}
_FORMS = (
    "CIFAR-10 as its official python batches (data_batch_1 ... test_batch) or as parquet in the "
    "layout of uoft-cs/cifar10 (train*.parquet, test*.parquet)"
)


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
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels), CLASSES)


def _find(folder: Path, split: Split) -> tuple[list[Path], Callable[[Path], ImageSet]]:
    try:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; name one that holds {_FORMS}")
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
        raise DataError(
            f"{folder}: has no {split} images; name a folder that holds {_FORMS} "
            "(links in it to other folders are not followed)"
        )
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
    facts = DATA_SETS["digits"]
    return ImageSet(torch.from_numpy(images[part]), torch.from_numpy(labels[part]), CLASSES,
                    facts.mean, facts.std)  # fmt: skip


def _decode_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets  # takes a second

    bunch = datasets.load_digits()
    order = np.random.Generator(np.random.Philox(key=0)).permutation(len(bunch.target))
    grey = torch.from_numpy(bunch.images[order]).float()[:, None] * (255 / 16)
    large = F.interpolate(grey, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    images = large.round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
    return images.numpy(), bunch.target[order].astype(np.int64)
