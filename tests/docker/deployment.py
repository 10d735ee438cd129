"""A compose project of a test's own: its folders, its settings, and its commands."""

import io
import json
import os
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

DOCKER = Path(__file__).parents[2] / "docker"
HOST = "fl.example.org"  # as in the README
USER = 12345  # neither root nor the images' own


class Project:
    """``docker compose`` on docker/compose.yml, for a deployment in ``folder``."""

    def __init__(self, folder: Path, images: Path) -> None:
        self.folder = folder
        self.name = f"csg-test-{os.getpid()}"
        self.runs = folder / "runs"
        for place in (folder / "keys", self.runs):
            place.mkdir()
            os.chown(place, USER, USER)
        self.settings = {
            "CSG_HOST": HOST,
            "CSG_PORT": "18443",
            "CSG_CLIENTS": "2",
            "CSG_DATA": str(images),
            "CSG_RUNS": str(self.runs),
            "CSG_KEYS": str(folder / "keys"),
            "CSG_UID": str(USER),
            "CSG_GID": str(USER),
        }

    def compose(self, *arguments: str, check: bool = True, timeout: float = 900) -> str:
        """What a compose command prints, both streams together."""
        done = subprocess.run(
            ["docker", "compose", "--project-name", self.name, *arguments],
            cwd=DOCKER,
            env={**os.environ, **self.settings},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        text = done.stdout + done.stderr
        assert not check or done.returncode == 0, text
        return text

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Begin a command in the server's container."""
        return subprocess.Popen(
            ["docker", "compose", "--project-name", self.name, "exec", "-T", "server", *arguments],
            cwd=DOCKER,
            env={**os.environ, **self.settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def inside(self, service: str, *command: str, index: int = 1) -> tuple[int, str]:
        """Exit status and output of a command in a container that runs."""
        return docker("exec", f"{self.name}-{service}-{index}", *command)

    def rows(self, run: str) -> list[dict]:
        """The rounds that a run has recorded so far, read on the host."""
        path = self.runs / run / "rounds.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def wait_for_rows(self, run: str, count: int, seconds: float = 240) -> list[dict]:
        """The rows, once there are so many."""
        until = time.monotonic() + seconds
        while len(rows := self.rows(run)) < count:
            assert time.monotonic() < until, self.compose("logs", "--tail", "30", check=False)
            time.sleep(0.5)
        return rows


def docker(*arguments: str, timeout: float = 120) -> tuple[int, str]:
    """Exit status and output, both streams together."""
    done = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
    return done.returncode, done.stdout + done.stderr


def write_images(folder: Path, cifar10: Path | None) -> None:
    """A small CIFAR-10 in parquet: of the original's images, else of digits."""
    folder.mkdir()
    table = _digits() if cifar10 is None else pq.read_table(cifar10)
    pq.write_table(table.slice(0, 800), folder / "train.parquet")
    pq.write_table(table.slice(800, 200), folder / "test.parquet")
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _digits() -> pa.Table:
    found = load_digits()
    images = []
    for picture in found.images[:1000]:
        buffer = io.BytesIO()
        Image.fromarray((picture * 15).astype("uint8")).resize((32, 32)).convert("RGB").save(
            buffer, format="PNG"
        )
        images.append({"bytes": buffer.getvalue(), "path": None})
    return pa.table({"img": images, "label": found.target[:1000].tolist()})


def readme_commands() -> list[list[str]]:
    """The README's ``docker compose`` commands, in order, each without these two words."""
    text = (DOCKER.parent / "README.md").read_text()
    section = text[text.index("\n## Deployment\n") :]
    lines = section.split("```")[1].splitlines()
    return [line.split()[2:] for line in lines if line.startswith("docker compose ")]
