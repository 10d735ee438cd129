"""Fixtures for every test."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from flwr.supercore.task_identity import TaskIdentity

from federation.recipe import Recipe, recipe_of

# On a busy machine an example may take long for no reason; tests of time say so themselves.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")
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


@pytest.fixture(autouse=True)
def _of_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which of Flower's runs this process is, a test says for itself alone."""
    for name in ("_run_id", "_task_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, None)


@pytest.fixture
def tiny() -> Callable[..., Recipe]:
    """A recipe that trains in a second: a narrow ResNet-20 on digits; sections are merged in."""

    def make(**sections: dict[str, Any]) -> Recipe:
        content: dict[str, Any] = {
            "model": {"width": 0.25, "slice_size": 4, "code_size": 12},
            "data": {"name": "digits", "clients": 4, "images": 480},
            "train": {"rounds": 2, "precision": "fp32", "augment": False},
        }
        for name, values in sections.items():
            content[name] = {**content.get(name, {}), **values}
        return recipe_of(content, "tiny")

    return make


@pytest.fixture
def tiny_settings() -> list[str]:
    """The same for the command line, over the recipe ``demo``."""
    values = ["model.width=0.25", "model.slice_size=4", "model.code_size=12", "data.clients=4",
              "data.images=480", "train.rounds=2", "train.precision=fp32"]  # fmt: skip
    return [part for value in values for part in ("--set", value)]
