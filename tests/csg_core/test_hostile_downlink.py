"""A server, or whoever is in its place, cannot make a client work or store more than a round's."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csg_core.broadcast import MOST_FRAMES, Channel, Held
from csg_core.codecs import Float16, codec_named
from csg_core.entries import Part
from csg_core.payload import PayloadError, seal
from csg_core.sender import Sender
from tests.fuzz.doors import FINGERPRINT, LINES, PARTS, SIZE, refused, sound

KEY = Float16()


def _channel(line="ecsq", *, deltas=True, predict=False):
    return Channel(FINGERPRINT, PARTS, codec_named(line), deltas, predict)


def _models(count, seed=0):
    steps = np.random.default_rng(seed).normal(size=(count, SIZE)) * 0.01
    return steps.cumsum(axis=0).astype(np.float32)


def _sender(channel, rounds):
    models = _models(rounds + 1)
    sender = Sender(channel, models[0])
    for round_, model in enumerate(models[1:], start=1):
        sender.advance(model, round_, np.random.default_rng(round_))
    return sender, channel.first(models[0])


def _frame(channel, kind, round_, held, body=b"", codec=None):
    return seal(body, channel.label(kind, round_, held), codec or channel.codec)


def _refused(channel, message, round_, held, match):
    with pytest.raises(PayloadError, match=match) as error:
        channel.receive(message, round_, held)
    refused(error.value)


def test_a_hundred_thousand_frames_of_old_versions_are_refused_at_once():
    channel, held = _channel("none"), Held(200_000, np.zeros(SIZE, np.float32))
    old = b"".join(
        _frame(channel, "delta", 1, Held(version, held.values)) for version in range(100_000)
    )
    _refused(channel, old, 1, held, "model of 5,600,000 bytes; 368 are taken")
    wide = Channel(FINGERPRINT, (Part("other", 3_000_000),), codec_named("none"), True)
    model = Held(200_000, np.zeros(3_000_000, np.float32))
    tracemalloc.start()
    started = time.thread_time()
    _refused(wide, old, 1, model, f"more than {MOST_FRAMES} frames")
    assert time.thread_time() - started < 0.5
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_frames_are_counted_before_any_is_decoded():
    """Empty frames, each of which would cost a pass over the model and a checksum of it."""
    wide = Channel(FINGERPRINT, (Part("other", 200_000),), codec_named("none"), True)
    held = Held(0, np.zeros(200_000, np.float32))
    chain = [
        _frame(wide, "delta", 1, Held(version, held.values))
        for version in range(1, MOST_FRAMES + 2)
    ]
    found = wide.receive(b"".join(chain[:MOST_FRAMES]), 1, held)
    assert found.version == MOST_FRAMES
    _refused(wide, b"".join(chain), 1, held, f"more than {MOST_FRAMES} frames")


def test_a_whole_model_comes_alone():
    channel = _channel("none")
    wide = _channel("fp32")
    held = wide.first(_models(1)[0])
    key = _frame(wide, "model", 1, Held(4, held.values), held.packed, KEY)
    assert wide.receive(key, 1, held).version == 4
    _refused(wide, key + key, 1, held, "model of 736 bytes; 680 are taken")
    small = _frame(wide, "delta", 1, Held(3, held.values))
    _refused(wide, small + key, 1, held, "model of version 4 after version 3 in one message")
    delta = _frame(channel, "delta", 1, Held(4, held.values))
    _refused(channel, delta + delta, 1, held, "delta of version 4 after version 4")
    gap = _frame(channel, "delta", 1, Held(6, held.values))
    _refused(channel, delta + gap, 1, held, "delta of version 6 after version 4")


def test_the_sender_keeps_to_what_receivers_take():
    values = np.zeros(20 * SIZE, np.float32)  # room for more empty frames than are taken
    sender = Sender(
        Channel(FINGERPRINT, (Part("other", 20 * SIZE),), codec_named("none"), True), values
    )
    for round_ in range(1, 2 * MOST_FRAMES + 2):
        sender.advance(values, round_, np.random.default_rng(0))
    newest = sender.held.version
    for missing in (1, MOST_FRAMES - 1, MOST_FRAMES, MOST_FRAMES + 1, newest):
        message = sender.message(newest - missing)
        held = Held(newest - missing, values)
        assert sender.channel.receive(message, newest, held).version == newest
        assert len(message) <= sender.channel.most_bytes


def test_a_version_that_is_not_the_senders_is_not_trained_on():
    """A server that went back to a checkpoint makes versions anew that clients hold otherwise."""
    channel = _channel()
    sender, first = _sender(channel, 3)
    message = sender.message(2)
    other = Held(3, first.values)
    _refused(channel, message, 3, other, "which is not the sender's version 3; a whole model")
    ahead = Held(9, sender.held.values)
    _refused(channel, message, 3, ahead, "version 9 .* not the sender's version 3")


def test_another_round_is_refused_before_any_work():
    channel = _channel()
    sender, _ = _sender(channel, 3)
    damaged = bytearray(sender.message(2))
    damaged[-1] ^= 1
    _refused(channel, bytes(damaged), 4, sender.held, "model of round 3; expected round 4")


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("sent", ["models", "deltas", "predicted deltas"])
@settings(max_examples=60, deadline=5000)
@given(data=st.data())
def test_frames_mixed_at_will_lead_to_the_senders_model_or_nowhere(line, sent, data):
    channel = _channel(line, deltas=sent != "models", predict=sent.startswith("predicted"))
    sender, first = _sender(channel, 4)
    chains = [sender.message(version, min(version, channel.depth)) for version in range(4)]
    frames = [sender.message(None), *chains]
    chosen = data.draw(st.lists(st.sampled_from(frames), min_size=0, max_size=4))
    message = bytearray(b"".join(chosen))
    if message and data.draw(st.booleans()):
        message[data.draw(st.integers(0, len(message) - 1))] ^= data.draw(st.integers(1, 255))
    if data.draw(st.booleans()):
        del message[data.draw(st.integers(0, len(message))) :]
    try:
        found = channel.receive(bytes(message), 4, first)
    except PayloadError as error:
        refused(error)
    else:
        sound(found.values)
        assert np.array_equal(found.values, sender.held.values)
        assert found.version == sender.held.version
