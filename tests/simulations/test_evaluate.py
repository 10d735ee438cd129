"""A checkpoint is evaluated on images of its own classes, or one line says that it cannot be."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from csg_core import ModelSpec, build
from server.checkpoints import write_checkpoint
from simulations.cli import main


@pytest.fixture
def checkpoint(tmp_path):
    """A network of five outputs."""
    path, spec = tmp_path / "five.safetensors", ModelSpec(width=0.25, classes=5)
    write_checkpoint(path, build(spec), spec)
    return str(path)


@pytest.fixture
def images(tmp_path):
    """Writes a parquet file of pictures with these labels."""

    def write(*labels):
        picture = io.BytesIO()
        Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(picture, "PNG")
        rows = [{"bytes": picture.getvalue(), "path": None}] * len(labels)
        folder = tmp_path / "images"
        folder.mkdir()
        pq.write_table(pa.table({"img": rows, "label": labels}), folder / "test.parquet")
        return folder

    return write


@pytest.mark.parametrize("kind", ["digits", "folder", "file"])
def test_a_network_of_too_few_outputs_is_named(kind, checkpoint, images, capsys):
    folder = images(1, 9)
    place = {"digits": "digits", "folder": str(folder), "file": str(folder / "test.parquet")}[kind]
    assert main(["evaluate", checkpoint, "--data", place]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"csg evaluate: {checkpoint}: its resnet20 has 5 outputs, and {place} has labels up to 9; "
        "name images of the classes that it was trained on\n"
    )


@pytest.mark.parametrize("whole", [True, False], ids=["folder", "file"])
def test_images_of_no_more_classes_than_outputs_are_evaluated(whole, checkpoint, images, capsys):
    folder = images(4, 0, 2)
    place = folder if whole else folder / "test.parquet"
    assert main(["evaluate", checkpoint, "--data", str(place), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 3


def test_a_label_below_zero_is_refused(checkpoint, images, capsys):
    file = images(3, -1) / "test.parquet"
    assert main(["evaluate", checkpoint, "--data", str(file)]) == 2
    said = capsys.readouterr().err
    assert said == f"csg evaluate: {file}: labels are -1..3; they must lie in 0..3\n"
