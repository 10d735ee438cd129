"""Which images belong to which client: flwr-datasets' partitioners over the labels.

Shards depend on the labels, the rule and the seed alone, so any process finds the same ones; they
are kept in the cache, because the partitioners take a second to import.
"""

import hashlib
import io
import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from federation.cache import cache_folder
from federation.data_sets import DataError
from federation.files import replace_file
from federation.sections import DataConfig

_VERSION = 1


def shard_rows(config: DataConfig, labels: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    """The rows of every client's images, sorted, client by client.

    Raises:
        DataError: if the rule cannot be met, or flwr-datasets is not installed.
    """
    rule = config.rule()
    content = json.dumps([_VERSION, rule, seed]).encode() + np.ascontiguousarray(labels).tobytes()
    path = cache_folder() / f"shards-{hashlib.sha256(content).hexdigest()[:24]}.npz"
    found = _read(path, config.clients, len(labels))
    if found is not None:
        return found
    shards = _make(rule, labels, seed)
    _write(path, shards)
    return shards


def class_spread(
    shards: list[NDArray[np.int64]], labels: NDArray[np.int64], classes: int
) -> NDArray[np.int64]:
    """Images of every client and class, int64 [clients, classes]."""
    counts = [np.bincount(labels[rows], minlength=classes) for rows in shards]
    return np.stack(counts)


def _make(rule: dict[str, Any], labels: NDArray[np.int64], seed: int) -> list[NDArray[np.int64]]:
    try:
        import datasets
        from flwr_datasets import partitioner as partitioners
    except ModuleNotFoundError as error:
        raise DataError(
            f"making shards needs {error.name}; install the extra csg-fl[shards]"
        ) from error
    clients, images = rule["clients"], rule["images"] or len(labels)
    if images > len(labels):
        raise DataError(f"data.images {images:,}: there are only {len(labels):,} to train on")
    classes = len(np.unique(labels))
    if rule.get("classes_per_client", 1) > classes:
        raise DataError(
            f"data.classes_per_client {rule['classes_per_client']:,}: there are only {classes:,}"
        )
    least, key = next(
        ((rule[key], key) for key in ("shards_per_client", "min_images") if key in rule), (1, "")
    )
    if clients * least > images:
        each = f", data.{key} {least:,}" if key else ""
        raise DataError(
            f"data.clients {clients:,}{each}: there are only {images:,} images to share"
        )
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(labels))[:images]
    partitioner = _partitioner(partitioners, rule, seed)
    partitioner.dataset = datasets.Dataset.from_dict({"label": labels[order], "row": order})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of each further try to meet min_images
            warnings.simplefilter("ignore", FutureWarning)  # of datasets' sort, to pyarrow
            warnings.simplefilter("ignore", RuntimeWarning)  # of a try whose shares are no numbers
            shards = [
                np.sort(np.asarray(partitioner.load_partition(c)["row"], np.int64))
                for c in range(clients)
            ]
            sizes = [len(rows) for rows in shards]
            if "alpha" in rule and (sum(sizes) != images or min(sizes) < rule["min_images"]):
                raise ValueError(f"shards of {min(sizes):,} to {max(sizes):,} images came out")
            return shards
    except ValueError as error:
        more = f" with alpha {rule['alpha']:g}" if "alpha" in rule else ""
        remedy = "fewer clients or a larger alpha" if more else "fewer clients"
        raise DataError(
            f"data.partition {rule['partition']} over {clients:,} clients{more} cannot be made "
            f"({str(error).splitlines()[0]}); use {remedy}"
        ) from error


def _partitioner(partitioners: ModuleType, rule: dict[str, Any], seed: int) -> Any:
    """flwr-datasets' partitioner of a rule."""
    clients = rule["clients"]
    if rule["partition"] == "iid":
        return partitioners.IidPartitioner(clients)
    common = {"num_partitions": clients, "partition_by": "label", "seed": seed}
    if rule["partition"] == "dirichlet":
        return partitioners.DirichletPartitioner(
            alpha=rule["alpha"],
            min_partition_size=rule["min_images"],
            self_balancing=True,
            **common,
        )
    if rule["partition"] == "shards":  # McMahan et al., 2017, section 3
        return partitioners.ShardPartitioner(
            num_shards_per_partition=rule["shards_per_client"], **common
        )
    return partitioners.PathologicalPartitioner(
        num_classes_per_partition=rule["classes_per_client"],
        class_assignment_mode="first-deterministic",
        **common,
    )


def _read(path: Path, clients: int, images: int) -> list[NDArray[np.int64]] | None:
    try:
        with path.open("rb") as file, np.load(file) as content:
            rows, ends = content["rows"], content["ends"]
    except Exception:  # of a damaged file: numpy and zipfile raise many kinds
        return None
    whole = rows.dtype == np.int64 and len(ends) == clients and len(rows) <= images
    if not whole or (len(rows) and not 0 <= rows.min() <= rows.max() < images):
        return None
    return np.split(rows, ends[:-1])


def _write(path: Path, shards: list[NDArray[np.int64]]) -> None:
    content, ends = io.BytesIO(), np.cumsum([len(rows) for rows in shards])
    np.savez(content, rows=np.concatenate(shards), ends=ends)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content.getvalue(), private=True)
    except OSError:
        return  # made anew next time
