"""What the strategy tells clients, and what it makes of their honest answers."""

import numpy as np
import pytest
from flwr.app import ConfigRecord

from csg_core.payload import header_of
from federation.messages import (
    RESUMED,
    TAKEN,
    EvaluationReport,
    numbers_in,
    payload_bytes_in,
    payload_in,
    reply,
)
from tests.server.replies import NODES, Nodes, honest, message_of

DELTAS = {"deltas": True, "downlink": "ecsq"}


def _trained(strategy, round_=1):
    """The next model, of updates of all nodes."""
    replies = [
        message_of(node, honest(strategy, place, round_=round_)) for place, node in enumerate(NODES)
    ]
    return strategy.aggregate_train(round_, replies)[0]


def _sent(strategy, arrays, round_, nodes):
    """The messages of a round, by node."""
    messages = strategy.configure_train(round_, arrays, ConfigRecord({"of": "ours"}), nodes)
    return {message.metadata.dst_node_id: message for message in messages}


def test_evaluations_count_by_their_images(made):
    strategy = made(holdout=0.1)
    strategy.configure_evaluate(1, _trained(strategy), ConfigRecord(), Nodes())
    found = [(1, 2.0, 1.0), (2, 1.0, 0.5), (5, 0.4, 0.2)]
    replies = [
        message_of(
            node,
            reply(None, EvaluationReport(partition=n, examples=count, loss=loss, accuracy=right)),
        )
        for n, (node, (count, loss, right)) in enumerate(zip(NODES, found, strict=True))
    ]
    metrics = strategy.aggregate_evaluate(1, replies)
    assert metrics == pytest.approx({"loss": 6 / 8, "accuracy": 3 / 8})


def test_what_clients_sent_and_were_sent_adds_up_to_the_round(made):
    strategy = made(wire={"uplink": "fp32z"})
    rng = np.random.default_rng(0)
    values = [0.5, rng.choice(2, strategy.manifest.size), rng.random(strategy.manifest.size)]
    replies = [
        message_of(node, honest(strategy, place, value))
        for place, (node, value) in enumerate(zip(NODES, values, strict=True))
    ]
    sizes = [payload_bytes_in(reply.content) for reply in replies]
    strategy.aggregate_train(1, replies)
    outcome = strategy.outcome
    up, down = (
        [part[f"payload_bytes_{way}"] for part in outcome.contributions()] for way in ("up", "down")
    )
    assert len(set(sizes)) == 3
    assert up == sizes
    assert (sum(up), sum(down)) == (outcome.bytes_up, outcome.bytes_down)
    assert min(down) > 0


def test_clients_are_told_of_fedproxs_mu(made):
    strategy = made(server={"strategy": "fedprox", "options": {"proximal_mu": 0.25}})
    sent = _sent(strategy, _trained(strategy), 2, Nodes())
    told = {"server-round": 2, "proximal-mu": 0.25, "of": "ours"}
    assert [numbers_in(sent[node].content) for node in NODES] == 3 * [told]


def _told(sent):
    return {node: numbers_in(message.content).get(TAKEN) for node, message in sent.items()}


def test_a_client_is_told_if_its_last_update_was_not_taken(made):
    """What its codec left out of one that was refused, or got lost, must not be sent."""
    strategy = made(wire={"uplink": "ecsq"})
    good = [message_of(node, honest(strategy, n)) for n, node in enumerate(NODES)]
    arrays, _ = strategy.aggregate_train(1, good)
    assert _told(_sent(strategy, arrays, 2, Nodes())) == dict.fromkeys(NODES)
    second = [message_of(node, honest(strategy, n, round_=2)) for n, node in enumerate(NODES)]
    refused = message_of(12, honest(strategy, 1, 1e6, round_=2))
    arrays, _ = strategy.aggregate_train(2, [second[0], refused, second[2]])
    assert _told(_sent(strategy, arrays, 3, Nodes())) == {11: None, 12: 1, 13: None}
    third = [message_of(node, honest(strategy, n, round_=3)) for n, node in enumerate(NODES)]
    arrays, _ = strategy.aggregate_train(3, third[:2])  # the last one's is lost
    assert _told(_sent(strategy, arrays, 4, Nodes((13, 14)))) == {13: 2, 14: None}
    (late,) = [message_of(13, honest(strategy, 2, round_=4))]
    arrays, _ = strategy.aggregate_train(4, [late, message_of(14, honest(strategy, 5, round_=4))])
    told = _told(_sent(strategy, arrays, 5, Nodes((11, 12, 13))))
    assert told == dict.fromkeys(NODES), "those that were not asked meanwhile need no word"


def test_a_resumed_run_tells_what_it_took_and_leaves_unsaid_what_it_does_not_know(made):
    strategy = made(wire={"uplink": "ecsq"})
    arrays = _trained(strategy)
    state, older = strategy.state(), strategy.state()
    del older["cohort/taken"]
    for saved, told in ((state, {11: 1, 12: 1, 13: 1}), (older, dict.fromkeys(NODES))):
        resumed = made(wire={"uplink": "ecsq"}, asks=False)
        resumed.restore(saved)
        assert _told(_sent(resumed, arrays, 2, Nodes())) == told
    exact = made(wire={"uplink": "fp32z"}, asks=False)
    exact.restore(state)
    assert _told(_sent(exact, arrays, 2, Nodes())) == dict.fromkeys(NODES)


def test_a_resumed_run_tells_nodes_that_it_does_not_know_from_which_round_it_goes_on(made):
    """As a simulation's, which have other ids; until it takes an update of theirs."""
    begun = made(wire={"uplink": "ecsq"})
    arrays = _trained(begun)
    resumed = made(wire={"uplink": "ecsq"}, asks=False)
    resumed.restore(begun.state())

    def told(round_):
        sent = _sent(resumed, arrays, round_, Nodes((21, 22, 23)))
        found = [numbers_in(message.content) for message in sent.values()]
        return [(numbers.get(TAKEN), numbers.get(RESUMED)) for numbers in found]

    assert told(2) == 3 * [(None, 1)]
    second = [message_of(node, honest(resumed, node - 21, round_=2)) for node in (21, 22)]
    arrays, _ = resumed.aggregate_train(2, second)
    assert told(3) == [(None, None), (None, None), (None, 1)]
    third = [message_of(node, honest(resumed, node - 21, round_=3)) for node in (22, 23)]
    arrays, _ = resumed.aggregate_train(3, third)
    assert told(4) == [(2, None), (None, None), (None, None)]


def test_a_node_that_was_restarted_is_sent_a_whole_model(made):
    strategy = made(wire=DELTAS)
    kinds = []
    for round_, since in ((2, {}), (3, {12: "again"}), (4, {12: "again"})):
        arrays = _trained(strategy, round_ - 1)
        sent = _sent(strategy, arrays, round_, Nodes(since=since))
        fingerprint = strategy.manifest.fingerprint
        kinds.append([header_of(payload_in(sent[n].content), fingerprint).kind for n in NODES])
    assert kinds == [["delta"] * 3, ["delta", "model", "delta"], ["delta"] * 3]


def test_a_node_restarted_after_it_trained_is_sent_a_whole_model_to_evaluate(made):
    strategy = made(wire=DELTAS, holdout=0.1)
    grid = Nodes(since={13: "again"})
    messages = strategy.configure_evaluate(1, _trained(strategy), ConfigRecord(), grid)
    fingerprint = strategy.manifest.fingerprint
    kinds = [header_of(payload_in(message.content), fingerprint).kind for message in messages]
    assert kinds == ["delta", "delta", "model"]


def test_who_holds_no_images_out_counts_for_nothing_and_goes_on_as_the_others(made):
    strategy = made(wire=DELTAS, holdout=0.1)
    arrays = _trained(strategy)
    strategy.configure_evaluate(1, arrays, ConfigRecord(), Nodes())
    found = [(5, 2.0, 0.5), (0, 0.0, 0.0), (5, 1.0, 0.7)]
    reports = [
        EvaluationReport(partition=n, examples=count, loss=loss, accuracy=right)
        for n, (count, loss, right) in enumerate(found)
    ]
    replies = [message_of(node, reply(None, of)) for node, of in zip(NODES, reports, strict=True)]
    metrics = strategy.aggregate_evaluate(1, replies)
    assert metrics == pytest.approx({"loss": 1.5, "accuracy": 0.6})
    assert not strategy.outcome.failures
    sent = _sent(strategy, arrays, 2, Nodes())
    fingerprint = strategy.manifest.fingerprint
    kinds = [header_of(payload_in(sent[n].content), fingerprint).kind for n in NODES]
    assert kinds == ["delta"] * 3


@pytest.mark.parametrize(
    "server", [{}, {"strategy": "fedavgm", "options": {"server_momentum": 0.5}}], ids=["", "m"]
)
@pytest.mark.parametrize("resumed", [False, True])
def test_what_is_left_out_of_a_generator_waits_until_it_trains_again(made, resumed, server):
    """What clients have, and what they are owed, is always all that they have come to."""
    wire = {"deltas": True, "generator_every": 3, "downlink": "ternary"}
    strategy = made(wire=wire, server=server)
    still, rng = strategy.manifest.count("generator"), np.random.default_rng(0)
    wanted = strategy.downlink.held[:still].astype(np.float64)
    left, step = [], 0.0
    for round_ in range(1, 9):
        trains = strategy.recipe.wire.schedule.trains(round_)
        values = rng.normal(size=strategy.manifest.size).astype(np.float32)
        values[:still] *= trains
        replies = [
            message_of(node, honest(strategy, place, values, round_=round_))
            for place, node in enumerate(NODES)
        ]
        arrays, _ = strategy.aggregate_train(round_, replies)
        if trains:  # momentum rests with the generator
            step = values[:still] + (0.5 * step if server else 0.0)
            wanted += step
        if resumed:
            state, strategy = strategy.state(), made(wire=wire, server=server)
            strategy.restore(state)
        _sent(strategy, arrays, round_ + 1, Nodes())
        owed = strategy.owed.left_out[:still] + strategy.owed.waits
        np.testing.assert_allclose(strategy.downlink.held[:still] + owed, wanted, atol=1e-2)
        left.append(np.abs(strategy.owed.waits).max())
    assert min(left[1:3]) > 0, "ternary leaves much out, which waits while nothing is sent"
    assert left[3] == 0


def test_clients_may_claim_as_many_examples_as_the_recipe_says(made):
    strategy = made(server={"max_examples": 5})
    replies = [
        message_of(node, honest(strategy, place, examples=count))
        for place, (node, count) in enumerate(zip(NODES, (5, 6, 1), strict=True))
    ]
    strategy.aggregate_train(1, replies)
    assert [report.examples for report in strategy.outcome.reports.values()] == [5, 1]
    assert strategy.outcome.failures == {
        "node 12": "num-examples 6 is absurd; 1 to 5 are taken",
    }
