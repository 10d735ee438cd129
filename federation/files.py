"""Files that are there whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


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
    """The same for several: none is replaced before all are on the disk, then one by one."""
    written: dict[Path, Path] = {}
    try:
        for path, content in contents.items():
            try:
                handle, temporary = tempfile.mkstemp(
                    dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
                )
                written[path] = Path(temporary)
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(temporary, 0o600 if private else 0o644)
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
