"""Fixtures for every test."""

import os
from pathlib import Path

import pytest
import torch

# On a busy machine several threads of small operations wait for each other more than they work.
torch.set_num_threads(1)

# The shared CIFAR-10 copy and the released checkpoint are no part of the repository; tests that
# need them look here and beside the checkout.
_SHARED = Path(os.environ.get("CSG_SHARED_DIR", Path(__file__).parents[2] / "shared"))


@pytest.fixture
def shared() -> Path:
    """The folder with the released checkpoint and the CIFAR-10 copy."""
    if not _SHARED.is_dir():
        pytest.skip(f"{_SHARED} is not there; set CSG_SHARED_DIR")
    return _SHARED


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
