"""What all arms are given, written once: a folder for the peers, settings of a recipe for ours."""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from csg_core import build
from csg_core.images import ImageSet
from federation.data_sets import DataError, source_of
from federation.recipe import Recipe, recipe_of
from federation.shards import shard_rows
from federation.sources import load_images

_BATCHES = 5  # of CIFAR-10's python batches to train on
_PIXELS = 32 * 32 * 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Clients, and rounds of so many images in all, of which the first are taken."""

    clients: int
    images: int
    rounds: int

    def recipe(self, data: dict[str, Any]) -> Recipe:
        """Dense ResNet-20, FedAvg of float32 without a codec, over ``data``.

        Raises:
            RecipeError: naming a value that cannot be.
        """
        train = {"rounds": self.rounds, "batch_size": 64, "lr": 0.05, "momentum": 0.9,
                 "weight_decay": 5e-4, "local_epochs": 1, "precision": "fp32"}  # fmt: skip
        model = {"name": "resnet20", "parametrization": "dense"}
        data = {"clients": self.clients, "partition": "iid", **data}
        run = {"device": "cpu"}  # as the peers have it
        return recipe_of({"model": model, "data": data, "train": train, "run": run}, "peers")


def write_work(folder: Path, data: str, asked: Asked) -> tuple[Recipe, dict[str, int]]:
    """Write the peers' folder; the recipe of ours, the same work, and how many images there are.

    ``data`` is a folder of CIFAR-10, or ``digits``. A fifth as many images are to test on.

    Raises:
        DataError: if the images cannot be used.
        RecipeError: if the work cannot be.
    """
    name, source = source_of(data)
    whole = asked.recipe({"name": name, "dir": source})
    recipe = asked.recipe(_fewer(folder / "images", whole, asked.images))
    train, test = (load_images(recipe.data.name, recipe.data.dir, s) for s in ("train", "test"))
    shards = shard_rows(recipe.data, train.labels.numpy(), recipe.run.seed)
    for split, images in (("train", train), ("test", test)):
        channels_first = images.images.permute(0, 3, 1, 2).contiguous()
        np.save(folder / f"{split}-images.npy", channels_first.numpy())
        np.save(folder / f"{split}-labels.npy", images.labels.numpy())
    for client, rows in enumerate(shards):
        np.save(folder / f"shard-{client}.npy", rows)
    torch.save(build(recipe.model, seed=recipe.run.seed).state_dict(), folder / "first.pt")
    content = {
        "rounds": recipe.train.rounds,
        "clients": recipe.data.clients,
        "batch_size": recipe.train.batch_size,
        "lr": recipe.train.lr,
        "momentum": recipe.train.momentum,
        "weight_decay": recipe.train.weight_decay,
        "seed": recipe.run.seed,
        "mean": train.mean,
        "std": train.std,
    }
    (folder / "work.json").write_text(json.dumps(content))
    return recipe, {"images": len(train), "test_images": len(test)}


def _fewer(folder: Path, recipe: Recipe, images: int) -> dict[str, Any]:
    """The first images, and a fifth as many to test on, as CIFAR-10's python batches."""
    folder.mkdir()
    train, test = (load_images(recipe.data.name, recipe.data.dir, s) for s in ("train", "test"))
    if not _BATCHES <= images <= len(train):
        raise DataError(f"peers: {images:,} images are asked for; there are {len(train):,}")
    for number, rows in enumerate(np.array_split(np.arange(images), _BATCHES), start=1):
        _write_batch(folder / f"data_batch_{number}", train, rows)
    _write_batch(folder / "test_batch", test, np.arange(min(images // 5, len(test))))
    return {"dir": str(folder)}


def _write_batch(path: Path, images: ImageSet, rows: np.ndarray) -> None:
    pixels = images.images[rows].permute(0, 3, 1, 2).reshape(-1, _PIXELS).numpy()
    content = {b"data": pixels, b"labels": images.labels[rows].tolist()}
    path.write_bytes(pickle.dumps(content, protocol=2))
