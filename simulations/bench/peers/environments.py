"""The peers' environments: one each, made by pip, versions pinned."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulations.bench.measured import measured
from simulations.command import StudyError

_ROOT = Path(__file__).parents[3]
# A step of a small convolution, so that what torch loads late is there, and time to be looked at.
_TORCH_ALONE = """
import json, platform, time, torch
torch.nn.Conv2d(3, 16, 3)(torch.randn(64, 3, 32, 32)).sum().backward()
print(json.dumps({"python": platform.python_version(), "torch": torch.__version__}), flush=True)
time.sleep(2.5)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A Python version and packages, as pip names them; none: this process's environment."""

    name: str
    python: str = ""
    packages: tuple[str, ...] = ()


OWN = Environment(name="own")
FLOWER = Environment(
    name="flower",
    python="3.11",
    packages=("torch==2.13.0", "numpy==2.4.6", "flwr[simulation]==1.41.0"),
)
# Its 2.x needs Python 3.12, its 3.x needs 3.14.
BLAZEFL = Environment(
    name="blazefl",
    python="3.12",
    packages=("torch==2.13.0", "numpy==2.4.6", "tqdm==4.70.1", "blazefl==2.0.3"),
)
PFL = Environment(
    name="pfl", python="3.11", packages=("torch==2.13.0", "numpy==2.4.6", "pfl==0.6.0")
)
FEDLAB = Environment(
    name="fedlab",
    python="3.11",
    packages=("torch==2.13.0", "torchvision==0.28.0", "numpy==2.4.6", "fedlab==1.3.0"),
)


def interpreter_of(environment: Environment, folder: Path) -> Path:
    """Its Python; the environment is made in ``folder`` if it is not there.

    Raises:
        StudyError: if there is no such Python, or pip does not install the packages.
    """
    if not environment.packages:
        return Path(sys.executable)
    place = folder / environment.name
    python, made = place / "bin" / "python", place / "made.json"
    wanted = json.dumps([environment.python, environment.packages])
    if made.is_file() and made.read_text() == wanted:
        return python
    _say(f"making the environment of {environment.name} in {place}")
    if place.exists():
        shutil.rmtree(place)
    _run([_found(environment.python), "-m", "venv", str(place)], environment)
    _run([str(python), "-m", "pip", "install", "--quiet", *environment.packages], environment)
    made.write_text(wanted)
    return python


def torch_alone(python: Path) -> dict[str, Any]:
    """Versions of an environment, and the megabytes of a process that uses only torch.

    Raises:
        StudyError: if torch cannot be imported there.
    """
    done = measured(["-c", _TORCH_ALONE], interpreter=python, environment=surroundings())
    if done.status:
        raise StudyError(f"{python} cannot use torch")
    return {**json.loads(done.output), "torch_alone_mb": done.peak_bytes / 1e6}


def surroundings() -> dict[str, str]:
    """Environment variables for a peer: these modules are found, its own settings are quiet."""
    return {
        "PYTHONPATH": str(_ROOT),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _found(version: str) -> str:
    """A Python of a version that works: a shim may be there without one."""
    for candidate in _candidates(version):
        done = subprocess.run([candidate, "-V"], capture_output=True, text=True, check=False)
        if done.returncode == 0 and f" {version}." in done.stdout:
            return candidate
    raise StudyError(f"needs Python {version}, which is not here")


def _candidates(version: str) -> Iterator[str]:
    name = f"python{version}"
    if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
        yield sys.executable
    if on_path := shutil.which(name):
        yield on_path
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(pyenv.glob(f"versions/{version}.*/bin/{name}"), reverse=True))


def _run(command: list[str], environment: Environment) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        said = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise StudyError(f"{environment.name} does not install: {said}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
