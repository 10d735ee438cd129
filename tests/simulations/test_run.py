"""What a run leaves open is settled before it begins, and written down."""

import pytest
import torch

from server.record import RunFolder
from simulations import run
from simulations.cli import main


@pytest.mark.parametrize(
    ("named", "has_bf16", "written"),
    [
        ("auto", True, "bf16"),
        ("auto", False, "fp32"),
        ("fp32", True, "fp32"),
        ("bf16", False, "bf16"),
    ],
)
def test_device_and_precision_are_written_down(tmp_path, monkeypatch, named, has_bf16, written):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(run, "follow", lambda *_, **__: 0)
    settings = ["--set", f"train.precision={named}", "--set", f"run.dir={tmp_path / 'run'}"]
    assert main(["run", "demo", *settings]) == 0
    recipe = RunFolder(tmp_path / "run").recipe()
    assert (recipe.train.precision, recipe.run.device) == (written, "cpu")
