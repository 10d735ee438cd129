"""Deltas are predicted from those before by both ends alike, or not at all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csg_core.broadcast import Channel
from csg_core.codecs import CodecError, Ecsq, Float32, Predicted, codec_named
from csg_core.codecs.predicted import TAPS
from csg_core.entries import Part
from csg_core.payload import PayloadError
from csg_core.sender import Sender

PARTS = (Part("generator", 400), Part("codes", 200), Part("codes", 100), Part("norms", 60))
SIZE = 760
GROUPS = (slice(0, 400), slice(400, 700), slice(700, 760))


def _rng(seed=0):
    return np.random.default_rng(seed)


def _normal(seed):
    return _rng(seed).normal(size=SIZE).astype(np.float32)


def _channel(line="ecsq", *, predict=True):
    return Channel("ab" * 16, PARTS, codec_named(line), deltas=True, predict=predict)


def _path(rounds, seed=0, momentum=0.9):
    """Models whose steps go on by some of the last one."""
    rng, model, step, found = _rng(seed), np.zeros(SIZE), np.zeros(SIZE), []
    for _ in range(rounds):
        step = momentum * step + rng.normal(size=SIZE) * 0.01
        model = model + step
        found.append(model.astype(np.float32))
    return found


def test_what_follows_from_the_deltas_before_is_not_written():
    deltas = (_normal(1), _normal(2))
    values = np.empty(SIZE, np.float32)
    for places, (first, second) in zip(GROUPS, [(0.5, 0.25), (-1.0, 0.0), (0.0, 3.0)], strict=True):
        values[places] = first * deltas[0][places] + second * deltas[1][places]
    codec = Predicted(Ecsq(), deltas)
    body = codec.encode(values, PARTS, _rng())
    factors = np.frombuffer(body[: len(GROUPS) * TAPS], np.int8).reshape(-1, TAPS)
    assert factors.tolist() == [[16, 8], [-32, 0], [0, 96]]
    np.testing.assert_allclose(codec.decode(body, PARTS), values, atol=1e-6)
    assert len(body) < len(Ecsq().encode(values, PARTS, _rng())) / 5


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), held=st.integers(0, 3), like=st.floats(-5, 5))
def test_a_prediction_leaves_no_more_than_there_was(seed, held, like):
    deltas = tuple(_normal(seed + place) for place in range(held))
    values = _normal(seed + 10) + np.float32(like) * sum(deltas, np.zeros(SIZE, np.float32))
    codec = Predicted(Float32(), deltas)
    body = codec.encode(values, PARTS, _rng())
    left = np.frombuffer(body[len(GROUPS) * TAPS :], "<f4")
    for places in GROUPS:
        assert np.square(left[places]).sum() <= np.square(values[places]).sum() * (1 + 1e-6)
    np.testing.assert_allclose(codec.decode(body, PARTS), values, rtol=1e-4, atol=1e-4)
    assert codec.reach(body, PARTS) <= min(held, TAPS)
    assert len(body) == codec.most_bytes(PARTS) == codec.bytes_about(PARTS)


def test_who_holds_fewer_deltas_is_told_so():
    deltas = (_normal(1), _normal(2))
    body = Predicted(Ecsq(), deltas).encode(deltas[1], PARTS, _rng())
    assert Predicted(Ecsq()).reach(body, PARTS) == 2
    for fewer in ((), deltas[:1]):
        with pytest.raises(CodecError, match=f"builds on 2 deltas; {len(fewer)} are held"):
            Predicted(Ecsq(), fewer).decode(body, PARTS)
    more = Predicted(Ecsq(), (*deltas, _normal(3)))
    assert np.array_equal(more.decode(body, PARTS), Predicted(Ecsq(), deltas).decode(body, PARTS))


def test_nothing_is_predicted_of_what_cannot_be_held_or_is_cut():
    codec = Predicted(Ecsq(), (_normal(1),))
    with pytest.raises(CodecError, match="no NaN or infinity"):
        codec.encode(np.full(SIZE, np.inf, np.float32), PARTS, _rng())
    wide = np.full(SIZE, 3e38, np.float32)
    wide[::50] *= -1
    with pytest.raises(CodecError, match=r"3e\+38 is too large for predicted; set wire.predict"):
        Predicted(Float32(), (np.full(SIZE, 1e38, np.float32),)).encode(wide, PARTS, _rng())
    with pytest.raises(CodecError, match=r"bytes of predicted; it takes \d+ and more"):
        codec.decode(b"\0" * 5, PARTS)


def test_one_delta_is_taken_where_two_would_go_beyond_what_factors_can_be():
    first, more = _normal(1), _normal(2)
    codec = Predicted(Float32(), (first, first + np.float32(0.1) * more))
    body = codec.encode(first + np.float32(0.5) * more, PARTS, _rng())  # -4 and 5 of them
    left = np.frombuffer(body[len(GROUPS) * TAPS :], "<f4")
    assert np.square(left).sum() < 0.3 * np.square(first).sum()
    assert codec.reach(body, PARTS) == 1


def test_nothing_is_predicted_of_what_is_not_written():
    line = "ecsq; generator=none; norms=none"
    codec = Predicted(codec_named(line), (_normal(1), _normal(2)))
    values = _normal(1) + _normal(2)
    found = codec.decode(codec.encode(values, PARTS, _rng()), PARTS)
    assert not found[GROUPS[0]].any()
    assert not found[GROUPS[2]].any()
    np.testing.assert_allclose(found[GROUPS[1]], values[GROUPS[1]], atol=1e-5)


def test_deltas_that_stand_still_or_are_alike_predict_nothing_wild():
    once = _normal(1)
    for deltas in [(np.zeros(SIZE, np.float32),) * 2, (once, once), (once, 1e-9 * once)]:
        codec = Predicted(Float32(), deltas)
        body = codec.encode(_normal(5), PARTS, _rng())
        np.testing.assert_allclose(codec.decode(body, PARTS), _normal(5), atol=1e-5)


def test_a_chain_with_momentum_takes_fewer_bytes_for_the_same_errors():
    def follow(line, predict):
        channel = _channel(line, predict=predict)
        path = _path(14)
        sender, held = Sender(channel, path[0]), channel.first(path[0])
        sizes, errors, depth = [], [], 0
        for round_, model in enumerate(path[1:], start=1):
            sender.advance(model, round_, _rng())
            message = sender.message(held.version, depth)
            depth = sender.depth_after(held.version, depth)
            held = channel.receive(message, round_, held)
            assert np.array_equal(held.values, sender.held.values)
            assert len(held.before) == (min(round_, TAPS) if predict else 0)
            sizes.append(len(message))
            errors.append(np.square(model - held.values).mean())
        return np.mean(sizes[3:]), np.mean(errors[3:])

    plain, plain_error = follow("ecsq:step=1,codes=1", predict=False)
    size, error = follow("ecsq:step=1.5,codes=1.5", predict=True)
    assert error < plain_error
    assert size < 0.9 * plain


def test_who_was_sent_a_whole_model_is_not_sent_what_builds_on_more():
    path, channel = _path(6), _channel()
    sender = Sender(channel, path[0])
    for round_, model in enumerate(path[:3], start=1):
        sender.advance(model, round_, _rng())
    late = channel.receive(sender.message(None), 3, channel.first(path[0]))
    assert late.before == ()
    sender.advance(path[3], 4, _rng())  # predicted from what others hold
    assert sender.depth_after(late.version, 0) is None
    assert sender.message(late.version, 0) == sender.message(None)
    late = channel.receive(sender.message(late.version, 0), 4, late)
    for round_, model in enumerate(path[4:], start=5):
        sender.advance(model, round_, _rng(), round_ - 5)  # from what it holds
        assert sender.depth_after(late.version, round_ - 5) == round_ - 4
        message = sender.message(late.version, round_ - 5)
        assert message != sender.message(None)
        late = channel.receive(message, round_, late)
        assert np.array_equal(late.values, sender.held.values)


def test_a_receiver_without_the_deltas_refuses_and_stays_as_it_is():
    path, channel = _path(5), _channel()
    sender, held = Sender(channel, path[0]), channel.first(path[0])
    for round_, model in enumerate(path[:4], start=1):
        sender.advance(model, round_, _rng())
        held = channel.receive(sender.message(held.version, round_ - 1), round_, held)
    sender.advance(path[4], 5, _rng())
    frame = sender.message(held.version, TAPS)
    whole = type(held)(held.version, held.values)
    with pytest.raises(PayloadError, match="builds on 2 deltas; 0 are held"):
        channel.receive(frame, 5, whole)
    assert np.array_equal(channel.receive(frame, 5, held).values, sender.held.values)


def test_a_sender_goes_on_predicting_where_a_checkpoint_left_it():
    path, channel = _path(8), _channel()
    whole, begun = Sender(channel, path[0]), Sender(channel, path[0])
    for round_, model in enumerate(path[:5], start=1):
        for sender in (whole, begun):
            sender.advance(model, round_, _rng())
    resumed = Sender(channel, path[0])
    resumed.restore(begun.state())
    for round_, model in enumerate(path[5:], start=6):
        for sender in (whole, resumed):
            sender.advance(model, round_, _rng())
        version = whole.held.version - 1
        assert resumed.message(version, TAPS) == whole.message(version, TAPS)
        assert Predicted(channel.codec).reach(whole.message(version, TAPS)[56:], PARTS) == TAPS


def test_frames_that_say_nothing_of_deltas_are_forgotten():
    """As of a chain that was not predicted; clients are sent whole models."""
    path = _path(2)
    sender = Sender(_channel("none", predict=False), path[0])
    sender.advance(path[1], 1, _rng())
    resumed = Sender(_channel("ecsq"), path[0])
    resumed.restore(sender.state())
    assert resumed.message(0) == resumed.message(None)
