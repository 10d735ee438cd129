"""A generator that trains and travels in some rounds only."""

import numpy as np
import pytest

from csg_core.broadcast import Channel, Sender
from csg_core.codecs import Finish, GeneratorSchedule, codec_named, without_generator
from csg_core.exchange import Part
from csg_core.payload import PayloadError, header_of

PARTS = (Part("generator", 300), Part("codes", 60), Part("norms", 8))
SIZE = 368


@pytest.mark.parametrize(
    ("schedule", "rounds"),
    [
        (GeneratorSchedule(), [1, 2, 3, 4, 5, 6, 7]),
        (GeneratorSchedule(every=3), [1, 4, 7]),
        (GeneratorSchedule(until=2), [1, 2]),
        (GeneratorSchedule(every=2, until=4), [1, 3]),
    ],
)
def test_the_rounds_are_the_first_and_every_so_many_up_to_the_last(schedule, rounds):
    assert [round_ for round_ in range(1, 8) if schedule.trains(round_)] == rounds


@pytest.mark.parametrize("line", ["fp32", "ecsq:step=1; generator=fp16; norms=fp32"])
def test_without_the_generator_the_others_are_as_they_were(line):
    codec, values = codec_named(line), np.arange(1, SIZE + 1, dtype=np.float32)
    rng = np.random.default_rng(0)
    partial = without_generator(codec, PARTS)
    found = partial.decode(partial.encode(values, PARTS, rng), PARTS)
    whole = codec.decode(codec.encode(values, PARTS, rng), PARTS)
    assert not found[:300].any()
    np.testing.assert_array_equal(found[300:], whole[300:])
    assert partial.most_bytes(PARTS) < codec.most_bytes(PARTS)
    assert without_generator(codec, (Part("other", 5),)) == codec


def test_a_delta_leaves_out_a_generator_that_does_not_change():
    channel = Channel("ab" * 16, PARTS, codec_named("fp16"), True)
    rng, start = np.random.default_rng(0), np.zeros(SIZE, np.float32)
    sender, held = Sender(channel, start), channel.first(start)
    model, sizes = start, []
    for round_, changes in enumerate((True, False, False, True), start=1):
        step = rng.normal(size=SIZE).astype(np.float32)
        step[:300] *= changes
        model = np.where(np.arange(SIZE) < 300, sender.held.values, model) + step
        sender.advance(model, round_, rng)
        sizes.append(len(sender.message(round_ - 1)))
        if round_ == 2:  # the third and the fourth come together
            held = channel.receive(sender.message(0), 2, held)
            np.testing.assert_allclose(held.values, model, atol=0.01)
    held = channel.receive(sender.message(2), 4, held)
    np.testing.assert_allclose(held.values, model, atol=0.01)
    assert sizes[1] == sizes[2] == sizes[0] - 2 * 300 + 8
    assert sizes[3] == sizes[0]


def test_a_frame_of_any_other_codec_is_refused():
    ours = Channel("ab" * 16, PARTS, codec_named("fp32"), True)
    start = np.zeros(SIZE, np.float32)
    theirs = Sender(Channel("ab" * 16, PARTS, codec_named("fp16"), True), start)
    theirs.advance(start + 1, 1, np.random.default_rng(0))
    with pytest.raises(PayloadError, match="another codec"):
        ours.receive(theirs.message(0), 1, ours.first(start))


@pytest.mark.parametrize("deltas", [True, False])
def test_the_last_rounds_have_a_codec_of_their_own(deltas):
    usual, last = codec_named("uniform:bits=2"), codec_named("fp16")
    channel = Channel("ab" * 16, PARTS, usual, deltas, Finish(last, 3))
    rng, model = np.random.default_rng(0), np.zeros(SIZE, np.float32)
    sender, held, sizes, errors = Sender(channel, model), channel.first(model), [], []
    for round_ in (1, 2, 3, 4):
        model = model + rng.normal(size=SIZE).astype(np.float32)
        sender.advance(model, round_, rng)
        message = sender.message(round_ - 1)
        assert len(message) <= channel.most_bytes
        held = channel.receive(message, round_, held)
        np.testing.assert_array_equal(held.values, sender.held.values)
        sizes.append(len(message))
        errors.append(np.abs(held.values - model).max())
    assert max(sizes[:2]) < min(sizes[2:])
    assert max(errors[2:]) < 0.01 < min(errors[:2])


def test_a_client_that_missed_rounds_is_sent_frames_of_both_codecs():
    codecs = codec_named("ecsq:step=3"), Finish(codec_named("ecsq:step=0.1"), 2)
    channel = Channel("ab" * 16, PARTS, codecs[0], True, codecs[1])
    rng, model = np.random.default_rng(0), np.zeros(SIZE, np.float32)
    sender, held = Sender(channel, model), channel.first(model)
    for round_ in (1, 2):
        model = model + rng.normal(scale=1e-3, size=SIZE).astype(np.float32)
        sender.advance(model, round_, rng)
    message = sender.message(0)
    first = header_of(message, channel.fingerprint)
    second = header_of(message[first.end :], channel.fingerprint)
    assert (first.kind, second.kind, first.end + second.end) == ("delta", "delta", len(message))
    held = channel.receive(message, 2, held)
    np.testing.assert_array_equal(held.values, sender.held.values)


@pytest.mark.parametrize("round_", [1, 2])
def test_each_round_takes_its_own_codec_only(round_):
    usual, last = codec_named("fp32"), codec_named("fp16")
    ours = Channel("ab" * 16, PARTS, usual, True, Finish(last, 2))
    theirs = Channel("ab" * 16, PARTS, last if round_ == 1 else usual, True)
    start = np.zeros(SIZE, np.float32)
    sender = Sender(theirs, start)
    sender.advance(start + 1, round_, np.random.default_rng(0))
    with pytest.raises(PayloadError, match=r"another codec|this round takes"):
        ours.receive(sender.message(0), round_, ours.first(start))
