"""Sender and receiver never have different models without knowing it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csg_core.broadcast import Channel, Held
from csg_core.codecs import codec_named, total
from csg_core.entries import Part
from csg_core.payload import HEADER_BYTES, PayloadError
from csg_core.sender import Sender

PARTS = (Part("generator", 300), Part("codes", 60), Part("norms", 8))
SIZE = 368


def _channel(line="ecsq:step=1.5", *, deltas=True, predict=False):
    return Channel("ab" * 16, PARTS, codec_named(line), deltas, predict)


def _models(count, seed=0):
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(count, SIZE)) * 0.01
    steps[0] *= 100
    return steps.cumsum(axis=0).astype(np.float32)


def _rng():
    return np.random.default_rng(1)


def test_a_chain_of_deltas_follows_the_model_and_costs_little():
    models = _models(12)
    channel = _channel("ecsq:step=1")
    sender, held = Sender(channel, models[0]), channel.first(models[0])
    sizes = []
    for round_, model in enumerate(models, start=1):
        sender.advance(model, round_, _rng())
        message = sender.message(held.version)
        sizes.append(len(message))
        held = channel.receive(message, round_, held)
        assert np.array_equal(held.values, sender.held.values)
        assert held.digest == sender.held.digest
    assert np.abs(held.values - models[-1]).max() < 0.02
    assert max(sizes[1:]) < len(sender.message(None)) / 3


def test_a_delta_that_is_longer_than_the_model_is_not_sent():
    models, channel = _models(3), _channel("fp32")
    sender, held = Sender(channel, models[0]), channel.first(models[0])
    for round_, model in enumerate(models[1:], start=1):
        sender.advance(model, round_, _rng())
        message = sender.message(held.version)
        assert len(message) == HEADER_BYTES + 2 * SIZE
        held = channel.receive(message, round_, held)
        assert np.array_equal(held.values, sender.held.values)


@pytest.mark.parametrize("deltas", [True, False])
def test_a_chain_that_begins_with_another_model_is_sent_whole_to_who_is_new(deltas):
    models, channel = _models(4), _channel("ecsq:step=1" if deltas else "fp32", deltas=deltas)
    sender, new = Sender(channel, models[1], version=1), channel.first(models[0])
    sender.advance(models[2], 1, _rng())
    whole = sender.message(new.version)
    held = channel.receive(whole, 1, new)
    assert np.array_equal(held.values, sender.held.values)
    sender.advance(models[3], 2, _rng())
    message = sender.message(held.version)
    assert not deltas or len(message) < len(whole) / 2
    held = channel.receive(message, 2, held)
    late = channel.receive(sender.message(new.version), 2, new)
    assert np.array_equal(held.values, sender.held.values)
    assert np.array_equal(late.values, sender.held.values)


@pytest.mark.parametrize("predict", [False, True])
@settings(max_examples=80)
@given(data=st.data())
def test_lost_repeated_and_late_messages_never_part_the_two_ends(predict, data):
    """Acknowledgements get lost, messages come twice or not at all, clients lose their memory."""
    models = _models(9, seed=data.draw(st.integers(0, 20)))
    channel = _channel(predict=predict)
    sender, first = Sender(channel, models[0]), channel.first(models[0])
    held, known, depth = first, 0, 0  # what the client holds, and what the server knows of that
    messages = []
    for round_, model in enumerate(models, start=1):
        sender.advance(model, round_, _rng(), data.draw(st.integers(0, channel.depth)))
        messages.append((round_, sender.message(known, depth)))
        what = data.draw(st.sampled_from(["good", "lost", "no answer", "twice", "late", "amnesia"]))
        if what == "lost":
            continue
        if what == "amnesia":
            held = first
        if what == "late":
            messages.insert(0, messages.pop())
        for number, message in messages[-1:] * (2 if what == "twice" else 1):
            try:
                held = channel.receive(message, number, held)
            except PayloadError:
                known, depth = None, 0
                continue
            if held.version == sender.held.version:
                assert np.array_equal(held.values, sender.held.values)
                if what != "no answer":
                    lacked = None if known is None else sender.depth_after(known, depth)
                    known, depth = held.version, lacked or 0
                    assert depth <= len(held.before)
    sender.advance(models[-1], 10, _rng())
    held = channel.receive(sender.message(None), 10, held)
    assert np.array_equal(held.values, sender.held.values)


def test_a_client_that_fell_behind_gets_what_it_lacks_or_the_whole():
    models = _models(60)
    channel = _channel()
    sender = Sender(channel, models[0])
    early = None
    for round_, model in enumerate(models, start=1):
        sender.advance(model, round_, _rng())
        if round_ == 57:
            early = sender.held
    behind = sender.message(early.version)
    assert len(behind) < len(sender.message(None)) == HEADER_BYTES + 2 * SIZE
    assert np.array_equal(channel.receive(behind, 60, early).values, sender.held.values)
    assert sender.message(0) == sender.message(None)  # deltas since then would cost more


def test_a_client_that_starts_elsewhere_notices():
    models = _models(3)
    channel = _channel()
    sender = Sender(channel, models[0])
    sender.advance(models[1], 1, _rng())
    other = channel.first(models[2])
    with pytest.raises(PayloadError, match="came out different"):
        channel.receive(sender.message(0), 1, other)
    with pytest.raises(PayloadError, match="delta to version 1 of the model, but version -1"):
        channel.receive(sender.message(0), 1, Held(-1, other.values))
    with pytest.raises(PayloadError, match="model of round 1; expected round 2"):
        channel.receive(sender.message(0), 2, channel.first(models[0]))


@pytest.mark.parametrize("deltas", [True, False])
def test_a_sender_goes_on_where_a_checkpoint_left_it(deltas):
    models = _models(8)
    channel = _channel("ecsq:step=0.1", deltas=deltas)
    whole, begun = Sender(channel, models[0]), Sender(channel, models[0])
    for round_, model in enumerate(models[:5], start=1):
        for sender in (whole, begun):
            sender.advance(model, round_, _rng())
    resumed = Sender(channel, models[0])
    resumed.restore(begun.state())
    for round_, model in enumerate(models[5:], start=6):
        for sender in (whole, resumed):
            sender.advance(model, round_, _rng())
        for version in (None, whole.held.version - 1, whole.held.version - 3, 0):
            assert resumed.message(version) == whole.message(version)


def test_a_sender_forgets_what_came_after_its_checkpoint():
    models, channel = _models(3), _channel()
    sender = Sender(channel, models[0])
    sender.advance(models[1], 1, _rng())
    state, wanted = sender.state(), sender.message(None)
    sender.advance(models[2], 2, _rng())
    sender.message(None)
    sender.restore(state)
    assert sender.message(None) == wanted


def test_whole_models_are_sent_once_there_is_one():
    with pytest.raises(ValueError, match="no version was made yet"):
        Sender(_channel("fp16", deltas=False), np.zeros(SIZE, np.float32)).message(None)


def test_whole_models_need_nothing_held():
    models = _models(2)
    channel = _channel("fp16", deltas=False)
    sender = Sender(channel, models[0])
    sender.advance(models[1], 1, _rng())
    held = channel.receive(sender.message(None), 1, channel.first(models[0]))
    assert np.array_equal(held.values, models[1].astype(np.float16).astype(np.float32))


def test_a_receiver_takes_the_longest_delta_there_may_be():
    """One that leaves the generator as it is holds its codecs' lengths as well."""
    parts = (Part("generator", 8), Part("codes", 2**16))
    channel = Channel("ab" * 16, parts, codec_named("uniform:bits=8,block=65536"), deltas=True)
    first = np.zeros(total(parts), np.float32)
    sender, held = Sender(channel, first), channel.first(first)
    model = np.concatenate([first[:8], _rng().normal(size=2**16).astype(np.float32)])
    sender.advance(model, 1, _rng())
    held = channel.receive(sender.message(held.version), 1, held)
    assert held.digest == sender.held.digest


@settings(max_examples=200)
@given(place=st.integers(0, 10**6), change=st.integers(1, 255), cut=st.integers(0, 10**6))
def test_damaged_messages_are_refused(place, change, cut):
    models = _models(4)
    channel = _channel()
    sender, held = Sender(channel, models[0]), channel.first(models[0])
    for round_, model in enumerate(models, start=1):
        sender.advance(model, round_, _rng())
    message = bytearray(sender.message(0))
    message[place % len(message)] ^= change
    for wrong in (bytes(message), bytes(sender.message(0)[: cut % len(message)])):
        with pytest.raises(PayloadError):
            channel.receive(wrong, 4, held)


def test_both_ends_go_no_further_than_float16_where_a_codec_does():
    target = np.random.default_rng(0).uniform(-65_000, 65_000, SIZE).astype(np.float32)
    channel = _channel("uniform:bits=1,rotate=true")
    sender = Sender(channel, np.zeros(SIZE, np.float32))
    held, errors, largest = sender.held, [], []
    for round_ in range(1, 11):
        sender.advance(target, round_, _rng())
        held = channel.receive(sender.message(held.version), round_, held)
        assert np.array_equal(held.values, sender.held.values)
        errors.append(np.abs(target - held.values).mean())
        largest.append(np.abs(held.values).max())
    assert max(largest) == 65_504
    assert errors[-1] < errors[0] / 10, "what was cut off comes later"


@pytest.mark.parametrize("line", ["fp16", "topk:fraction=0.5"])
def test_a_delta_across_all_of_float16_is_sent_in_two(line):
    target = np.full(SIZE, 60_000, np.float32)
    sender = Sender(_channel(line), -target)
    for round_ in range(1, 6):
        sender.advance(target, round_, _rng())
    assert np.abs(sender.held.values - target).max() < 100


def test_a_model_beyond_float16_is_named():
    channel = _channel("fp32")
    sender = Sender(channel, np.zeros(SIZE, np.float32))
    with pytest.raises(ValueError, match=r"value of 1e\+06, beyond float16; .*deltas=false"):
        sender.advance(np.full(SIZE, 1e6, np.float32), 1, _rng())


def test_a_model_with_nan_is_named_and_one_without_tensors_is_sent():
    sender = Sender(_channel("fp32"), np.zeros(SIZE, np.float32))
    with pytest.raises(ValueError, match="holds no NaN or infinity"):
        sender.advance(np.full(SIZE, np.nan, np.float32), 1, _rng())
    nothing = np.zeros(0, np.float32)
    channel = Channel("ab" * 16, (), codec_named("ecsq"), deltas=True)
    sender = Sender(channel, nothing)
    sender.advance(nothing, 1, _rng())
    held = channel.receive(sender.message(0), 1, channel.first(nothing))
    assert held.version == 1
