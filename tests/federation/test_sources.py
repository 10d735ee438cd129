"""Images come in whole, and a file that cannot be used says so in one line."""

import io
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from csg_core.networks import from_torchvision
from federation.data_sets import DATA_SETS, DataError
from federation.image_files import load_folder, load_parquet
from federation.sources import load_digits, load_images, load_split


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def _write(path, images, labels):
    structs = [{"bytes": image, "path": None} for image in images]
    pq.write_table(pa.table({"img": structs, "label": labels}), path)
    return path


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)


def test_lossless_images_come_back_exactly(tmp_path, pixels):
    data = load_parquet(_write(tmp_path / "a.parquet", map(_png, pixels), [0, 1, 2, 3, 4, 9]))
    assert np.array_equal(data.images.numpy(), pixels)
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 9]


def test_a_split_of_several_files_is_joined_in_order(tmp_path, pixels):
    _write(tmp_path / "train-00001-of-00002.parquet", map(_png, pixels[3:]), [3, 4, 5])
    _write(tmp_path / "train-00000-of-00002.parquet", map(_png, pixels[:3]), [0, 1, 2])
    _write(tmp_path / "test-00000-of-00001.parquet", map(_png, pixels[:1]), [7])
    data = load_split(tmp_path, "train")
    assert data.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert np.array_equal(data.images.numpy(), pixels)
    assert len(load_split(tmp_path, "test")) == 1
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"train-00001-of-00002.parquet is missing"):
        load_split(tmp_path, "train")


def test_the_shared_copy_loads(shared):
    data = load_split(shared / "data" / "cifar10-jpeg", "test")
    assert data.images.shape == (10_000, 32, 32, 3)
    assert data.labels.bincount().tolist() == [1000] * 10


def test_digits_are_split_once_and_for_all():
    train, test = load_digits(train=True), load_digits(train=False)
    assert (len(train), len(test)) == (1437, 360) == (DATA_SETS["digits"].training, 360)
    assert train.images.shape[1:] == (32, 32, 3)
    assert set(test.labels.tolist()) == set(range(10))
    assert float(train.images.float().mean() / 255) == pytest.approx(train.mean[0], abs=0.002)
    assert float(train.images.float().std() / 255) == pytest.approx(train.std[0], abs=0.002)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, _: p / "absent.parquet", "no such file"),
        (lambda p, _: _text(p / "a.parquet", b"not parquet"), "cannot be read as parquet"),
        (lambda p, _: _text(p / "a.parquet", b""), "cannot be read as parquet"),
        (lambda p, _: _columns(p / "a.parquet"), "need img"),
        (lambda p, _: _write(p / "a.parquet", [b"noise"], [1]), "image that cannot be used"),
        (lambda p, x: _write(p / "a.parquet", [_png(x[0]), _png(x[1][:16])], [1, 2]),
         "image that cannot be used"),
        (lambda p, x: _write(p / "a.parquet", [_png(x[0])], [1.5]), "cannot be read as parquet"),
        (lambda p, x: _write(p / "a.parquet", [_png(x[0])], [10]), "10; they must lie in 0..9"),
    ],
)  # fmt: skip
def test_unusable_files_are_refused_in_one_line(tmp_path, pixels, make, message):
    with pytest.raises(DataError, match=message) as caught:
        load_parquet(make(tmp_path, pixels))
    assert "\n" not in str(caught.value)


def _text(path, content):
    path.write_bytes(content)
    return path


def _columns(path):
    pq.write_table(pa.table({"picture": [1], "label": [1]}), path)
    return path


def test_two_copies_of_a_split_are_refused(tmp_path, pixels):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        _write(tmp_path / folder / "train.parquet", map(_png, pixels), range(6))
    with pytest.raises(DataError, match="holds several copies of train"):
        load_split(tmp_path, "train")


def test_other_files_that_begin_like_a_split_are_left_alone(tmp_path, pixels):
    _write(tmp_path / "train.parquet", map(_png, pixels), range(6))
    _write(tmp_path / "training-notes.parquet", map(_png, pixels), range(6))
    assert len(load_split(tmp_path, "train")) == 6


def test_a_folder_without_cifar10_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no train images; name a folder that holds"):
        load_split(tmp_path, "train")


def _batches(folder, pixels, labels):
    """The layout of the official archive: five training batches and a test batch, pickled."""
    below = folder / "cifar-10-batches-py"
    below.mkdir()
    names = [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    for name in names:
        data = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
        content = {b"data": data, b"labels": list(labels), b"batch_label": name.encode()}
        (below / name).write_bytes(pickle.dumps(content, protocol=2))
    return below


def test_the_official_batches_are_read(tmp_path, pixels):
    _batches(tmp_path, pixels, range(6))
    train, test = load_split(tmp_path, "train"), load_split(tmp_path, "test")
    assert (len(train), len(test)) == (30, 6)
    assert np.array_equal(test.images.numpy(), pixels)
    assert train.labels.tolist() == list(range(6)) * 5


def test_an_incomplete_or_damaged_copy_of_the_batches_is_named(tmp_path, pixels):
    below = _batches(tmp_path, pixels, range(6))
    (below / "data_batch_3").write_bytes(b"\x80\x02 and then nothing")
    with pytest.raises(DataError, match="data_batch_3: is no usable batch"):
        load_split(tmp_path, "train")
    (below / "data_batch_3").unlink()
    with pytest.raises(DataError, match=r"data_batch_3: no such file; the copy .* is incomplete"):
        load_split(tmp_path, "train")


class _Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_no_code_in_a_batch_is_executed(tmp_path, pixels):
    below = _batches(tmp_path, pixels, range(6))
    trace = tmp_path / "executed"
    (below / "test_batch").write_bytes(pickle.dumps({b"data": _Evil(trace)}, protocol=2))
    with pytest.raises(DataError, match=r"posix\.mkdir is not allowed"):
        load_split(tmp_path, "test")
    assert not trace.exists()


def test_without_any_copy_the_error_names_both_ways(tmp_path, monkeypatch):
    """Nothing is named, and the download cannot reach anything: a proxy that is not there."""
    monkeypatch.delenv("CSG_DATA_DIR", raising=False)
    monkeypatch.setenv("CSG_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=r"could not be downloaded .*data\.dir or \$CSG_DATA_DIR"):
        load_images("cifar10", None, "train")


def test_a_download_that_is_broken_off_leaves_nothing_that_is_taken_for_it(
    tmp_path, pixels, monkeypatch
):
    """What torchvision does with its server is done here by a function, which stops half-way."""
    monkeypatch.delenv("CSG_DATA_DIR", raising=False)
    monkeypatch.setenv("CSG_CACHE_DIR", str(tmp_path / "cache"))
    goes_on = False

    def fetch(root, *, download):
        assert download
        below = _batches(Path(root), pixels, range(6))
        if not goes_on:
            (below / "data_batch_3").unlink()
            raise OSError(28, "No space left on device")

    datasets = SimpleNamespace(datasets=SimpleNamespace(CIFAR10=fetch))
    monkeypatch.setattr(from_torchvision, "torchvision", lambda: datasets)
    with pytest.raises(DataError, match=r"could not be downloaded .*No space left"):
        load_images("cifar10", None, "test")
    goes_on = True
    assert len(load_images("cifar10", None, "train")) == 30
    monkeypatch.setattr(from_torchvision, "torchvision", lambda: pytest.fail("it is there"))
    assert len(load_images("cifar10", None, "test")) == 6


def test_a_folder_of_pictures_says_what_is_wrong_with_it(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no pictures"):
        load_folder(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").write_text("no picture")
    with pytest.raises(DataError, match=r"a\.png: is no picture"):
        load_folder(tmp_path)
    deep = np.linspace(0, 65535, 1024, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(deep).save(tmp_path / "cat" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: .*more than 8 bits a channel; save it with 8"):
        load_folder(tmp_path)
    (tmp_path / "unicorn").mkdir()
    (tmp_path / "cat" / "a.png").unlink()
    with pytest.raises(DataError, match="unicorn: is no class; call sub-folders airplane"):
        load_folder(tmp_path)
