"""A generator that trains and travels in some rounds only."""

import numpy as np
import pytest

from csg_core.broadcast import Channel
from csg_core.codecs import GeneratorSchedule, codec_named, without_generator
from csg_core.entries import Part
from csg_core.payload import PayloadError
from csg_core.sender import Sender

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


@pytest.mark.parametrize("values", [{"every": 0}, {"until": -1}])
def test_a_schedule_that_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match=r"give a (number of rounds from 1|round from 0) on"):
        GeneratorSchedule(**values)


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
