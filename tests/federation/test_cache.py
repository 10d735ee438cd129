"""Decoded images are kept once, survive killed writers, and follow their source."""

import os

import numpy as np
import pytest

from federation.cache import cache_folder, cached


class _Decoder:
    def __init__(self, value=1):
        self.calls, self.value = 0, value

    def __call__(self):
        self.calls += 1
        images = np.full((3, 2, 2, 3), self.value, np.uint8)
        return images, np.arange(3, dtype=np.int64)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CSG_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source"
    path.write_bytes(b"one")
    return path


def _entry():
    (entry,) = cache_folder().glob("x-*")
    return entry


def test_the_second_reader_maps_what_the_first_decoded(source):
    decode = _Decoder()
    first, second = cached("x", [source], decode), cached("x", [source], decode)
    assert decode.calls == 1
    assert np.array_equal(first[0], second[0])
    assert isinstance(second[0], np.memmap)


def test_a_changed_source_is_decoded_again(source):
    cached("x", [source], _Decoder(1))
    source.write_bytes(b"three")
    assert cached("x", [source], _Decoder(3))[0].max() == 3


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "entry.json"])
def test_a_damaged_or_torn_entry_is_made_anew(source, name):
    cached("x", [source], _Decoder(1))
    path = _entry() / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    for damage in (bytes(content), b"", bytes(content)[:20], b"[]", b"3"):
        path.write_bytes(damage)
        decode = _Decoder(1)
        assert cached("x", [source], decode)[0].max() == 1
        assert decode.calls == 1


@pytest.mark.parametrize("place", range(128))
def test_a_changed_byte_of_a_header_is_no_error(source, place):
    first = cached("x", [source], _Decoder(1))
    path = _entry() / "images.npy"
    whole = path.read_bytes()
    for change in (1, 0x80, 0xFF):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
        found = cached("x", [source], _Decoder(1))
        assert all(np.array_equal(a, b) for a, b in zip(found, first, strict=True))


def test_what_killed_writers_left_is_swept_away_after_a_while(source):
    old, new = (cache_folder() / f".partial-{name}" for name in ("old", "new"))
    for partial in (old, new):
        partial.mkdir(parents=True)
        (partial / "images.npy").write_bytes(b"half")
    os.utime(old, (0, 0))
    cached("x", [source], _Decoder())
    assert not old.exists()
    assert new.exists(), "its writer may be at work"


def test_what_killed_writers_of_shards_left_is_swept_away_too(source):
    cache_folder().mkdir()
    old, new = (cache_folder() / f".shards-{name}.npz.tmp" for name in ("old", "new"))
    for partial in (old, new):
        partial.write_bytes(b"half")
    os.utime(old, (0, 0))
    cached("x", [source], _Decoder())
    assert not old.exists()
    assert new.exists(), "its writer may be at work"


def test_an_entry_is_kept_while_another_writer_puts_its_own_in_place(source):
    """What is listed and then gone is stood for by a link to nowhere."""
    cache_folder().mkdir()
    (cache_folder() / ".partial-renamed").symlink_to("nowhere")
    decode = _Decoder()
    for _ in range(2):
        cached("x", [source], decode)
    assert decode.calls == 1


def test_writes_to_a_mapped_array_stay_with_the_process(source):
    cached("x", [source], _Decoder(1))
    images, _ = cached("x", [source], _Decoder())
    images[:] = 9
    assert cached("x", [source], _Decoder())[0].max() == 1


def test_a_cache_that_cannot_be_written_is_done_without(source, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CSG_CACHE_DIR", str(tmp_path / "file" / "below"))
    assert cached("x", [source], _Decoder(4))[0].max() == 4
