"""Whoever made the bytes, and whatever its checksum: a sound array, or a refusal in one line.

An attacker can compute a CRC-32, so the checksum is made right again after every change.
"""

import struct
import subprocess
import sys
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csg_core.codecs import Ecsq, codec_named, total
from csg_core.entries import KernelGrid, Part
from csg_core.payload import HEADER_BYTES, Label, PayloadError, decode, encode, payload_bytes, seal
from tests.csg_core.foretold import AFTER, codec_of
from tests.fuzz.doors import LINES, PARTS, SIZE, label, mended, refused, sound

NAMES = (*LINES, *AFTER)
MOST = 10  # times the array and the payload: what decoding may take at its peak
SPARE = 256_000  # bytes, for small arrays and tables
LARGE = (
    Part("generator", 150_300, KernelGrid((3, 3), 50)),
    Part("codes", 40_000),
    Part("norms", 5_000),
    Part("statistics", 5_000),
)


def _body(name, parts=PARTS, seed=0):
    rng, codec = np.random.default_rng(seed), codec_of(name, parts)
    values = (rng.laplace(size=total(parts)) * 0.01).astype(np.float32)
    for delta in getattr(codec, "deltas", ()):  # so that they foretell some of it
        values += np.float32(0.01) * delta
    return codec.encode(values, parts, rng)


def _decoded(payload, name, about=None):
    """Decode what may be anything; whether it was taken."""
    about = label() if about is None else about
    try:
        values = decode(payload, about, codec_of(name, tuple(about.parts)))
    except PayloadError as error:
        refused(error)
        return False
    assert values.dtype == np.float32
    assert values.shape == (about.size,)
    assert np.isfinite(values).all()
    return True


def _sealed(body, name):
    return seal(bytes(body), label(), codec_of(name, PARTS))


@pytest.mark.parametrize("name", NAMES)
def test_cut_at_every_length(name):
    body = _body(name)
    assert _decoded(_sealed(body, name), name)
    for length in range(len(body)):
        assert not _decoded(_sealed(body[:length], name), name)
    payload = _sealed(body, name)
    for length in range(len(payload)):  # with lengths and checksum made right, and as it was cut
        assert not _decoded(mended(payload[:length]), name)
        assert not _decoded(payload[:length], name)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=5000)
@given(more=st.binary(min_size=1, max_size=40), times=st.sampled_from([1, 100, 10_000]))
def test_longer_than_it_is(name, more, times):
    assert not _decoded(_sealed(_body(name) + more * times, name), name)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=200, deadline=5000)
@given(data=st.data())
def test_changed_swapped_and_overwritten_bytes(name, data):
    body = bytearray(_body(name, seed=data.draw(st.integers(0, 3))))
    place = st.integers(0, max(0, len(body) - 1))
    for _ in range(data.draw(st.integers(1, 6)) if body else 0):
        kind = data.draw(st.sampled_from(["flip", "byte", "swap", "overwrite", "remove"]))
        at, other = data.draw(place) % len(body), data.draw(place) % len(body)
        if kind == "flip":
            body[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "byte":
            body[at] = data.draw(st.sampled_from([0, 1, 127, 128, 254, 255]))
        elif kind == "swap":
            body[at], body[other] = body[other], body[at]
        elif kind == "overwrite":
            noise = data.draw(st.binary(min_size=1, max_size=16))[: len(body) - at]
            body[at : at + len(noise)] = noise
        elif len(body) > 1:
            del body[at]
    _decoded(_sealed(body, name), name)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=5000)
@given(noise=st.binary(max_size=1500))
def test_noise_behind_a_good_header(name, noise):
    _decoded(_sealed(noise, name), name)


def test_another_codecs_bytes_under_this_codecs_header():
    for ours in LINES:
        for theirs in LINES:
            body = _body(theirs)
            _decoded(_sealed(body, ours), ours)
            if codec_named(ours) != codec_named(theirs):
                assert not _decoded(_sealed(body, theirs), ours)


_NUMBER = st.one_of(st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1]), st.integers(0, 2**32 - 1))


@settings(max_examples=400, deadline=5000)
@given(line=st.sampled_from(LINES), field=st.integers(0, 6), number=_NUMBER,
       identity=st.none() | st.binary(min_size=4, max_size=4))  # fmt: skip
def test_whatever_a_header_declares_nothing_is_allocated(line, field, number, identity):
    """Fields: round, kind, version, digest, number of tensors, number of values, length."""
    good = _sealed(_body(line), line)
    payload = bytearray(good)
    struct.pack_into("<I", payload, 24 + 4 * field, number)
    if identity is not None:
        payload[4:8] = identity
    rest = bytes(payload[: HEADER_BYTES - 4])
    checksum = zlib.crc32(good[HEADER_BYTES:], zlib.crc32(rest))
    struct.pack_into("<I", payload, HEADER_BYTES - 4, checksum)
    tracemalloc.start()
    taken = _decoded(bytes(payload), line)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken == (bytes(payload) == good)
    assert taken or peak < 20_000


def _hostile(name, parts):
    """Bodies that are made to cost much: as many bytes as are taken, and as few."""
    most = codec_of(name, parts).most_bytes(parts)
    rng = np.random.default_rng(5)
    good = _body(name, parts)
    changed = bytearray(good)
    for place in rng.integers(0, max(1, len(good)), 20) if good else []:
        changed[place] = rng.integers(256)
    few = [bytes([0, 127]) + bytes(60), bytes(8), good[: len(good) // 2]]
    few += [
        filler * length + tail
        for length in (40, 48, 51, 52, 55, 56)
        for filler in (b"\xff", b"\x00")
        for tail in (b"", bytes(4))
    ]  # heads, and next to nothing behind
    return [good, bytes(changed), bytes(most), b"\xff" * most, rng.bytes(most), *few]


@pytest.mark.parametrize("name", NAMES)
def test_memory_at_the_peak_is_a_small_multiple_of_array_and_payload(name):
    about = Label(fingerprint=label().fingerprint, parts=LARGE, round=5, kind="update", version=5,
                  digest=7)  # fmt: skip
    for body in _hostile(name, LARGE):
        payload = seal(body, about, codec_of(name, LARGE))
        tracemalloc.start()
        _decoded(payload, name, about)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST * (4 * about.size + len(payload)) + SPARE


_RESIDENT = """
import sys
from csg_core.payload import seal
from tests.csg_core.foretold import codec_of
from tests.csg_core.test_strangers import LARGE, NAMES, Label, _decoded, _hostile, label

def memory(key):
    with open("/proc/self/status") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith(key))

parts = tuple(part._replace(size=8 * part.size) for part in LARGE)
about = Label(fingerprint=label().fingerprint, parts=parts, round=5, kind="update", version=5,
              digest=7)
payloads = [(name, seal(body, about, codec_of(name, parts)))
            for name in NAMES for body in _hostile(name, parts)]
largest = max(len(payload) for _, payload in payloads)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak begins here
before = memory("VmRSS")
for name, payload in payloads:
    _decoded(payload, name, about)
print(memory("VmHWM") - before, 4 * about.size + largest)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_the_process_too():
    """What the range coder, which is Rust, allocates is seen here only."""
    done = subprocess.run([sys.executable, "-c", _RESIDENT], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    grown, array_and_payload = map(int, done.stdout.split())
    assert grown < MOST * array_and_payload + 16_000_000


@pytest.mark.parametrize("step", [1e-3, 0.01, 1.5, 100])
@given(values=st.lists(st.floats(-60_000, 60_000, width=32), min_size=SIZE, max_size=SIZE))
@settings(max_examples=40, deadline=5000)
def test_no_honest_payload_is_too_long(step, values):
    codec = Ecsq(step=step)
    array = np.array(values, np.float32)
    payload = encode(array, label(), codec, np.random.default_rng(0))
    sound(decode(payload, label(), codec))


def test_the_largest_payload_is_refused_before_its_checksum_is_taken():
    """A gigabyte would take a second to sum; here it is 64 MB, refused at once."""
    payload = seal(bytes(64_000_000), label(), codec_named("fp32"))
    started = time.thread_time()
    with pytest.raises(PayloadError, match="64,000,056 bytes; this round takes"):
        decode(payload, label(), codec_named("fp32"))
    assert time.thread_time() - started < 0.01
    assert payload_bytes(PARTS, codec_named("fp32")) < 1000
