"""The folder of a run: the one place that names its files, writes them and reads them back.

``config.toml`` (the recipe, resolved), ``environment.json``, ``rounds.jsonl``, ``summary.json``,
``checkpoints/*.safetensors``. Clients of Flower's simulation keep what is theirs in ``clients/``.
"""

import json
import os
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from federation.files import drop_partial, replace_file
from federation.locks import take_lock
from federation.recipe import Recipe, RecipeError, recipe_of
from server.rows import RoundRow, line_of, read_row


class RunFolderError(ValueError):
    """A run's folder that cannot be used; the message names it and the remedy."""


_SPREAD = TypeAdapter(list[list[int]])


class RunFolder:
    """Reads and writes a run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.log = path / "run.log"

    def create(self, recipe: Recipe, environment: dict[str, Any], spread: list[list[int]]) -> None:
        """Begin a run: its recipe, its environment with the images by client and class.

        Raises:
            RunFolderError: if the folder holds a run, or cannot be written.
        """
        if (self.path / "config.toml").exists():
            raise RunFolderError(
                f"{self.path}: holds a run already; csg resume {self.path} continues it, "
                "--set run.dir=... names another folder"
            )
        for left in (self.path / "rounds.jsonl", *self.checkpoints.glob("*.safetensors")):
            if left.exists():
                raise RunFolderError(
                    f"{left}: is of another run, whose config.toml is gone; bring that back, or "
                    "name another folder, --set run.dir=..."
                )
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            config = recipe.to_toml().encode()
            sealed = {**environment, _CONFIG_SHA256: sha256(config).hexdigest()}
            content = json.dumps({**sealed, "spread": spread}, indent=1)
            replace_file(self.path / "environment.json", content.encode())
            replace_file(self.path / "config.toml", config)
        except OSError as error:
            raise RunFolderError(f"{self.path}: cannot be written ({error.strerror})") from error

    @contextmanager
    def locked(self, patience: float = 0.0) -> Iterator[None]:
        """Keep other processes from running this run; a lock ends with its process, killed or not.

        Raises:
            RunFolderError: if another process runs it still after ``patience`` seconds.
        """
        try:
            file = (self.path / ".lock").open("w")
        except OSError as error:
            raise RunFolderError(f"{self.path}: cannot be written ({error.strerror})") from error
        with file:
            until = time.monotonic() + patience
            while not take_lock(file):
                if time.monotonic() > until:
                    raise RunFolderError(
                        f"{self.path}: another process is running it; wait for it, or stop it"
                    )
                time.sleep(0.5)
            for name in _FILES:
                drop_partial(self.path, name)
            for folder in (self.checkpoints, self.path / "clients"):
                drop_partial(folder, "*.safetensors")
            yield

    def held(self) -> bool:
        """Whether a process runs this run now."""
        try:
            with (self.path / ".lock").open() as file:
                return not take_lock(file)
        except OSError:
            return False

    def begin(self) -> None:
        """Forget how the run ended before, now that it goes on."""
        (self.path / "summary.json").unlink(missing_ok=True)

    def recipe(self) -> Recipe:
        """The run's recipe.

        Raises:
            RunFolderError: if the folder holds no run.
        """
        path = self.path / "config.toml"
        try:
            content = path.read_text("utf-8")
            if not content.strip():
                raise RunFolderError(f"{path}: is empty; bring back the run's recipe")
            return recipe_of(tomllib.loads(content), str(path))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunFolderError(
                f"{self.path}: holds no run (no config.toml); name a run's folder"
            ) from error
        except (OSError, ValueError) as error:
            if isinstance(error, RecipeError | RunFolderError):
                raise
            raise RunFolderError(f"{path}: cannot be read ({error})") from error

    def recipe_changed(self) -> bool:
        """Whether ``config.toml`` is another than the run began with, as far as can be told."""
        began = _json(self.path / "environment.json").get(_CONFIG_SHA256)
        try:
            found = sha256((self.path / "config.toml").read_bytes()).hexdigest()
        except OSError:
            return False
        return began is not None and began != found

    def environment(self) -> dict[str, Any]:
        """What the run ran on, with the images by client and class, ``spread``; all may be lost."""
        found = _json(self.path / "environment.json")
        found.pop(_CONFIG_SHA256, None)
        try:
            spread = _SPREAD.validate_python(found.get("spread", []), strict=True)
        except ValidationError:
            spread = []
        even = len({len(counts) for counts in spread}) == 1
        return {**found, "spread": spread if even else []}

    def summary(self) -> dict[str, Any]:
        """How the run ended, or nothing if it has not."""
        return _json(self.path / "summary.json")

    def rows(self) -> list[RoundRow]:
        """All complete lines of ``rounds.jsonl``; one cut short by a kill is left out.

        Raises:
            RunFolderError: if a line before the last is damaged.
        """
        path = self.path / "rounds.jsonl"
        try:
            lines = path.read_text("utf-8").splitlines(keepends=True)
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise RunFolderError(f"{path}: cannot be read ({error})") from error
        rows = []
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                break
            try:
                rows.append(read_row(line))
            except ValueError as error:
                raise RunFolderError(f"{path}: line {number} is damaged ({error})") from error
        return rows

    def version(self) -> tuple[int, int, int]:
        """What changes whenever rows do."""
        try:
            found = (self.path / "rounds.jsonl").stat()
        except FileNotFoundError:
            return 0, 0, 0
        return found.st_ino, found.st_size, found.st_mtime_ns

    def append(self, row: RoundRow) -> None:
        """Add a line, on the disk when this returns."""
        with (self.path / "rounds.jsonl").open("a") as file:
            file.write(line_of(row))
            file.flush()
            os.fsync(file.fileno())

    def cut(self, last: int) -> list[RoundRow]:
        """Drop the rows after round ``last``, and any line cut short; the rows that stay.

        Raises:
            RunFolderError: if a line before the last is damaged, or the file cannot be written.
        """
        rows = [row for row in self.rows() if row.round <= last]
        content = "".join(map(line_of, rows))
        path = self.path / "rounds.jsonl"
        try:
            replace_file(path, content.encode())
        except OSError as error:
            raise RunFolderError(
                f"{path}: cannot be written ({error.strerror}); nothing of it is lost: "
                f"csg resume {self.path} once that is mended"
            ) from error
        return rows

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Say how the run ended."""
        replace_file(self.path / "summary.json", json.dumps(summary, indent=1).encode())


_CONFIG_SHA256 = "config.toml sha256"
_FILES = ("config.toml", "environment.json", "rounds.jsonl", "summary.json", "report.html")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
