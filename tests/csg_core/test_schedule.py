"""A generator that trains and travels in some rounds only."""

import numpy as np
import pytest

from csg_core.broadcast import Channel, Sender
from csg_core.codecs import GeneratorSchedule, codec_named, without_generator

PARTS = (("generator", 300), ("codes", 60), ("norms", 8))
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
    assert without_generator(codec, (("other", 5),)) == codec


def test_a_receiver_catches_up_over_rounds_with_and_without_the_generator():
    channel = Channel("ab" * 16, PARTS, codec_named("fp16"), True, GeneratorSchedule(every=2))
    rng, start = np.random.default_rng(0), np.zeros(SIZE, np.float32)
    sender, held = Sender(channel, start), channel.first(start)
    model = start
    for round_ in (1, 2, 3):
        model = model + rng.normal(size=SIZE).astype(np.float32)
        sender.advance(model, round_, rng)
        if round_ == 2:
            held = channel.receive(sender.message(0), 2, held)
            assert np.abs(held.values[:300] - model[:300]).max() > 0.5, "kept back"
            np.testing.assert_allclose(held.values[300:], model[300:], atol=0.01)
    held = channel.receive(sender.message(2), 3, held)
    np.testing.assert_allclose(held.values, model, atol=0.01)  # and nothing of it is lost


def test_whole_models_cannot_leave_the_generator_out():
    with pytest.raises(ValueError, match="needs deltas"):
        Channel("ab" * 16, PARTS, codec_named("fp16"), False, GeneratorSchedule(until=1))
