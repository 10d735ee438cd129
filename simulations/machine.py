"""What a figure was measured on."""

import os
import platform
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from federation.code import code_identity
from federation.devices import device_of, precision_of
from federation.recipe import Recipe

_PACKAGES = ("csg-fl", "flwr", "numpy", "torch")


def machine() -> dict[str, Any]:
    """Processor, cores, threads and versions, for the record of a measurement."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def environment(recipe: Recipe) -> dict[str, Any]:
    """What a run runs on: machine, versions, device and precision, seed, commit and date."""
    return {
        "machine": machine(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "device": device_name(device_of(recipe)),
        "precision": precision_of(recipe),
        "seed": recipe.run.seed,
        "commit": commit(),
        "code": code_identity(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def device_name(device: torch.device) -> str:
    """A GPU by its model, else as torch names the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit that this package was checked out from; None if it was installed."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else another's repository
        return git("describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
