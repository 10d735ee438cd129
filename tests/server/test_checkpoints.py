"""Checkpoints come back as they were; files that are none are refused and never executed."""

import json
import pickle

import pytest
import safetensors.torch
import torch

from csg_core import build, pack
from csg_core.spec import ModelSpec
from server.checkpoints import CheckpointError, read_checkpoint, write_checkpoint


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(),
        ModelSpec(parametrization="dense", width=0.5),
        ModelSpec(generator="binary", generator_seed=3, layout="flat", start="paper"),
        ModelSpec(name="densenet40-36", code_size=36, classes=7),
    ],
)
def test_a_checkpoint_comes_back_as_it_was(tmp_path, spec):
    model = build(spec, seed=4)
    write_checkpoint(tmp_path / "deep" / "a.safetensors", model, spec)
    found, restored = read_checkpoint(tmp_path / "deep" / "a.safetensors")
    assert found == spec
    assert (pack(restored) == pack(model)).all()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(restored.eval()(x), model.eval()(x))


def test_a_frozen_generator_taken_from_elsewhere_is_restored(tmp_path):
    spec = ModelSpec(generator="frozen")
    model = build(spec, generator_weight=torch.randn(1296, 72))
    write_checkpoint(tmp_path / "a.safetensors", model, spec)
    _, restored = read_checkpoint(tmp_path / "a.safetensors")
    assert torch.equal(
        restored.layer1[0].conv1.generator.weight, model.layer1[0].conv1.generator.weight
    )
    assert not list(restored.layer1[0].conv1.generator.parameters())


def test_checkpoints_of_every_length_of_header_are_read(tmp_path):
    """The file begins with that length, which one time in 32 looks like the start of a pickle."""
    spec, path, starts = (
        ModelSpec(name="blazefl-cnn", parametrization="dense"),
        tmp_path / "a",
        set(),
    )
    model = build(spec)
    for padding in range(0, 256, 8):
        write_checkpoint(path, model, spec, {"a" * (padding + 1): torch.zeros(1)})
        starts.add(path.read_bytes()[0])
        assert read_checkpoint(path)[0] == spec
    assert 0x80 in starts


def test_a_failed_write_keeps_the_checkpoint_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    spec = ModelSpec()
    write_checkpoint(path, build(spec), spec)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: cannot be written \(No space left"):
        write_checkpoint(path, build(spec, seed=1), spec)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    "change",
    [
        {"width": "x"}, {"width": 1e300}, {"width": -1}, {"slice_size": "12"}, {"slice_size": 12.5},
        {"slice_size": 10**9}, {"code_size": None}, {"classes": 10**15}, {"classes": -5},
        {"generator_seed": "a"}, {"name": []}, {"name": "resnet20; rm"}, {"layout": 3},
        {"start": "dense"}, {"generator": {}}, {"unknown": 1},
    ],
)  # fmt: skip
def test_a_strangers_description_is_refused_in_one_line(tmp_path, change):
    spec = ModelSpec(width=0.25, slice_size=4, code_size=8)
    written = json.dumps(spec.to_dict() | change)
    content = safetensors.torch.save(build(spec).state_dict(), {"csg_core.spec": written})
    (tmp_path / "a.t7").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.t7: ") as caught:
        read_checkpoint(tmp_path / "a.t7")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "state",
    [
        {1: torch.zeros(1)},
        {"CLG.weight": torch.zeros(0, 0)},
        {"CLG.weight": torch.zeros(8, 0)},
        {"CLG.weight": torch.zeros(8, 4), "conv_1_3x3.weight": torch.tensor(1.0)},
    ],
)
def test_strange_tensors_are_refused_in_one_line(tmp_path, state):
    torch.save({"net": state}, tmp_path / "a.t7")
    with pytest.raises(CheckpointError, match=r"a\.t7: ") as caught:
        read_checkpoint(tmp_path / "a.t7")
    assert "\n" not in str(caught.value)


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def _pickle_bomb(folder):
    with (folder / "a.t7").open("wb") as file:
        pickle.dump({"net": _Bomb(folder / "executed")}, file)


def _torch_bomb(folder):
    torch.save({"net": _Bomb(folder / "executed")}, folder / "a.t7")


def _damaged(folder):
    spec = ModelSpec()
    write_checkpoint(folder / "a.t7", build(spec), spec)
    content = (folder / "a.t7").read_bytes()
    (folder / "a.t7").write_bytes(content[: len(content) // 2])


def _truncated_zip(folder):
    torch.save({"net": {"a": torch.zeros(1000)}}, folder / "a.t7")
    content = (folder / "a.t7").read_bytes()
    (folder / "a.t7").write_bytes(content[: len(content) // 2])


def _nan(folder):
    model = build(ModelSpec())
    with torch.no_grad():
        model.layer1[0].conv1.generator.weight[3, 4] = torch.nan
    write_checkpoint(folder / "a.t7", model, ModelSpec())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda _: None, "no such file"),
        (lambda f: (f / "a.t7").mkdir(), "is a folder; give the file of a checkpoint"),
        (lambda f: (f / "a.t7").write_bytes(b""), "truncated or no checkpoint"),
        (lambda f: (f / "a.t7").write_bytes(b"hello, world" * 99), "truncated or no checkpoint"),
        (lambda f: (f / "a.t7").write_bytes(b"\x80\x02garbage"), "none of it was executed"),
        (_damaged, "truncated or no checkpoint"),
        (_truncated_zip, "truncated or no checkpoint"),
        (_pickle_bomb, "none of it was executed"),
        (_torch_bomb, "none of it was executed"),
        (_nan, r"generator\.weight holds NaN or infinity"),
        (lambda f: torch.save([1, 2], f / "a.t7"), "holds no state_dict of tensors"),
        (lambda f: torch.save({"a": torch.zeros(1)}, f / "a.t7"), "no network this project knows"),
        (lambda f: write_checkpoint(f / "a.t7", build(ModelSpec()), ModelSpec(name="resnet32")),
         "not of resnet32: layer1.3.conv1.codes is .* in the network and absent"),
        (lambda f: write_checkpoint(f / "a.t7", build(ModelSpec()), ModelSpec(code_size=9999)),
         "code size 9999 is larger"),
    ],
)  # fmt: skip
def test_files_that_are_no_checkpoint_are_refused_in_one_line(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(tmp_path / "a.t7")
    assert "\n" not in str(caught.value)
    assert "a.t7" in str(caught.value)
    assert not (tmp_path / "executed").exists()
