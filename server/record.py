"""The folder of a run: the one place that names its files, writes them and reads them back.

``config.toml`` (the recipe, resolved), ``environment.json``, ``rounds.jsonl``, ``summary.json``,
``checkpoints/*.safetensors``.
"""

import json
import os
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict  # as pydantic needs it up to Python 3.11

from federation.files import drop_partial, replace_file
from federation.locks import take_lock
from federation.recipe import Recipe, RecipeError, recipe_of


class RunFolderError(ValueError):
    """A run's folder that cannot be used; the message names it and the remedy."""


class Contribution(TypedDict):
    """What a client reports of its training in a round, and its bytes: see ``TrainReport`` and
    ``server.wire.ClientBytes``.
    """

    partition: int
    examples: int
    train_loss: NotRequired[float]
    loss_before: float
    loss_after: float
    seconds: float
    payload_bytes_up: NotRequired[int]
    payload_bytes_down: NotRequired[int]
    wire_bytes_up: NotRequired[int | None]
    wire_bytes_down: NotRequired[int | None]
    interface: NotRequired[str | None]
    interface_shared: NotRequired[bool | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRow:
    """A line of ``rounds.jsonl``. Bytes are sums over the round's clients, accuracies fractions.

    Attributes:
        round: from 1 on.
        clients: good updates, ``failures`` those that came to nothing.
        train_loss: mean over the clients by examples, nats.
        test_loss, test_accuracy: of the averaged model on the test images, or, where norms stay
            with the clients, on the images that those hold out; None in rounds without evaluation,
            and of a loss that is no number.
        payload_bytes_up, payload_bytes_down: of payloads, header included.
        wire_bytes_up, wire_bytes_down: all that the server's interface received and sent since the
            row before, whoever caused it; None where not measured.
        interface: of the server, None where not measured.
        interface_shared: whether traffic of others than the server may be in these figures.
        seconds: from the first message to the evaluation, without record and checkpoint.
        contributions: by client.
        failed: by client, the reason.
        models, updates: payloads that the server sent, and that came back.
    """

    round: int
    clients: int
    failures: int
    train_loss: float
    test_loss: float | None
    test_accuracy: float | None
    payload_bytes_up: int
    payload_bytes_down: int
    wire_bytes_up: int | None = None
    wire_bytes_down: int | None = None
    interface: str | None = None
    interface_shared: bool | None = None
    seconds: float
    contributions: list[Contribution] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    models: int = 0
    updates: int = 0


_ROW = TypeAdapter(RoundRow)
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
            drop_partial(self.checkpoints, "*.safetensors")
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
            content = path.read_text()
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
            lines = path.read_text().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise RunFolderError(f"{path}: cannot be read ({error})") from error
        rows = []
        for number, line in enumerate(lines, start=1):
            if not line.endswith("\n"):
                break
            try:
                rows.append(_ROW.validate_json(line, strict=True))
            except ValidationError as error:
                raise RunFolderError(
                    f"{path}: line {number} is damaged ({_first(error)})"
                ) from error
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
            file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())

    def cut(self, last: int) -> list[RoundRow]:
        """Drop the rows after round ``last``, and any line cut short; the rows that stay.

        Raises:
            RunFolderError: if a line before the last is damaged, or the file cannot be written.
        """
        rows = [row for row in self.rows() if row.round <= last]
        content = "".join(map(_line, rows))
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


def _line(row: RoundRow) -> str:
    # asdict would copy what every client reported
    return json.dumps({field.name: getattr(row, field.name) for field in fields(row)}) + "\n"


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    place = ".".join(str(part) for part in found["loc"])
    return f"{place}: {found['msg']}" if place else found["msg"]
