"""Fixtures for every test."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# On a busy machine several threads of small operations wait for each other more than they work.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of commands that tests start

# The shared CIFAR-10 copy and the released checkpoint are no part of the repository; tests that
# need them look here and beside the checkout.
_SHARED = Path(os.environ.get("CSG_SHARED_DIR", Path(__file__).parents[2] / "shared"))


@pytest.fixture
def shared() -> Path:
    """The folder with the released checkpoint and the CIFAR-10 copy."""
    if not _SHARED.is_dir():
        pytest.skip(f"{_SHARED} is not there; set CSG_SHARED_DIR")
    return _SHARED


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own, also for the commands that they start."""
    before = os.environ.get("CSG_CACHE_DIR")
    folder = tmp_path_factory.mktemp("cache")
    os.environ["CSG_CACHE_DIR"] = str(folder)
    yield folder
    if before is None:
        del os.environ["CSG_CACHE_DIR"]
    else:
        os.environ["CSG_CACHE_DIR"] = before


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
