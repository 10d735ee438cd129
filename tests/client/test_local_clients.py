"""Clients trained at once come to what each comes to alone, up to the rounding of floats.

What differs by rounding differs more with every step. So most tests compute in float64, where
answers, in float32, are nearly equal; those in other precisions take small steps.
"""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from client.job import Job, TrainingError
from client.local import LocalClient
from client.local_clients import LocalClients, _few, _steps
from client.memory import NOTHING
from client.replicas import Replicas, values_of
from client.shard import Shard, Shards
from client.training import epoch_batches
from csg_core import build, manifest, pack
from csg_core.images import ImageSet
from csg_core.payload import PayloadError, decode
from csg_core.sender import Sender

# in batches of 8: smaller last ones, a lone image left out twice, and shards under a batch
SIZES = (10, 25, 35, 6, 25, 2)
NEAR = 1e-4  # of the norm of an update
_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="captures steps on a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=_GPU)]
MODELS = [
    {},
    {"generator": "frozen"},
    {"generator": "binary"},
    {"parametrization": "dense"},
    {"parametrization": "fedpara"},
    {"parametrization": "flocora", "options": {"rank": 1}},
]


@pytest.fixture
def exact(monkeypatch):
    """Models and images in float64."""
    normalise, build_client = ImageSet.normalise, LocalClient.__init__

    def init(self, recipe):
        build_client(self, recipe)
        self.model.double()

    monkeypatch.setattr(ImageSet, "normalise", lambda *given: normalise(*given).double())
    monkeypatch.setattr(LocalClient, "__init__", init)


class _Round:
    """A round of clients with the first images of the data set, and the server's side of it."""

    def __init__(self, recipe, *, round_=1, sizes=SIZES, memories=None, before=None, **more):
        self.recipe, self.round = recipe, round_
        self.client = before.client if before else LocalClient(recipe)
        groups = recipe.train.travelling()
        self.manifest = manifest(self.client.model, groups)
        self.channel = recipe.wire.channel(self.manifest)
        self.images = before.images if before else Shards(recipe, self.client.device)[0].images
        ends = np.cumsum(sizes)
        self.sender = self.sends(pack(build(recipe.model, seed=5), groups))
        self.jobs = [
            Job(
                payload=self.sender.message(None),
                shard=Shard(self.images, torch.arange(end - size, end), torch.arange(0)),
                round_=round_,
                partition=partition,
                memory=memories[partition] if memories else NOTHING,
                **more,
            )
            for partition, (end, size) in enumerate(zip(ends, sizes, strict=True))
        ]

    def sends(self, values):
        sender = Sender(self.channel, values)
        sender.advance(values, self.round, np.random.default_rng(0))
        return sender

    def alone(self):
        """What each client answers by itself."""
        return [self.client.train(job) for job in self.jobs]

    def together(self, clients=None):
        return (clients or LocalClients(self.client)).train(self.jobs)

    def updates(self, answers):
        label = self.channel.label("update", self.round, self.sender.held)
        codec = self.recipe.wire.update_codec(self.channel.parts, self.round)
        return [decode(answer.payload, label, codec) for answer in answers]


def _recipe(tiny, **sections):
    train = {"batch_size": 8, **sections.pop("train", {})}
    return tiny(train=train, **sections)


def _distances(ones, others):
    pairs = zip(ones, others, strict=True)
    return [np.linalg.norm(other - one) / np.linalg.norm(one) for one, other in pairs]


def _assert_equal(found, *, near=NEAR, clients=None):
    """Clients of a round answer together as alone; the updates of those alone."""
    alone, together = found.alone(), found.together(clients)
    updates = found.updates(alone)
    assert max(_distances(updates, found.updates(together))) < near
    for one, other in zip(alone, together, strict=True):
        report = one.report
        assert (other.report.partition, other.report.examples) == (
            report.partition,
            report.examples,
        )
        assert other.report.loss_before == pytest.approx(report.loss_before, rel=near)
        assert other.report.train_loss == pytest.approx(report.train_loss, rel=near)
        assert other.report.loss_after == pytest.approx(report.loss_after, rel=10 * near)
        assert other.report.seconds > 0
    return updates


@pytest.mark.parametrize("model", MODELS, ids=lambda model: "-".join(map(str, model.values())))
def test_ragged_clients_come_to_what_they_come_to_alone(tiny, exact, model):
    _assert_equal(_Round(_recipe(tiny, model=model)))


@pytest.mark.parametrize(
    "train",
    [
        {"local_epochs": 2},
        {"augment": True},
        {"momentum": 0.0},
        {"weight_decay": 5.0},
        {"clip_norm": 0.1},
        {"lr_schedule": "cosine"},
        {"generator_lr": 0.1},
    ],
    ids=lambda train: next(iter(train)),
)
def test_every_setting_acts_as_it_does_alone(tiny, exact, train):
    plain = _Round(_recipe(tiny), round_=2)
    updates = _assert_equal(_Round(_recipe(tiny, train=train), round_=2))
    # the first client, of two batches, notices all of them
    assert _distances(plain.updates(plain.alone()[:1]), updates[:1])[0] > 10 * NEAR


def test_dropout_is_drawn_from_the_seed_and_leaves_others_draws_alone(tiny):
    model = {"name": "pfl-cnn", "parametrization": "dense", "width": 1.0}
    round_ = _Round(_recipe(tiny, model=model), sizes=(10, 6))
    state = torch.get_rng_state()
    one = [answer.payload for answer in round_.together()]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert [answer.payload for answer in round_.together()] == one
    assert one[0] != round_.alone()[0].payload


def test_the_proximal_term_pulls_each_client_to_what_it_received(tiny, exact):
    recipe = _recipe(tiny)
    plain = _Round(recipe)
    updates = _assert_equal(_Round(recipe, proximal_mu=100.0))
    assert _distances(plain.updates(plain.alone()[:1]), updates[:1])[0] > 10 * NEAR


@pytest.mark.parametrize("parametrization", ["csg", "dense"])
@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-3), ("bf16", 1e-2)])
def test_other_precisions_come_to_the_same_within_their_rounding(
    tiny, parametrization, precision, near
):
    train = {"precision": precision, "lr": 1e-3}
    model = {"parametrization": parametrization}
    _assert_equal(_Round(_recipe(tiny, train=train, model=model)), near=near)


def test_a_generator_that_does_not_train_stays_as_it_is(tiny, exact):
    wire = {"deltas": True, "generator_until": 1}
    found = _Round(
        _recipe(tiny, wire=wire, train={"weight_decay": 1.0, "clip_norm": 0.1}), round_=2
    )
    updates = _assert_equal(found)
    before = found.sender.held.values
    clients = LocalClients(found.client)
    clients.train(found.jobs)
    size, codes = (found.manifest.count(group) for group in ("generator", "codes"))
    trained = pack(clients._replicas[0].model)
    assert np.array_equal(trained[:size], before[:size])
    assert not np.array_equal(trained[size : size + codes], before[size : size + codes])
    assert not updates[0][:size].any()
    _assert_equal(_Round(found.recipe, round_=1))


@pytest.mark.parametrize("policy", ["local_statistics", "local"])
def test_norms_that_stay_with_clients_stay_with_each(tiny, exact, policy):
    recipe = _recipe(tiny, train={"batch_norm": policy}, data={"holdout": 0.1})
    memories = [answer.memory for answer in _Round(recipe).alone()]
    found = _Round(recipe, round_=2, memories=memories)
    _assert_equal(found)
    kept = [[a.memory.kept for a in answers] for answers in (found.alone(), found.together())]
    assert max(_distances(*kept)) < NEAR
    assert min(_distances([a.kept for a in memories], kept[1])) > 10 * NEAR
    assert min(_distances(kept[1][:-1], kept[1][1:])) > 10 * NEAR


def test_what_the_codec_left_out_is_fed_back_to_each(tiny, exact):
    recipe = _recipe(tiny, wire={"uplink": "topk:fraction=0.5"})
    memories = [answer.memory for answer in _Round(recipe).alone()]
    found = _Round(recipe, round_=2, memories=memories)
    alone, together = found.alone(), found.together()
    sent = [found.updates(answers) for answers in (alone, together)]
    whole = [
        [update + answer.memory.residual for update, answer in zip(*pair, strict=True)]
        for pair in zip(sent, (alone, together), strict=True)
    ]
    assert max(_distances(*whole)) < NEAR


def test_one_clients_failure_is_its_own(tiny):
    recipe = _recipe(tiny, train={"lr": 1e-3})
    found = _Round(recipe)
    wanted = found.updates(found.alone())
    good = found.jobs
    huge = found.sends(np.full(found.manifest.size, 1e30, np.float32)).message(None)
    found.jobs = [
        good[0],
        replace(good[1], payload=good[1].payload[:-1]),
        replace(good[2], shard=replace(good[2].shard, train_rows=torch.arange(0))),
        replace(good[3], payload=huge),
        *good[4:],
    ]
    answers = found.together()
    assert isinstance(answers[1], PayloadError)
    assert isinstance(answers[2], TrainingError)
    assert "client 2 has no images" in str(answers[2])
    assert isinstance(answers[3], TrainingError)
    assert "client 3: the loss is nan in round 1; lower train.lr" in str(answers[3])
    left = [0, 4, 5]
    updates = found.updates([answers[place] for place in left])
    assert max(_distances([wanted[place] for place in left], updates)) < 1e-3
    found.jobs = found.jobs[1:3]
    assert [type(answer) for answer in found.together()] == [PayloadError, TrainingError]


@pytest.mark.parametrize("most", [1, 30, 60])
def test_images_are_gathered_for_a_few_clients_at_a_time(tiny, monkeypatch, most):
    round_ = _Round(_recipe(tiny, train={"augment": True}))
    wanted = [answer.payload for answer in round_.together()]
    monkeypatch.setattr("client.local_clients._GATHERED", most)
    sizes = [len(round_.jobs[few]) for few in _few(round_.jobs)]
    assert sizes == {1: [1] * 6, 30: [1, 1, 2, 2], 60: [2, 4]}[most]
    assert [answer.payload for answer in round_.together()] == wanted


def test_old_copies_are_let_go_before_new_ones_are_made(tiny, monkeypatch):
    round_ = _Round(_recipe(tiny), sizes=(9, 9))
    clients = LocalClients(round_.client)
    clients.train(round_.jobs[:1])
    old = weakref.ref(next(clients._replicas[0].model.parameters()))
    init = Replicas.__init__

    def counted(self, *given, **named):
        assert old() is None
        init(self, *given, **named)

    monkeypatch.setattr(Replicas, "__init__", counted)
    clients.train(round_.jobs)
    assert len(clients._replicas) == 2


def test_equal_shards_take_no_more_steps_than_one(tiny, monkeypatch):
    steps, step = [], Replicas.step

    def counted(self, first, batches):
        steps.append((first, len(batches)))
        return step(self, first, batches)

    monkeypatch.setattr(Replicas, "step", counted)
    _Round(_recipe(tiny), sizes=(19, 19, 19)).together()
    assert steps == [(0, 3)] * 3


def test_copies_of_the_model_serve_every_round(tiny):
    found = _Round(_recipe(tiny))
    clients = LocalClients(found.client)
    first = clients.train(found.jobs)
    replicas = clients._replicas
    found.jobs.reverse()
    again = clients.train(found.jobs)[::-1]
    assert clients._replicas is replicas
    assert [answer.payload for answer in again] == [answer.payload for answer in first]
    clients.train(found.jobs[:2])
    assert clients._replicas is replicas


def test_a_parameter_that_the_network_does_not_use_stays_as_it_is(tiny):
    recipe = _recipe(tiny, train={"weight_decay": 1.0})
    client, data = LocalClient(recipe), Shards(recipe, torch.device("cpu"))[0].images
    unused = torch.nn.Parameter(torch.ones(3))
    client.model.register_parameter("unused", unused)
    replicas = Replicas(client.model, 1, data, train=recipe.train, mu=0.0, precision="fp32")
    replicas.set_lr(0.1)
    replicas[0].begin(values_of(client.model))
    before = replicas[0].model.state_dict()
    before = {name: tensor.clone() for name, tensor in before.items()}
    replicas.step(0, [(data.images[:8], data.labels[:8])])
    after = replicas[0].model.state_dict()
    assert torch.equal(after["unused"], before["unused"])
    assert sum(not torch.equal(after[name], before[name]) for name in before) > 10


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS[:4], ids=lambda model: "-".join(map(str, model.values())))
@pytest.mark.parametrize("device", DEVICES)
def test_copies_come_to_the_same_in_later_rounds(tiny, exact, device, model):
    """On a GPU steps are captured, with the generator in training and without, and played back."""
    recipe = _recipe(
        tiny,
        model=model,
        train={"lr_schedule": "cosine", "rounds": 4, "clip_norm": 5.0, "generator_lr": 0.3},
        wire={"deltas": True, "generator_every": 2} if model == {} else {},
        run={"device": device},
    )
    sizes, found = (42, 42, 42, 6), None
    for round_ in (1, 2, 3, 4):
        found = _Round(recipe, round_=round_, sizes=sizes, before=found, proximal_mu=0.1)
        if round_ == 1:
            clients = LocalClients(found.client)
        _assert_equal(found, clients=clients)
        if round_ == 1:
            copies = clients._replicas
    assert clients._replicas is copies, "not made anew, whether the generator trains or not"
    if device == "cuda":
        captured = {still for first, sizes, still in copies._graphs if sizes == (8, 8, 8)}
        assert len(captured) == (2 if model == {} else 1)


@pytest.mark.parametrize("device", DEVICES)
def test_dropout_differs_between_clients_at_once_and_between_steps(tiny, device):
    model = {"name": "pfl-cnn", "parametrization": "dense", "width": 1.0}
    recipe = _recipe(tiny, model=model, run={"device": device})
    client, data = LocalClient(recipe), Shards(recipe, torch.device(device))[0].images
    replicas = Replicas(client.model, 2, data, train=recipe.train, mu=0.0, precision="fp32")
    for replica in replicas:
        replica.begin(values_of(client.model))
    replicas.set_lr(0.0)  # so that losses differ by their masks only
    batch = data.images[:8], data.labels[:8]
    losses = torch.cat([replicas.step(0, [batch, batch]) for _ in range(8)])  # captured after 3
    assert len(set(losses.tolist())) == 16


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 16), st.integers(0, 9))
def test_every_client_takes_its_own_batches_in_their_order(sizes, batch_size, seed):
    sizes = sorted(sizes, reverse=True)
    rng = torch.Generator().manual_seed(seed)
    rows = [
        epoch_batches(torch.arange(1000 * c, 1000 * c + n), batch_size, rng)
        for c, n in enumerate(sizes)
    ]
    batches = [[(chosen, chosen) for chosen in parts] for parts in rows]
    taken = [[] for _ in sizes]
    for first, alike in _steps(batches):
        assert len({len(labels) for _, labels in alike}) == 1
        for client, (_, labels) in zip(taken[first:], alike, strict=False):
            client.append(labels.tolist())
    assert taken == [[chosen.tolist() for chosen in parts] for parts in rows]
