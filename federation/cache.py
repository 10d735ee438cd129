"""Decoded images as files that every process maps instead of decoding them again.

An entry is a folder with ``images.npy``, ``labels.npy`` and ``entry.json``, which names the source
files with size and time of change, and the checksums of the arrays. It is written beside and
renamed, so a killed writer leaves no entry; one that does not fit its source is made anew.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from federation.files import drop_partial

_VERSION = 1
_ARRAYS = ("images", "labels")
_STALE_S = 3600
_log = logging.getLogger(__name__)

Arrays = tuple[np.ndarray, np.ndarray]


def cache_folder() -> Path:
    """``$CSG_CACHE_DIR``, else ``csg-fl`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    named = os.environ.get("CSG_CACHE_DIR")
    if named:
        return Path(named)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "csg-fl"


def cached(name: str, sources: Sequence[Path], decode: Callable[[], Arrays]) -> Arrays:
    """Images and labels of ``sources``, from the cache if they are there and unharmed.

    The arrays are mapped copy-on-write: processes share the memory, no one changes the files. A
    cache that cannot be written costs a warning in the log and the time to decode.
    """
    described = _describe(sources)
    key = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]
    entry = cache_folder() / f"{name}-{key}"
    found = _read(entry, described)
    if found is not None:
        return found
    arrays = decode()
    try:
        _write(entry, described, arrays)
    except OSError as error:
        _log.warning("%s: decoded images are not kept (%s)", entry, error.strerror)
        return arrays
    return _read(entry, described) or arrays


def _describe(sources: Sequence[Path]) -> list[list[object]]:
    described: list[list[object]] = [[_VERSION]]
    for path in sources:
        status = path.stat() if path.exists() else None
        if status is not None:
            described.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    return described


def _read(entry: Path, described: list[list[object]]) -> Arrays | None:
    try:
        note = dict(json.loads((entry / "entry.json").read_text()))
        arrays = tuple(np.load(entry / f"{name}.npy", mmap_mode="c") for name in _ARRAYS)
    except Exception:  # numpy raises many kinds at a damaged header
        return None
    if note.get("sources") != described or note.get("checksums") != [_crc(a) for a in arrays]:
        return None
    return arrays[0], arrays[1]


def _write(entry: Path, described: list[list[object]], arrays: Arrays) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    drop_partial(entry.parent, "shards-*", older_than=_STALE_S)
    for left in entry.parent.glob(".partial-*"):  # of writers that were killed
        with suppress(OSError):  # another writer's, renamed in between
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=entry.parent))
    try:
        for name, array in zip(_ARRAYS, arrays, strict=True):
            np.save(partial / f"{name}.npy", array)
        note = {"sources": described, "checksums": [_crc(array) for array in arrays]}
        (partial / "entry.json").write_text(json.dumps(note))
        if entry.exists():  # does not fit, or another process was faster
            shutil.rmtree(entry, ignore_errors=True)
        os.rename(partial, entry)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _crc(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)
