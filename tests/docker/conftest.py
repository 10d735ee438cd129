"""The deployment that all tests of images and compose share."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from deployment import Project, readme_commands, write_images


@pytest.fixture(scope="session")
def project() -> Iterator[Project]:
    """A deployment with two clients, brought up by the README's own commands."""
    folder = Path(tempfile.mkdtemp(prefix="deploy-csg-"))
    folder.chmod(0o755)
    shared = Path(os.environ.get("CSG_SHARED_DIR", Path(__file__).parents[3] / "shared"))
    original = shared / "data" / "cifar10-original-train-first1000.parquet"
    write_images(folder / "images", original if original.exists() else None)
    made = Project(folder, folder / "images")
    try:
        for command in readme_commands():
            if command[0] == "exec":  # the deployment is up; what follows is in the tests
                break
            made.compose(*command, timeout=1500)
        yield made
    finally:
        if os.environ.get("CSG_KEEP") is None:
            made.compose("down", "--volumes", "--timeout", "5", check=False)
            shutil.rmtree(folder, ignore_errors=True)
