"""The local engine: the same apps on a Grid in this process, bit for bit the same per seed."""

import threading

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from client.app import make_app
from client.job import Job
from csg_core import build, manifest, pack, unpack
from csg_core.evaluation import evaluate
from federation.code import CODE, code_identity
from federation.messages import RECIPE, payload_in
from federation.sources import load_images
from server.app import make_app as make_server_app
from server.checkpoints import CheckpointError
from server.outcome import RunError
from server.record import RunFolder
from server.state import load_state
from server.strategy import CsgStrategy, model_in, model_record
from simulations.clients import Clients
from simulations.estimate import estimate
from simulations.local_engine import LocalGrid, run_config, run_local


@pytest.fixture
def run(tmp_path):
    """Runs a recipe in a folder of its own; the folder and the state at the end."""

    def go(recipe, name="run"):
        section = recipe.run.model_copy(update={"dir": str(tmp_path / name)})
        recipe = recipe.model_copy(update={"run": section})
        folder = RunFolder(tmp_path / name)
        folder.create(recipe, {}, [])
        run_local(recipe, lambda _row: None)
        return folder, load_state(folder.checkpoints, recipe.model, recipe.train.travelling())

    return go


def _grid(recipe, app=None, *, passes=False):
    clients = Clients(app or make_app(), run_config(recipe), recipe.data.clients)
    return LocalGrid(recipe, clients, passes=passes)


def test_the_same_seed_gives_the_same_bits(tiny, run):
    (one, first), (two, again) = run(tiny(), "one"), run(tiny(), "two")
    assert np.array_equal(first.values, again.values)
    other = run(tiny(run={"seed": 1}), "three")[1]
    assert not np.array_equal(first.values, other.values)
    losses = [[row.train_loss for row in folder.rows()] for folder in (one, two)]
    assert losses[0] == losses[1]


def test_a_round_is_federated_averaging_as_the_paper_writes_it(tiny, run):
    """A loop by hand over the clients, without Flower or payloads, comes to the same model."""
    from client.local import LocalClient
    from client.shard import Shards

    recipe = tiny(data={"partition": "dirichlet"}, train={"rounds": 1})
    _, state = run(recipe)
    client = LocalClient(recipe)
    shards = Shards(recipe, client.device)
    model = build(recipe.model, seed=recipe.run.seed)
    start, trained, weights = pack(model), [], []
    for partition in range(recipe.data.clients):
        shard = shards[partition]
        unpack(client.model, start)
        client._fit(Job(payload=b"", shard=shard, round_=1, partition=partition))
        trained.append(pack(client.model).astype(np.float64))
        weights.append(len(shard.train_rows))
    wanted = np.average(trained, axis=0, weights=weights)
    np.testing.assert_allclose(state.values, wanted, atol=1e-5, rtol=1e-5)


def test_rows_count_every_byte_that_was_handed_over(tiny, run):
    recipe = tiny(wire={"uplink": "fp16"}, train={"clients_per_round": 3})
    folder, _ = run(recipe)
    size = manifest(build(recipe.model)).size
    for row in folder.rows():
        assert (row.clients, row.failures) == (3, 0)
        assert row.payload_bytes_down == 3 * (56 + 4 * size)
        assert row.payload_bytes_up == 3 * (56 + 2 * size)
        assert (row.wire_bytes_up, row.wire_bytes_down) == (None, None)
    summary = folder.summary()
    assert summary["outcome"] == "completed"
    assert summary["payload_bytes"] == sum(
        row.payload_bytes_up + row.payload_bytes_down for row in folder.rows()
    )


def test_bytes_at_an_interface_are_recorded_where_one_is_named(tiny, run):
    folder, _ = run(tiny(run={"interface": "lo"}))
    rows = folder.rows()
    assert all(row.wire_bytes_up >= 0 and row.wire_bytes_down >= 0 for row in rows)
    total = sum(row.wire_bytes_up + row.wire_bytes_down for row in rows)
    assert folder.summary()["wire_bytes"] == total


def test_the_recorded_accuracy_is_that_of_the_checkpoint(tiny, run):
    recipe = tiny()
    folder, state = run(recipe)
    model = build(recipe.model)
    unpack(model, state.values)
    found = evaluate(model, load_images("digits", None, "test"))
    assert found.accuracy == folder.rows()[-1].test_accuracy == folder.summary()["accuracy"]


def test_evaluation_and_checkpoints_come_as_often_as_asked(tiny, run):
    recipe = tiny(train={"rounds": 5}, run={"eval_every": 2, "checkpoint_every": 3})
    folder, _ = run(recipe)
    evaluated = [row.round for row in folder.rows() if row.test_accuracy is not None]
    assert evaluated == [2, 4, 5]
    names = sorted(path.name for path in folder.checkpoints.iterdir())
    assert names == ["best.safetensors", "round-000003.safetensors", "round-000005.safetensors"]


def test_cohorts_are_drawn_anew_each_round_and_by_seed(tiny, run):
    def cohorts(seed, name):
        recipe = tiny(data={"clients": 8}, train={"clients_per_round": 3, "rounds": 4},
                      run={"seed": seed})  # fmt: skip
        rows = run(recipe, name)[0].rows()
        return [[part["partition"] for part in row.contributions] for row in rows]

    one = cohorts(0, "a")
    assert one == cohorts(0, "b")
    assert one != cohorts(1, "c")
    assert len({tuple(cohort) for cohort in one}) > 1
    assert all(cohort == sorted(set(cohort)) and len(cohort) == 3 for cohort in one)


def test_clients_evaluate_where_norms_stay_with_them(tiny, run):
    recipe = tiny(train={"batch_norm": "local"}, data={"holdout": 0.2})
    folder, state = run(recipe)
    assert set(state.clients) == {0, 1, 2, 3}
    last = folder.rows()[-1]
    assert 0 <= last.test_accuracy <= 1
    size = manifest(build(recipe.model), recipe.train.travelling()).size
    assert last.payload_bytes_down == 2 * 4 * (56 + 4 * size)  # to train, and to evaluate
    assert last.payload_bytes_up == 4 * (56 + 4 * size)


def test_what_was_measured_is_what_was_estimated(tiny, run):
    for name, sections in {
        "whole": {},
        "held out": {"train": {"batch_norm": "local"}, "data": {"holdout": 0.1}},
        "lossy": {"wire": {"uplink": "topk:fraction=0.02", "downlink": "uniform"}},
    }.items():
        recipe = tiny(**sections)
        summary, expected = run(recipe, name)[0].summary(), estimate(recipe)
        assert summary["payload_bytes"] == pytest.approx(expected["total_bytes"], rel=0.02)
        assert summary["ratio_to_dense"] == pytest.approx(expected["ratio_to_dense"], rel=0.02)


@pytest.mark.parametrize("line", ["ecsq", "ecsq:step=1", "ecsq:step=3,codes=4", "ecsq:dct=false"])
def test_lossy_updates_take_about_what_was_estimated(tiny, run, line):
    """A quarter off at most: with error feedback, updates are less smooth than without."""
    recipe = tiny(
        model={"width": 1.0, "slice_size": 12, "code_size": 72},
        data={"clients": 2, "images": 128},
        train={"rounds": 4},
        wire={"uplink": line, "downlink": line, "deltas": True},
    )
    last, expected = run(recipe)[0].rows()[-1], estimate(recipe)
    for way in ("payload_bytes_up", "payload_bytes_down"):
        assert getattr(last, way) == pytest.approx(2 * expected[way], rel=0.25), way


def test_a_run_without_its_checkpoints_begins_anew(tiny, run, tmp_path):
    folder, state = run(tiny())
    for path in folder.checkpoints.glob("round-*"):
        path.unlink()
    run_local(folder.recipe(), lambda _row: None)
    assert [row.round for row in folder.rows()] == [1, 2]
    again = load_state(folder.checkpoints, tiny().model, tiny().train.travelling())
    assert np.array_equal(again.values, state.values)


def test_a_checkpoint_without_its_rows_is_not_resumed(tiny, run):
    folder, _ = run(tiny())
    (folder.path / "rounds.jsonl").unlink()
    with pytest.raises(CheckpointError, match="does not hold rounds 1 to 2"):
        run_local(folder.recipe(), lambda _row: None)
    assert folder.summary()["outcome"].startswith("stopped: ")


def test_the_card_is_of_the_round_that_made_the_file(tiny, run, capsys):
    from server.checkpoints import read_with_extra
    from simulations.cli import main

    folder, _ = run(tiny(train={"rounds": 3}))
    (folder.path / "summary.json").unlink()
    found = int(read_with_extra(folder.checkpoints / "best.safetensors")[2]["round"])
    assert main(["export", str(folder.path)]) == 0
    card = (folder.path / "export" / "README.md").read_text()
    accuracy = folder.rows()[found - 1].test_accuracy
    assert f"**Rounds**: {found} of 3" in card
    assert f"{100 * accuracy:.2f} %" in card


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedmedian", "krum"])
def test_strategies_by_name_train(tiny, run, strategy):
    options = {"fedadam": {"eta": 0.01}, "fedavgm": {"server_momentum": 0.5}}.get(strategy, {})
    folder, _ = run(tiny(server={"strategy": strategy, "options": options}))
    losses = [row.train_loss for row in folder.rows()]
    assert losses[1] < losses[0]


def test_flowers_own_loop_runs_the_strategy_too(tiny):
    recipe = tiny()
    model = build(recipe.model)
    strategy = CsgStrategy(recipe, manifest(model), pack(model))
    result = strategy.start(
        grid=_grid(recipe),
        initial_arrays=model_record(pack(model)),
        num_rounds=2,
    )
    assert result.train_metrics_clientapp[2]["train-loss"] < 3
    assert model_in(result.arrays).shape == pack(model).shape


def test_the_server_app_is_what_flower_calls(tiny, tmp_path):
    recipe = tiny(run={"dir": str(tmp_path / "run")})
    RunFolder(tmp_path / "run").create(recipe, {}, [])
    seen = []
    context = Context(
        1, 1, {}, RecordDict(), {RECIPE: recipe.model_dump_json(), CODE: code_identity()}
    )
    make_server_app(seen.append)(_grid(recipe), context)
    assert [row.round for row in seen] == [1, 2]


def test_pushed_messages_are_answered_when_pulled(tiny):
    recipe = tiny()
    grid = _grid(recipe)
    model = build(recipe.model)
    strategy = CsgStrategy(recipe, manifest(model), pack(model))
    from flwr.app import ConfigRecord

    messages = strategy.configure_train(1, model_record(pack(model)), ConfigRecord(), grid)
    names = grid.push_messages(messages[:2])
    first = list(grid.pull_messages(names[:1]))
    names += grid.push_messages(messages[2:])
    arrays, _ = strategy.aggregate_train(1, first + list(grid.pull_messages(reversed(names[1:]))))
    assert [report.partition for report in strategy.outcome.reports] == [0, 1, 2, 3]
    assert np.isfinite(model_in(arrays)).all()


@pytest.mark.parametrize("passes", [False, True], ids=["bytes", "arrays"])
def test_memory_of_an_update_is_enough_whatever_the_cohort(tiny, passes):
    """Replies are made when they are asked for: no two are held at once."""
    recipe = tiny(data={"clients": 6})
    alive, most = [], []
    app, inner = ClientApp(), make_app()

    @app.train()
    def train(message, context):
        import gc
        import weakref

        gc.collect()
        most.append(sum(ref() is not None for ref in alive))
        reply = inner(message, context)
        payload = payload_in(reply.content)
        alive.append(weakref.ref(payload.values if passes else reply))
        return reply

    model = build(recipe.model)
    strategy = CsgStrategy(recipe, manifest(model), pack(model), passes=passes)
    grid = _grid(recipe, app, passes=passes)
    strategy.start(grid=grid, initial_arrays=model_record(pack(model)), num_rounds=1)
    assert max(most) <= 1


def test_outside_the_main_thread_a_run_works_as_well(tiny, run):
    found = []
    thread = threading.Thread(target=lambda: found.append(run(tiny(train={"rounds": 1}))))
    thread.start()
    thread.join()
    assert found[0][0].summary()["outcome"] == "completed"


def test_a_missing_quorum_leaves_a_record(tiny, run, monkeypatch, tmp_path):
    (tmp_path / "failing.py").write_text(
        "from flwr.clientapp import ClientApp\n"
        "app = ClientApp()\n"
        "@app.train()\n"
        "def train(message, context):\n"
        "    raise OSError('the camera is gone')\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"round 1: 0 of 4 .* quorum is 2 .*: client 0 raised OSErr"):
        run(tiny(run={"client_app": "failing:app"}))
    assert RunFolder(tmp_path / "run").summary()["outcome"].startswith("stopped: round 1: 0 of 4")


LOSSY = {"uplink": "ecsq:step=1; statistics=fp16", "downlink": "ecsq:step=1; statistics=fp16",
         "deltas": True}  # fmt: skip


def test_lossy_deltas_with_feedback_train_like_whole_floats(tiny, run):
    sections = {"data": {"images": 1437}, "train": {"rounds": 6}}
    plain, _ = run(tiny(**sections), "plain")
    small, _ = run(tiny(**sections, wire=LOSSY), "small")
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


@pytest.mark.parametrize(
    "server", [{}, {"strategy": "fedavgm", "options": {"server_momentum": 0.9}}]
)
def test_the_generator_trains_and_travels_when_the_schedule_says(tiny, run, server):
    recipe = tiny(
        data={"images": 1437},
        train={"rounds": 5},
        wire={**LOSSY, "generator_every": 2, "generator_until": 3},
        server=server,
    )
    folder, state = run(recipe)
    found = manifest(build(recipe.model))
    size = found.count("generator")
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
    from csg_core.broadcast import Channel, Sender
    from csg_core.codecs import codec_named
    from csg_core.payload import decode

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


@pytest.mark.parametrize("downlink", ["ecsq:step=3", "uniform:bits=2", "fp32"])
def test_the_model_is_the_mean_of_what_clients_came_to(tiny, run, monkeypatch, downlink):
    """Though they were not sent all of it: what is owed waits, and comes with the next model."""
    from client.local import LocalClient

    came_to, held, answer = [], [], LocalClient.answer

    def noting(self, job, received, *rest):
        came_to.append((job.round_, len(job.shard.train_rows), pack(self.model)))
        held.append((job.round_, received.held.values))
        return answer(self, job, received, *rest)

    monkeypatch.setattr(LocalClient, "answer", noting)
    recipe = tiny(data={"partition": "dirichlet"}, train={"rounds": 3},
                  wire={"downlink": downlink, "deltas": True})  # fmt: skip
    _, state = run(recipe)
    last = [(weight, values) for round_, weight, values in came_to if round_ == 3]
    mean = np.average([v for _, v in last], axis=0, weights=[w for w, _ in last])
    np.testing.assert_allclose(state.values, mean, atol=1e-6)
    summed = manifest(build(recipe.model)).count("statistics")
    owed = state.carried["owed"]
    assert not owed[-summed:].any()
    # what clients hold follows the sum of all updates, but for what is owed
    moved = sum(
        np.average([v for n, _, v in came_to if n == round_], axis=0,
                   weights=[w for n, w, _ in came_to if n == round_])
        - next(v for n, v in held if n == round_)
        for round_ in (1, 2, 3)
    )  # fmt: skip
    first = next(v for n, v in held if n == 1)
    begun = pack(build(recipe.model, seed=recipe.run.seed))
    assert np.abs(first - begun).max() < 1e-3  # the model of the seed, as float16 holds it
    np.testing.assert_allclose(
        (state.values + owed)[:-summed], (first + moved)[:-summed], atol=1e-4
    )
