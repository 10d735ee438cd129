"""Files that are there whole or not at all."""

import os
import secrets
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

_PARTIAL = ".tmp"  # what names of files end with while they are written


def check_writable(path: Path) -> None:
    """Raise ValueError unless a file could be written here; makes missing folders."""
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{path}: cannot be written ({error.strerror})") from error


def replace_file(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a file that is there whole or not at all, whenever the process ends.

    A ``private`` one is for its owner alone to read.

    Raises:
        OSError: with the file's name, if it cannot be written.
    """
    replace_files({path: content}, private=private)


def replace_files(contents: Mapping[Path, bytes], *, private: bool = False) -> None:
    """Write several files as ``replace_file`` does one.

    None is replaced before all are on the disk; then they are, one by one.
    """
    written: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            try:
                partial = path.parent / f".{path.name}.{secrets.token_hex(8)}{_PARTIAL}"
                mode = 0o600 if private else 0o666  # less what the umask takes
                handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                written[path] = partial
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
        for path, partial in written.items():
            try:
                os.replace(partial, path)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        for partial in written.values():
            partial.unlink(missing_ok=True)
        raise


def drop_partial(folder: Path, name: str, *, older_than: float = 0.0) -> None:
    """Remove what ``replace_files`` left of files of a name, where its process was killed.

    Args:
        folder: where they are.
        name: a file's, or a pattern of such.
        older_than: of these only what is so old, seconds.
    """
    for left in folder.glob(f".{name}.*{_PARTIAL}"):
        with suppress(OSError):  # renamed in between, by a process that goes on
            if time.time() - left.stat().st_mtime >= older_than:
                left.unlink()
