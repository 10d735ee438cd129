"""The parts of the benchmark measure what they say, and guard against a slower step or engine."""

import json
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from client.replicas import Replicas
from csg_core import ModelSpec, build
from csg_core.images import ImageSet
from federation.data_sets import DataError
from federation.sections import TrainConfig
from server.record import RunFolder
from simulations.bench import __main__ as bench
from simulations.bench import cohort, engines, growth, limits, overhead, part, server, steps
from simulations.bench.limits import Arm
from simulations.bench.loop import loop
from simulations.bench.measured import Measured, measured
from simulations.bench.part import SPEED
from simulations.bench.runs import round_seconds
from simulations.bench.stacked import Stacked
from simulations.command import StudyError
from simulations.local_engine import run_local
from simulations.pages import README

TINY = ("model.width=0.25", "model.slice_size=4", "model.code_size=12",
        "data.name=digits", "data.clients=4", "train.precision=fp32")  # fmt: skip
SERVER = {
    "updates": {
        "ecsq": {"bytes_up": 30_000, "bytes_down": 30_000, "update_ms": 10.0, "downlink_ms": 20.0}
    },
    "superlink": {"nodes": 10, "memory_alone_mb": 100.0, "memory_a_node_kb": 100.0,
                  "requests_a_second": 100.0, "cpu_ms_a_request": 10.0, "cores_used": 1.0},
}  # fmt: skip


@pytest.mark.slow
def test_a_step_of_generated_filters_costs_little_more_than_a_dense_one(monkeypatch):
    """By the time of the one thread that computes, since others work beside it."""
    assert torch.get_num_threads() == 1
    monkeypatch.setattr(part, "time", SimpleNamespace(perf_counter=time.thread_time))
    row = steps.compare("resnet20", "fp32", 16, 15)
    for kind in ("step_ratio", "evaluation_ratio"):
        assert set(row[kind]) == {"csg", "per-layer", "folded"}
        assert all(0.2 < ratio < 5 for ratio in row[kind].values())
    assert row["step_ratio"]["csg"] < row["step_ratio"]["per-layer"]
    assert row["step_ratio"]["csg"] < 1.6  # 1.06 on a quiet machine, at a batch of 64
    assert all(megabytes > 10 for megabytes in row["peak_memory_mb"].values())
    assert "| resnet20 fp32 |" in steps.tables([row])["steps"]


@pytest.mark.slow
def test_the_engine_costs_little_more_than_a_loop_without_federation(tiny, tmp_path):
    by_hand, by_engine = [], []
    for turn in range(4):
        folder = tmp_path / str(turn)
        folder.mkdir()
        recipe = tiny(
            data={"clients": 2}, train={"rounds": 3}, run={"dir": str(folder), "device": "cpu"}
        )
        by_hand += [round_.seconds for round_ in loop(recipe)]
        run_local(recipe, lambda _row: None)
        by_engine += [row.seconds for row in RunFolder(folder).rows()]
    ratio = min(by_engine) / min(by_hand)  # of the rounds beside which others worked least
    assert 0.3 < ratio < 1.8  # near 1 where clients have more to do


@pytest.mark.slow
def test_the_loop_does_the_work_of_the_recipe(tiny):
    data = {"images": 1437, "clients": 2}
    rounds = list(
        loop(
            tiny(
                data=data,
                train={"rounds": 5, "batch_size": 8},
                run={"eval_every": 4, "device": "cpu"},
            )
        )
    )
    evaluated = [
        place for place, round_ in enumerate(rounds, 1) if round_.test_accuracy is not None
    ]
    assert evaluated == [4, 5]
    assert rounds[-1].test_accuracy > 0.3  # digits, five rounds; guessing is 0.1
    assert all(round_.seconds > 0 for round_ in rounds)


@pytest.mark.parametrize(
    "sections", [{"train": {"generator_lr": 0.5}}, {"data": {"holdout": 0.2}}], ids=str
)
def test_the_loop_passes_nothing_over(tiny, sections):
    with pytest.raises(ValueError, match="the loop does without it; leave it out"):
        next(loop(tiny(run={"device": "cpu"}, **sections)))


def test_bare_steps_loop_and_engine_take_turns(tiny):
    """Also where the engine has codecs, deltas and momentum, which the loop does without."""
    recipe = tiny(
        data={"clients": 3, "images": 1437},
        train={"clip_norm": 1.0, "batch_size": 100},
        server={"strategy": "fedavgm", "options": {"server_momentum": 0.5}},
        wire={"uplink": "ecsq", "downlink": "ecsq", "deltas": True},
    )
    found = overhead.compare(recipe, 2)
    assert all(
        len(found[kind]) == 2 and min(found[kind]) > 0 for kind in ("bare", "loop", "engine")
    )
    assert found["images"] == 1437  # of digits, all of them
    rows = overhead.tables({"tiny": found | {"loop": [2.0, 4.0], "engine": [2.0, 5.0]}})["overhead"]
    assert "| tiny | 1,437 | 3.00 | " in rows
    assert "| 1.125 | 1.00, 1.25 | " in rows


@pytest.mark.slow
def test_engines_are_measured_in_processes_of_their_own():
    values = (*TINY, "train.rounds=3", "run.device=cpu")
    rows = engines.compare("demo", values, [("local", "local, one core")])
    assert [(row["turn"], row["arm"]) for row in rows] == [(1, "local"), (1, "local, one core")]
    assert all(row["memory"] > 100 for row in rows)
    assert engines.tables(rows)["engines"].count("| local") == 2


def test_workers_are_compared_with_one_core_where_both_were_measured():
    both = [{"arm": arm, "round": seconds, "wall": 1, "memory": 1}
            for arm, seconds in (("local, workers", 4.0), ("local, one core", 7.0))]  # fmt: skip
    told = "Workers on all cores are 1.75 times as fast as one core."
    assert engines.tables(both)["engines-scaling"] == told
    assert engines.tables(both[:1])["engines-scaling"] == ""


def test_rounds_are_timed_from_report_to_report_and_none_with_failures():
    said = "round  1/2 ...\nETA\nround  2/2 ...\n"
    done = Measured(0, said, 9.0, 1, arrivals=(4.0, 5.0, 7.5))
    rows = [SimpleNamespace(seconds=1.5, failures=0), SimpleNamespace(seconds=3.0, failures=0)]
    assert round_seconds(done, rows) == [1.5, 3.5]
    with pytest.raises(StudyError, match="1 of the clients' answers failed"):
        round_seconds(done, [rows[0], SimpleNamespace(seconds=3.0, failures=1)])
    with pytest.raises(StudyError, match="2 of 1 rounds were reported"):
        round_seconds(done, rows[:1])


def test_a_command_is_measured_with_all_its_processes():
    child = "import time; x = bytearray(60_000_000); time.sleep(2.5)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}]); print(1)"
    done = measured(["-c", script])
    assert (done.status, done.output) == (0, "1\n")
    assert done.seconds > 2.5
    assert done.peak_bytes > 60_000_000


@pytest.mark.slow
def test_a_command_is_ended_at_its_limit_with_what_it_began():
    child = "import time; time.sleep(600)"
    script = (
        "import subprocess, sys, time; "
        f"print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True); "
        "time.sleep(600)"
    )
    done = measured(["-c", script], limit=10.0)
    assert done.status == -signal.SIGKILL
    assert 10.0 <= done.seconds < 60
    assert not _runs(int(done.output))


def test_what_a_command_leaves_running_is_ended():
    child = "import time; time.sleep(600)"
    script = (
        "import subprocess, sys; null = subprocess.DEVNULL; "
        f"print(subprocess.Popen([sys.executable, '-c', {child!r}], stdout=null).pid)"
    )
    done = measured(["-c", script])
    assert done.status == 0
    assert not _runs(int(done.output))


def _runs(pid):
    """Whether a process works; one that was killed may wait to be reaped by the init process."""
    time.sleep(0.5)
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.slow
def test_growth_has_seconds_of_training_and_memory_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "RESULTS", tmp_path)
    found = growth.run(TINY)
    assert 0 < found["clients"] < found["seconds"]
    assert found["peak_mb"] > 100
    assert found["images"] == 1437  # of digits, all of them
    lines = growth.tables({"clients": {"4": found}})["growth"].splitlines()
    assert lines[2].startswith("| clients | 4 | 1,437 | ")
    assert (tmp_path / "growth.svg").stat().st_size > 1000


@pytest.mark.slow
def test_arms_of_limits_step_in_turns_in_one_process_and_in_several():
    first = Arm("resnet20", batch_size=8)
    arms = {"fp32": {limits.FIRST: first, "two": replace(first, processes=2)}}
    one, two = limits.rates(arms, 2)
    assert one["ratio"] == 1.0
    assert one["images_per_second"] > 1
    assert 0.1 < two["ratio"] < 10
    shares = limits.shares(first)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["convolutions backward"] > 0.1
    assert shares["batch normalisation"] > 0.005


def test_a_step_of_resnet20_takes_three_times_its_passes_operations():
    forward = 2 * 40.6e6  # multiplications and additions of an image, about 41 million pairs
    flops = limits.flops_of_image(Arm("resnet20", parametrization="dense", batch_size=2))
    assert flops == pytest.approx(3 * forward, rel=0.05)


def test_arms_of_limits_differ_from_the_first_in_one_thing(monkeypatch):
    monkeypatch.setattr(limits, "usable_precisions", lambda: ["fp32", "bf16"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    arms = limits.arms_of("resnet20")
    first = arms["bf16"][limits.FIRST]
    assert first == Arm("resnet20", precision="bf16")
    assert arms["fp32"]["contiguous"] == Arm("resnet20", channels_last=False)
    assert arms["bf16"]["batch of 10"] == replace(first, batch_size=10)
    assert arms["bf16"]["2 processes of one thread"] == replace(first, processes=2)
    every = [arm for of in arms.values() for arm in of.values()]
    assert len(set(every)) == len(every)
    row = {"network": "resnet20", "arm": "first", "images_per_second": 400.0, "ratio": 1.0,
           "gflops": 100.0, "precision": "fp32"}  # fmt: skip
    other = row | {"arm": "dense", "precision": "bf16", "ratio": 1.25}
    found = {"rates": [row, other], "shares": {"resnet20": {"copies": 0.25}},
             "product_gflops": {"fp32": 200.0, "bf16": 400.0}}  # fmt: skip
    tables = limits.tables(found)
    assert "| resnet20 | fp32 | first | 400 | 1.00 | 100 | 50 % |" in tables["limits"]
    assert "| resnet20 | bf16 | dense | 400 | 1.25 | 100 | 25 % |" in tables["limits"]
    assert tables["product"].endswith("200 in fp32, 400 in bf16.")
    assert "| copies | 25.0 % |" in tables["profile"]


def test_an_update_costs_the_server_more_time_and_fewer_bytes_with_a_codec():
    plain, coded = (server.updates(server.WIRES[name], count=3) for name in ("fp32", "ecsq"))
    assert plain["bytes_up"] > 4 * plain["values"]
    assert coded["bytes_up"] < plain["bytes_up"] / 15
    assert coded["bytes_down"] < plain["bytes_down"] / 15
    assert coded["update_ms"] > 0


@pytest.mark.slow
def test_a_superlink_is_asked_by_many_nodes():
    found = server.superlink(nodes=4, seconds=2)
    assert found["requests_a_second"] > 1
    assert found["cpu_ms_a_request"] > 0
    assert found["memory_alone_mb"] > 20


def test_what_many_clients_take_is_arithmetic_on_what_was_measured():
    lines = server.many(SERVER).splitlines()
    # 3,833 requests a second of 10 ms; 39 SuperLinks of 100 MB, 10,000 nodes of 100 kB; 100 clients
    # of 60 kB, of 8 requests and of 10 ms, whose updates are held
    assert lines[3] == "| 10,000 | 3,833 | 38.3 | 5.63 | 4.9 | 6.00 | 8.0 | 1.00 | 3.00 |"


def test_the_pages_show_what_was_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "RESULTS", tmp_path)
    for name, page in (("SPEED", bench.SPEED), ("README", bench.README)):
        (tmp_path / page.name).write_text(page.read_text())
        monkeypatch.setattr(bench, name, tmp_path / page.name)
    monkeypatch.setattr(sys, "argv", ["bench", "--show"])
    bench.main()
    for page in (SPEED, README):
        assert (tmp_path / page.name).read_text().split() == page.read_text().split()


def test_the_command_keeps_json_and_fills_its_page(tmp_path, monkeypatch, capsys):
    page = tmp_path / "speed.md"
    places = ("steps", "steps-where")
    page.write_text("".join(f"<!-- {n} -->\n<!-- end of {n} -->\n" for n in places))
    found = [{"network": "tiny", "precision": "fp32", "peak_memory_mb": {"dense": 1.0, "csg": 2.0},
              "step_ratio": dict.fromkeys(steps.ARMS[1:], 1.25),
              "evaluation_ratio": dict.fromkeys(steps.ARMS[1:], 1.5)}]  # fmt: skip
    monkeypatch.setattr(steps, "measure", lambda _images: found)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(bench, "SPEED", page)
    monkeypatch.setattr(bench, "README", page)
    monkeypatch.setattr(sys, "argv", ["bench", "--parts", "steps", "engines"])
    dates = {time.strftime("%Y-%m-%d")}
    with pytest.raises(StudyError, match="not measured: engines"):  # which was asked for
        bench.main()
    assert "engines: needs CIFAR-10; name its folder" in capsys.readouterr().out
    assert "| tiny fp32 | 1.250 | 1.250 | 1.250 | 1.500 |" in page.read_text()
    kept = json.loads((tmp_path / "results" / "steps.json").read_text())
    assert kept["found"] == found
    assert kept["date"] in dates | {time.strftime("%Y-%m-%d")}
    assert kept["machine"]["torch"] == torch.__version__


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StudyError("the arm flower failed"), "limits: the arm flower failed\n"),
        (RuntimeError("no C++"), "limits: Traceback (most recent call last):"),
    ],
)
def test_a_part_that_fails_is_named_and_the_others_are_measured(
    tmp_path, monkeypatch, capsys, error, said
):
    def fails(_images):
        raise error

    page = tmp_path / "speed.md"
    page.write_text("".join(f"<!-- {n} -->\n<!-- end of {n} -->\n"
                            for n in ("server", "many", "superlink", "server-where")))  # fmt: skip
    monkeypatch.setattr(limits, "measure", fails)
    monkeypatch.setattr(server, "measure", lambda _images: SERVER)
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(bench, "SPEED", page)
    monkeypatch.setattr(bench, "README", page)
    monkeypatch.setattr(sys, "argv", ["bench", "--parts", "limits", "server"])
    with pytest.raises(StudyError, match="not measured: limits"):
        bench.main()
    assert said in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["server.json"]


def test_images_that_are_not_there_are_named_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(limits, "measure", lambda _images: pytest.fail("it was measured"))
    monkeypatch.setattr(sys, "argv", ["bench", "--parts", "limits", "--data", "nowhere"])
    with pytest.raises(DataError, match="nowhere: no such folder"):
        bench.main()


def test_stacked_models_step_as_replicas_do():
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3 * 8, 32, 32, 3), generator=rng, dtype=torch.uint8)
    labels = torch.randint(0, 10, (3 * 8,), generator=rng)
    data = ImageSet(images, labels, 10)
    batches = list(zip(images.split(8), labels.split(8), strict=True))
    model = build(ModelSpec(name="resnet20", code_size=36, classes=10), seed=0)
    train = TrainConfig(weight_decay=1.0)
    replicas = Replicas(model, 3, data, train=train, mu=0.0, precision="fp32")
    stacked = Stacked(model, 3, data, train=train, precision="fp32")
    for way in (replicas, stacked):
        way.set_lr(0.01)
    for _ in range(3):
        torch.testing.assert_close(
            stacked.step(batches), replicas.step(0, batches), rtol=1e-3, atol=1e-3
        )
    for place, replica in enumerate(replicas):
        for name, parameter in replica.model.named_parameters():
            torch.testing.assert_close(
                stacked.parameters[name][place], parameter.detach(), rtol=1e-2, atol=1e-3
            )


def test_a_table_of_cohorts_holds_stacked_models_where_they_were_measured():
    row = {"network": "resnet20", "kind": "csg", "precision": "fp32", "one_by_one": 1000.0,
           "at_once": dict.fromkeys(("1", "10", "20"), 2000.0)}  # fmt: skip
    both = row | {"stacked": dict.fromkeys(("1", "10", "20"), 3000.0)}
    without, beside = (
        cohort.tables({"device": "a card", "rows": [of]})["cohort"].splitlines()
        for of in (row, both)
    )
    assert {line.count("|") for line in without[:3]} == {6}
    assert {line.count("|") for line in beside[:3]} == {9}
    assert beside[2].endswith("| 2,000 | 3,000 | 3,000 | 3,000 |")
