"""The images of one client: its partition of a data set, or a folder of its own."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from csg_core.images import ImageSet
from federation.data_sets import DataError
from federation.image_files import load_folder
from federation.recipe import Recipe
from federation.seeds import derived_rng
from federation.shards import shard_rows
from federation.sources import load_images


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows of images to train on and to evaluate on; all clients of a process share the images."""

    images: ImageSet
    train_rows: Tensor  # int64
    holdout_rows: Tensor  # int64


class Shards:
    """Every partition of the recipe's training images, loaded once in this process."""

    def __init__(self, recipe: Recipe, device: torch.device, folder: str | None = None) -> None:
        data = recipe.data
        images = load_images(data.name, folder or data.dir, "train")
        rows = shard_rows(data, images.labels.numpy(), recipe.run.seed)
        self._rows = [torch.from_numpy(part) for part in rows]
        self._images = images.to(device)
        self._recipe = recipe

    def __getitem__(self, partition: int) -> Shard:
        if not 0 <= partition < len(self._rows):
            raise DataError(
                f"partition-id {partition}: the recipe has data.clients {len(self._rows)}; "
                f"use 0 to {len(self._rows) - 1}"
            )
        return _held_out(self._recipe, self._images, self._rows[partition], partition)


def own_folder(recipe: Recipe, device: torch.device, folder: str, partition: int) -> Shard:
    """A client's own pictures, in the normalisation of the recipe's data set."""
    pictures = load_folder(folder, recipe.data.name).to(device)
    return _held_out(recipe, pictures, torch.arange(len(pictures)), partition)


def partition_of(node_config: Mapping[str, bool | float | int | str]) -> int:
    """The client's partition-id.

    Raises:
        DataError: if it has none.
    """
    partition = node_config.get("partition-id")
    if isinstance(partition, bool) or not isinstance(partition, int) or partition < 0:
        raise DataError(
            f"partition-id is {partition!r}; start the client with "
            "--node-config 'partition-id=0', a number of its own for each"
        )
    return partition


def _held_out(recipe: Recipe, images: ImageSet, rows: Tensor, partition: int) -> Shard:
    rng = derived_rng(recipe.run.seed, "holdout", partition)
    shuffled = rows[torch.randperm(len(rows), generator=rng)]
    count = round(recipe.data.holdout * len(rows))
    if recipe.data.holdout:
        count = min(max(count, 1), len(rows) - 1)
    return Shard(images, shuffled[count:], shuffled[:count])
