"""Lossy codecs in rounds: what is left out waits, and what is sent is what both sides believe."""

import numpy as np
import pytest
import torch

from client.job import Job
from client.local import LocalClient
from csg_core import build, manifest, pack
from server.aggregation import Aggregation, model_in, model_record
from server.record import RunFolder
from server.state import load_state
from server.strategy import CsgStrategy
from simulations.estimate import estimate
from simulations.local_engine import run_local

pytestmark = pytest.mark.slow

LOSSY = {"uplink": "ecsq:step=1; statistics=fp16", "downlink": "ecsq:step=1; statistics=fp16",
         "deltas": True}  # fmt: skip


@pytest.mark.parametrize("more", [{}, {"predict": True}])
def test_lossy_deltas_with_feedback_train_like_whole_floats(tiny, run, more):
    sections = {"data": {"images": 1437}, "train": {"rounds": 6}}
    plain, _ = run(tiny(**sections), "plain")
    small, _ = run(tiny(**sections, wire=LOSSY | more), "small")
    rows = small.rows()
    assert rows[-1].train_loss == pytest.approx(plain.rows()[-1].train_loss, rel=0.05)
    assert rows[-1].train_loss < 0.85 * rows[0].train_loss
    sent = [f.rows()[-1].payload_bytes_up + f.rows()[-1].payload_bytes_down for f in (plain, small)]
    assert sent[1] < sent[0] / 5
    assert rows[0].payload_bytes_down < sent[0] / 20  # the seed says it all


def test_a_client_that_failed_is_sent_a_whole_model_once(tiny, run, tmp_path, monkeypatch):
    (tmp_path / "once.py").write_text(
        "from flwr.clientapp import ClientApp\n"
        "from client.app import make_app\n"
        "real, app = make_app(), ClientApp()\n"
        "@app.train()\n"
        "def train(message, context):\n"
        "    at = message.content.config_records['message']['server-round']\n"
        "    if at == 3 and context.node_config['partition-id'] == 2:\n"
        "        context.state.clear()\n"
        "        raise OSError('the disk is gone')\n"
        "    return real(message, context)\n"
    )
    monkeypatch.chdir(tmp_path)
    folder, _ = run(tiny(train={"rounds": 6}, wire=LOSSY, run={"client_app": "once:app"}))
    rows = folder.rows()
    assert [row.failures for row in rows] == [0, 0, 1, 0, 0, 0]
    whole = 2 * manifest(build(folder.recipe().model)).size
    down = [row.payload_bytes_down for row in rows]
    assert 0.7 * whole < down[3] - down[4] < whole  # in place of a delta


def test_what_was_left_out_of_an_update_that_was_refused_is_not_sent(tiny, run, monkeypatch):
    fit = LocalClient.fit

    def one_bad_step(client, job):
        losses = fit(client, job)
        if (job.partition, job.round_) == (1, 2):
            with torch.no_grad():
                client.model.conv1.weight[0] += 1e5
        return losses

    monkeypatch.setattr(LocalClient, "fit", one_bad_step)
    folder, state = run(tiny(train={"rounds": 4}, wire=LOSSY))
    rows = folder.rows()
    assert [list(row.failed) for row in rows] == [[], ["client 1"], [], []]
    assert "has a value of" in rows[1].failed["client 1"]
    assert max(row.test_loss for row in rows) < 5
    trained = manifest(build(folder.recipe().model)).trained
    assert np.abs(state.values[:trained]).max() < 10


@pytest.mark.parametrize(
    ("server", "predict"),
    [({}, False), ({}, True), ({"strategy": "fedavgm", "options": {"server_momentum": 0.9}}, True)],
)
def test_the_generator_trains_and_travels_when_the_schedule_says(
    tiny, run, server, predict, monkeypatch
):
    real, untouched = Aggregation.__call__, []

    def noting(self, round_, current, updates, **more):
        kept = list(updates)
        untouched.append([not update.array[:size].any() for update in kept])
        return real(self, round_, current, kept, **more)

    monkeypatch.setattr(Aggregation, "__call__", noting)
    recipe = tiny(
        data={"images": 1437},
        train={"rounds": 5},
        wire={**LOSSY, "generator_every": 2, "generator_until": 3, "predict": predict},
        server=server,
    )
    size = manifest(build(recipe.model)).count("generator")
    folder, state = run(recipe)
    assert untouched == [4 * [still] for still in (False, True, False, True, True)]
    up = [row.payload_bytes_up for row in folder.rows()]
    down = [row.payload_bytes_down for row in folder.rows()]
    assert max(up[1], up[3], up[4]) < min(up[0], up[2])
    # what rounds 1 and 3 made of it comes with the models of rounds 2 and 4
    assert max(down[2], down[4]) < min(down[1], down[3])
    held = state.carried["downlink/reference"].view("<f2").astype(np.float32)
    assert np.array_equal(held[:size], state.values[:size]), "what clients train is evaluated"
    assert not np.array_equal(held[size:], state.values[size:])
    first = pack(build(recipe.model, seed=recipe.run.seed))[:size]
    assert np.abs(state.values[:size] - first).max() > 0.01
    always = recipe.wire.model_copy(update={"generator_every": 1, "generator_until": None})
    wider = estimate(recipe.model_copy(update={"wire": always}))
    assert estimate(recipe)["total_bytes"] < wider["total_bytes"]


def test_what_feedback_left_out_comes_with_the_next_update(tiny):
    """Sent so far and still kept make up all that was trained, to the last float.

    But of running statistics: the next update holds what is missing of them again.
    """
    from client.local import LocalClient
    from client.shard import Shards
    from csg_core.broadcast import Channel
    from csg_core.codecs import codec_named
    from csg_core.payload import decode
    from csg_core.sender import Sender

    recipe = tiny(wire={"uplink": "topk:fraction=0.05"})
    client = LocalClient(recipe)
    shard = Shards(recipe, client.device)[0]
    model = build(recipe.model, seed=0)
    found = manifest(model)
    channel = Channel(found.fingerprint, found.parts, codec_named("fp32"), deltas=False)
    sender, memory = Sender(channel, pack(model)), None
    sent, trained = np.zeros(found.size), np.zeros(found.size)
    for round_ in (1, 2, 3):
        sender.advance(pack(model), round_, np.random.default_rng(0))
        more = {} if memory is None else {"memory": memory}
        job = Job(payload=sender.message(None), shard=shard, round_=round_, partition=0, **more)
        answer = client.train(job)
        label = channel.label("update", round_, sender.held)
        sent += decode(answer.payload, label, codec_named("topk:fraction=0.05"))
        trained += pack(client.model) - sender.held.values
        memory = answer.memory
    summed = found.size - found.count("statistics")
    np.testing.assert_allclose((sent + memory.residual)[:summed], trained[:summed], atol=1e-5)
    assert np.abs(memory.residual).max() > 1e-3
    assert not memory.residual[summed:].any()


@pytest.fixture
def noted(monkeypatch):
    """What clients came to and what they held: (round, images, model) and (round, model) each."""
    from client.local import LocalClient

    came_to, held, answer = [], [], LocalClient.answer

    def noting(self, job, received, *rest):
        came_to.append((job.round_, len(job.shard.train_rows), pack(self.model)))
        held.append((job.round_, received.held.values))
        return answer(self, job, received, *rest)

    monkeypatch.setattr(LocalClient, "answer", noting)
    return came_to, held


def _mean(came_to, round_):
    own = [(weight, values) for r, weight, values in came_to if r == round_]
    return np.average([v for _, v in own], axis=0, weights=[w for w, _ in own])


@pytest.mark.parametrize("wire", [{}, {"deltas": True}])
def test_momentum_is_owed_too(tiny, run, noted, wire):
    """The model that is kept is the mean of what clients came to; the next one goes on from it."""
    came_to, held = noted
    server = {"strategy": "fedavgm",
              "options": {"server_momentum": 0.5, "server_learning_rate": 0.8}}  # fmt: skip
    _, state = run(tiny(train={"rounds": 4}, server=server, wire=wire))
    kept = manifest(build(tiny().model))
    trained = kept.size - kept.count("statistics")
    sent = {round_: values[:trained] for round_, values in held}
    for round_ in (2, 3):
        step = 0.8 * (_mean(came_to, round_)[:trained] - sent[round_])
        wanted = sent[round_] + 0.5 * (sent[round_] - sent[round_ - 1]) + step
        np.testing.assert_allclose(sent[round_ + 1], wanted, atol=2e-3 if wire else 1e-5)
    step = 0.8 * (_mean(came_to, 4)[:trained] - sent[4])
    np.testing.assert_allclose(state.values[:trained], sent[4] + step, atol=1e-5)
    np.testing.assert_allclose(state.values[trained:], _mean(came_to, 4)[trained:], atol=1e-5)
    momentum = 0.5 * (sent[4] - sent[3])
    np.testing.assert_allclose(
        state.carried["owed"][:trained], momentum, atol=2e-3 if wire else 1e-5
    )
    assert np.abs(momentum).max() > 0.01


@pytest.mark.parametrize("wire", [{}, LOSSY, LOSSY | {"predict": True}])
def test_a_resumed_run_ends_as_if_it_had_not_been_interrupted(
    tiny, run, tmp_path, wire, monkeypatch
):
    """What is owed, versions that are held, and variances that an update took below zero."""
    real = CsgStrategy.aggregate_train

    def below(self, round_, replies):
        arrays, metrics = real(self, round_, replies)
        values = model_in(arrays).copy()
        values[-1] = -0.01  # the last running variance
        return model_record(values), metrics

    monkeypatch.setattr(CsgStrategy, "aggregate_train", below)
    server = {"strategy": "fedavgm", "options": {"server_momentum": 0.5}}
    recipe = tiny(train={"rounds": 4}, server=server, wire=wire)
    _, whole = run(recipe, "whole")

    def interrupt(row):
        if row.round == 2:
            raise KeyboardInterrupt

    folder = RunFolder(tmp_path / "parts")
    section = recipe.run.model_copy(update={"dir": str(folder.path)})
    recipe = recipe.model_copy(update={"run": section})
    folder.create(recipe, {}, [])
    with pytest.raises(KeyboardInterrupt):
        run_local(recipe, interrupt)
    run_local(recipe, lambda _row: None)
    parts = load_state(folder.checkpoints, recipe.model, recipe.train.travelling())
    assert np.array_equal(parts.values, whole.values)
    assert np.array_equal(parts.carried["owed"], whole.carried["owed"])
    assert np.abs(whole.carried["owed"]).max() > 0.01


@pytest.mark.parametrize("downlink", ["ecsq:step=3", "uniform:bits=2,nearest=true", "fp32"])
def test_the_model_is_the_mean_of_what_clients_came_to(tiny, run, noted, downlink):
    """Though they were not sent all of it: what is owed waits, and comes with the next model."""
    came_to, held = noted
    recipe = tiny(data={"partition": "dirichlet"}, train={"rounds": 3},
                  wire={"downlink": downlink, "deltas": True})  # fmt: skip
    _, state = run(recipe)
    np.testing.assert_allclose(state.values, _mean(came_to, 3), atol=1e-6)
    summed = manifest(build(recipe.model)).count("statistics")
    owed = state.carried["owed"]
    assert not owed[-summed:].any()
    # what clients hold follows the sum of all updates, but for what is owed
    moved = sum(
        _mean(came_to, round_) - next(v for n, v in held if n == round_) for round_ in (1, 2, 3)
    )
    first = next(v for n, v in held if n == 1)
    begun = pack(build(recipe.model, seed=recipe.run.seed))
    assert np.abs(first - begun).max() < 1e-3  # the model of the seed, as float16 holds it
    np.testing.assert_allclose(
        (state.values + owed)[:-summed], (first + moved)[:-summed], atol=1e-4
    )
