"""What the server knows of what its nodes hold, and that it is right."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csg_core import build, manifest, pack
from csg_core.broadcast import Channel
from csg_core.codecs import Predicted, codec_named
from csg_core.payload import PayloadError, body_of, header_of
from federation.recipe import recipe_of
from server.downlink import Downlink

LINE = "ecsq"
RECIPE = recipe_of(
    {
        "model": {"width": 0.25, "slice_size": 4, "code_size": 6},
        "data": {"name": "digits", "clients": 3},
        "wire": {"downlink": LINE, "deltas": True, "predict": True},
    },
    "test",
)
MODEL = build(RECIPE.model, seed=0)
FOUND, FIRST = manifest(MODEL), pack(MODEL)
CHANNEL = Channel(FOUND.fingerprint, FOUND.parts, codec_named(LINE), deltas=True, predict=True)


def _downlink():
    return Downlink(RECIPE, FOUND, FIRST)


def _models(rounds):
    rng, step, model = np.random.default_rng(0), 0.0, FIRST
    for _ in range(rounds):
        step = 0.8 * step + 0.01 * rng.standard_normal(FOUND.size).astype(np.float32)
        model = model + step
        yield model


def _kinds(payload):
    kinds = []
    while payload:
        header = header_of(payload, FOUND.fingerprint)
        kinds.append(header.kind)
        payload = payload[header.end :]
    return kinds


@pytest.mark.slow
@settings(max_examples=25)
@given(data=st.data())
def test_nodes_that_answered_hold_what_the_server_believes(data):
    """Whoever is asked, loses what it holds, or is not heard of again."""
    downlink = _downlink()
    held = {node: CHANNEL.first(FIRST) for node in range(3)}
    for round_, model in enumerate(_models(8), start=1):
        asked = data.draw(st.sets(st.integers(0, 2), min_size=1))
        payloads = downlink.payloads(model, round_, "train", sorted(asked))
        for node, payload in zip(sorted(asked), payloads, strict=True):
            fate = data.draw(st.sampled_from(["good", "good", "good", "lost", "amnesia"]))
            if fate == "lost":
                downlink.failed(node)
                continue
            if fate == "amnesia":
                held[node] = CHANNEL.first(FIRST)
            try:
                held[node] = CHANNEL.receive(payload, round_, held[node])
            except PayloadError:
                assert fate == "amnesia"
                downlink.failed(node)
                continue
            assert np.array_equal(held[node].values, downlink.held)
            downlink.answered(node)
    (payload,) = downlink.payloads(FIRST, 9, "train", [7])
    held[0] = CHANNEL.receive(payload, 9, CHANNEL.first(FIRST))
    assert np.array_equal(held[0].values, downlink.held)


def test_one_that_is_new_costs_the_others_their_predictions_for_two_rounds():
    downlink, models = _downlink(), list(_models(9))
    others, late = [1, 2], 3
    predicted = Predicted(CHANNEL.codec)
    reaches = []
    for round_, model in enumerate(models, start=1):
        if round_ == 5:
            downlink.failed(late)
        nodes = others if round_ < 5 else [*others, late]
        payloads = downlink.payloads(model, round_, "train", nodes)
        reaches.append(predicted.reach(body_of(payloads[0]), FOUND.parts))
        assert _kinds(payloads[0]) == ["delta"]
        if late in nodes:
            assert _kinds(payloads[-1]) == (["model"] if round_ == 5 else ["delta"])
        for node in nodes:
            downlink.answered(node)
    assert reaches == [0, 1, 2, 2, 2, 0, 1, 2, 2]
    assert downlink.state()["versions"].tolist() == [[1, 10], [2, 10], [3, 10]]
    assert downlink.state()["depths"].tolist() == [2, 2, 2]


def test_one_that_was_sent_a_whole_model_may_miss_a_round():
    downlink, held = _downlink(), CHANNEL.first(FIRST)
    for round_, model in enumerate(_models(8), start=1):
        if round_ == 5:
            downlink.failed(2)
        nodes = [1] if round_ in (6, 7) else [1, 2]
        payloads = downlink.payloads(model, round_, "train", nodes)
        if round_ == 8:
            assert _kinds(payloads[1]) == ["delta"] * 3
        if 2 in nodes:
            held = CHANNEL.receive(payloads[1], round_, held)
            assert np.array_equal(held.values, downlink.held)
        for node in nodes:
            downlink.answered(node)


def test_what_nodes_hold_outlives_a_checkpoint():
    downlink, models = _downlink(), list(_models(5))
    far = 2**64 - 1
    for round_, model in enumerate(models[:3], start=1):
        downlink.payloads(model, round_, "train", [5, far])
        downlink.answered(5)
        downlink.answered(far)
    downlink.failed(far)
    resumed = _downlink()
    resumed.restore(downlink.state())
    for both in (downlink, resumed):
        delta, whole = both.payloads(models[3], 4, "train", [5, far])
        assert (_kinds(delta), _kinds(whole)) == (["delta"], ["model"])
    resumed.forget()
    (again,) = resumed.payloads(models[4], 5, "train", [5])
    held = CHANNEL.receive(again, 5, CHANNEL.first(FIRST))
    assert np.array_equal(held.values, resumed.held)


def test_every_version_is_rounded_by_draws_of_its_own():
    wire = {"downlink": "uniform:bits=4"}
    recipe = RECIPE.model_copy(update={"wire": RECIPE.wire.model_validate(wire)})
    bodies = [
        bytes(body_of(Downlink(recipe, FOUND, FIRST).payloads(FIRST, round_, kind, [0])[0]))
        for round_, kind in 2 * [(1, "train"), (2, "train"), (1, "evaluate")]
    ]
    assert bodies[:3] == bodies[3:]
    assert len(set(bodies)) == 3


def test_a_checkpoint_of_before_predictions_is_taken_up():
    downlink, models = _downlink(), list(_models(3))
    for round_, model in enumerate(models[:2], start=1):
        downlink.payloads(model, round_, "train", [5])
        downlink.answered(5)
    state = downlink.state()
    del state["depths"]
    resumed = _downlink()
    resumed.restore(state)
    (delta,) = resumed.payloads(models[2], 3, "train", [5])
    assert _kinds(delta) == ["delta"]
    assert Predicted(CHANNEL.codec).reach(body_of(delta), FOUND.parts) == 0


def test_predictions_need_deltas():
    with pytest.raises(ValueError, match=r"whole models are not predicted; set wire\.deltas=true"):
        recipe_of({"wire": {"predict": True}}, "test")
