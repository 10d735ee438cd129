"""What a run leaves open is settled before it begins, and written down."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from server.record import RunFolder
from simulations import run
from simulations.cli import main


@pytest.mark.slow
def test_a_client_of_ones_own_trains_as_the_page_says(tmp_path, tiny_settings, monkeypatch):
    page = (Path(run.__file__).parents[1] / "docs" / "running.md").read_text()
    (tmp_path / "mine.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    settings = [*tiny_settings, "--set", "run.dir=run", "--set", "train.lr=0.01"]
    assert main(["run", "demo", *settings, "--set", "run.client_app=mine:app"]) == 0
    rows = RunFolder(tmp_path / "run").rows()
    assert all(row.failures == 0 for row in rows)
    assert rows[-1].train_loss < rows[0].train_loss
    assert main(["run", "demo", *settings, "--set", "run.dir=other"]) == 0
    assert RunFolder(tmp_path / "other").rows()[-1].train_loss != rows[-1].train_loss


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_reads_what_it_says(tmp_path, tiny_settings):
    command = [sys.executable, "-m", "simulations.cli", "run", "demo", *tiny_settings]
    command += ["--set", f"run.dir={tmp_path / 'run'}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.readline()  # as `head -1`
        process.stdout.close()
        said = process.stderr.read()
    assert said == "csg: nobody reads what the run says any more; it goes on\n"
    assert process.returncode == 0
    assert RunFolder(tmp_path / "run").summary()["outcome"] == "completed"


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


def test_images_that_are_no_clients_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "_engine", lambda *_: None)
    settings = ["data.partition=shards", "data.shards_per_client=3", "data.clients=4",
                "data.images=50", f"run.dir={tmp_path / 'run'}"]  # fmt: skip
    main(["run", "demo", *(part for value in settings for part in ("--set", value))])
    assert "2 images are no client's: pieces of the same size leave" in capsys.readouterr().out
    main(["run", "demo", "--set", f"run.dir={tmp_path / 'other'}"])
    assert "are no client's" not in capsys.readouterr().out
