"""The local engine: the same apps on a Grid in this process, bit for bit the same per seed."""

import json
import math
import threading
from dataclasses import replace

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
from federation.recipe import RecipeError
from federation.sources import load_images
from server import rounds
from server.app import make_app as make_server_app
from server.outcome import RunError
from server.record import RunFolder
from server.strategy import CsgStrategy, model_in, model_record
from simulations.clients import Clients, client_app
from simulations.estimate import estimate
from simulations.local_engine import LocalGrid, run_config


def _grid(recipe, app=None, *, in_process=False):
    clients = Clients(app or make_app(), run_config(recipe), recipe.data.clients)
    return LocalGrid(recipe, clients, in_process=in_process)


@pytest.mark.slow
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
        client.fit(Job(payload=b"", shard=shard, round_=1, partition=partition))
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


def test_a_loss_that_is_no_number_is_none_in_the_record(tiny, run, monkeypatch):
    """NaN is no JSON, and is not equal to itself, by which rows are told apart."""
    real = rounds.evaluate
    monkeypatch.setattr(
        rounds, "evaluate", lambda *given, **more: replace(real(*given, **more), loss=math.nan)
    )
    folder, _ = run(tiny())
    lines = (folder.path / "rounds.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [row["test_loss"] for row in rows] == [None, None]
    assert all(row["test_accuracy"] is not None for row in rows)


@pytest.mark.slow
def test_evaluation_and_checkpoints_come_as_often_as_asked(tiny, run):
    recipe = tiny(train={"rounds": 5}, run={"eval_every": 2, "checkpoint_every": 3})
    folder, _ = run(recipe)
    evaluated = [row.round for row in folder.rows() if row.test_accuracy is not None]
    assert evaluated == [2, 4, 5]
    names = sorted(path.name for path in folder.checkpoints.iterdir())
    assert names == ["best.safetensors", "round-000003.safetensors", "round-000005.safetensors"]


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.parametrize("strategy", ["fedavgm", "fedadam", "fedmedian", "krum"])
def test_strategies_by_name_train(tiny, run, strategy):
    options = {"fedadam": {"eta": 0.01}, "fedavgm": {"server_momentum": 0.5}}.get(strategy, {})
    folder, _ = run(tiny(server={"strategy": strategy, "options": options}))
    losses = [row.train_loss for row in folder.rows()]
    assert losses[1] < losses[0]


def test_flowers_own_loop_comes_to_the_same_model(tiny, run):
    recipe = tiny()
    model = build(recipe.model)
    strategy = CsgStrategy(recipe, manifest(model), pack(model))
    result = strategy.start(
        grid=_grid(recipe),
        initial_arrays=model_record(pack(model)),
        num_rounds=2,
    )
    folder, state = run(recipe)
    losses = [result.train_metrics_clientapp[round_]["train-loss"] for round_ in (1, 2)]
    assert losses == [row.train_loss for row in folder.rows()]
    assert np.array_equal(model_in(result.arrays), state.values)


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
    assert [report.partition for report in strategy.outcome.reports.values()] == [0, 1, 2, 3]
    assert np.isfinite(model_in(arrays)).all()


@pytest.mark.slow
@pytest.mark.parametrize("in_process", [False, True], ids=["bytes", "arrays"])
def test_memory_of_an_update_is_enough_whatever_the_cohort(tiny, in_process):
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
        alive.append(weakref.ref(payload.values if in_process else reply))
        return reply

    model = build(recipe.model)
    strategy = CsgStrategy(recipe, manifest(model), pack(model), in_process=in_process)
    grid = _grid(recipe, app, in_process=in_process)
    strategy.start(grid=grid, initial_arrays=model_record(pack(model)), num_rounds=1)
    assert max(most) <= 1


def test_outside_the_main_thread_a_run_works_as_well(tiny, run):
    found = []
    thread = threading.Thread(target=lambda: found.append(run(tiny(train={"rounds": 1}))))
    thread.start()
    thread.join()
    assert found[0][0].summary()["outcome"] == "completed"


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("raise SystemExit(3)", "raised SystemExit: 3"),
        (r"raise RuntimeError('boom\nsecond line')", "raised RuntimeError: boom second line"),
        ("return None", "raised TypeError: the ClientApp gave a NoneType, and no Message"),
    ],
    ids=["exits", "many lines", "nothing"],
)
def test_what_a_client_does_wrong_is_its_own_and_is_named(
    tiny, run, monkeypatch, tmp_path, does, said
):
    name = f"wrong_{abs(hash(does))}"
    (tmp_path / f"{name}.py").write_text(
        "from flwr.clientapp import ClientApp\n"
        "from client.app import app as ours\n"
        "app = ClientApp()\n"
        "@app.train()\n"
        "def train(message, context):\n"
        "    if context.node_config['partition-id'] == 1:\n"
        f"        {does}\n"
        "    return ours(message, context)\n"
    )
    monkeypatch.chdir(tmp_path)
    folder, _ = run(tiny(run={"client_app": f"{name}:app"}, train={"rounds": 1}))
    assert folder.summary()["outcome"] == "completed"
    assert folder.rows()[0].failed == {"client 1": said}


def test_a_module_that_exits_is_no_client_app(tmp_path, monkeypatch):
    (tmp_path / "leaving.py").write_text("raise SystemExit(4)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        RecipeError, match=r"'leaving:app' cannot be imported \(SystemExit: 4\); mend"
    ):
        client_app("leaving:app")


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
