"""The deployment that all tests of images and compose share."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from deployment import Project, write_images


@pytest.fixture(scope="session")
def project() -> Iterator[Project]:
    """Images built, keys made, server, proxy and two clients up."""
    folder = Path(tempfile.mkdtemp(prefix="csg-deploy-"))
    folder.chmod(0o755)
    shared = Path(os.environ.get("CSG_SHARED_DIR", Path(__file__).parents[3] / "shared"))
    original = shared / "data" / "cifar10-original-train-first1000.parquet"
    write_images(folder / "images", original if original.exists() else None)
    made = Project(folder, folder / "images")
    try:
        made.compose("build", timeout=1500)
        made.compose("run", "--rm", "keys", "make", "--host", "fl.test", "--host", "172.17.0.1")
        made.compose("up", "--detach", "--wait", "server", "proxy")
        made.compose("run", "--rm", "keys", "register")
        made.compose("up", "--detach", "--wait")
        yield made
    finally:
        if os.environ.get("CSG_KEEP") is None:
            made.compose("down", "--volumes", "--timeout", "5", check=False)
            shutil.rmtree(folder, ignore_errors=True)
