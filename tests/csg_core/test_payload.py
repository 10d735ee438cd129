"""The server's open door: what goes in comes out, and nothing else gets through."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csg_core.codecs import codec_named, total
from csg_core.entries import Part
from csg_core.payload import HEADER_BYTES, Label, PayloadError, decode, payload_bytes
from csg_core.payload import encode as encode_drawing
from tests.csg_core.foretold import AFTER, codec_of
from tests.csg_core.test_codecs import LINES, PARTS

FP32, FP16 = codec_named("fp32"), codec_named("fp16")


def _label(size, **changes):
    given_ = {"fingerprint": "00112233445566778899aabbccddeeff", "round": 7, "kind": "update",
              "version": 7, "digest": 99, "parts": (Part("codes", size),)}  # fmt: skip
    return Label(**{**given_, **changes})


def encode(values, label, codec):
    return encode_drawing(values, label, codec, np.random.default_rng(0))


@pytest.mark.parametrize("codec", [FP32, FP16], ids=["fp32", "fp16"])
@given(values=st.lists(st.floats(-60_000, 60_000, width=32), max_size=50))
def test_values_come_back_within_the_codec(codec, values):
    array = np.array(values, np.float32)
    payload = encode(array, _label(array.size), codec)
    assert len(payload) == payload_bytes(_label(array.size).parts, codec)
    back = decode(payload, _label(array.size), codec)
    tolerance = 0 if codec is FP32 else 2**-11
    np.testing.assert_allclose(back, array, rtol=tolerance, atol=0 if codec is FP32 else 2**-24)


@settings(max_examples=300)
@given(data=st.data())
def test_a_payload_with_any_changed_byte_is_refused(data):
    payload = bytearray(encode(np.arange(9, dtype=np.float32), _label(9), FP32))
    place = data.draw(st.integers(0, len(payload) - 1))
    payload[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(PayloadError):
        decode(bytes(payload), _label(9), FP32)


@pytest.mark.parametrize("name", [*LINES, *AFTER])
def test_a_payload_with_any_flipped_bit_is_refused(name):
    """Each bit of the header, and three hundred of what any codec wrote."""
    rng, codec = np.random.default_rng(0), codec_of(name, PARTS)
    about = _label(0, parts=PARTS)
    payload = encode(rng.laplace(size=total(PARTS)).astype(np.float32), about, codec)
    decode(payload, about, codec)
    head, bits = 8 * HEADER_BYTES, 8 * len(payload)
    behind = rng.choice(np.arange(head, bits), min(300, bits - head), replace=False)
    for bit in (*range(head), *behind.tolist()):
        damaged = bytearray(payload)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PayloadError):
            decode(bytes(damaged), about, codec)


@settings(max_examples=300)
@given(noise=st.binary(max_size=200))
def test_noise_is_refused(noise):
    with pytest.raises(PayloadError):
        decode(noise, _label(20), FP32)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"fingerprint": "ff" * 16}, "another model"),
        ({"round": 6}, "round 6"),
        ({"kind": "model"}, "kind"),
        ({"version": 6}, "version 6; expected 7"),
        ({"digest": 98}, "digest 98; expected 99"),
        ({"parts": (Part("codes", 1), Part("codes", 2))}, "number of tensors 2; expected 1"),
    ],
)
def test_what_does_not_fit_is_named(sent, message):
    payload = encode(np.zeros(3, np.float32), _label(3, **sent), FP32)
    with pytest.raises(PayloadError, match=message):
        decode(payload, _label(3), FP32)


def test_a_round_that_does_not_go_into_a_header_is_named():
    with pytest.raises(ValueError, match="round 4,294,967,296 does not go into four bytes"):
        encode(np.zeros(3, np.float32), _label(3, round=2**32), FP32)


def test_another_codec_version_or_size_is_named():
    payload = encode(np.zeros(3, np.float32), _label(3), FP16)
    with pytest.raises(PayloadError, match="codec"):
        decode(payload, _label(3), FP32)
    with pytest.raises(PayloadError, match="bytes; this round takes"):
        decode(payload + bytes(1000), _label(3), FP32)
    with pytest.raises(PayloadError, match="format version 9"):
        decode(b"CSG\x09" + payload[4:], _label(3), FP16)


def test_nan_is_refused_on_either_side():
    with pytest.raises(ValueError, match="NaN"):
        encode(np.array([np.nan], np.float32), _label(1), FP32)
    with pytest.raises(ValueError, match="too large for fp16"):
        encode(np.array([1e6], np.float32), _label(1), FP16)
    good = encode(np.array([1.0], np.float32), _label(1), FP32)
    import struct
    import zlib

    body = struct.pack("<f", float("inf"))
    header = good[: HEADER_BYTES - 4]
    forged = header + struct.pack("<I", zlib.crc32(body, zlib.crc32(header))) + body
    with pytest.raises(PayloadError, match="NaN or infinity"):
        decode(forged, _label(1), FP32)
