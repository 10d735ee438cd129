"""Faults, each through the command: what it prints, what it leaves, and that it goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from server.record import RunFolder

pytestmark = pytest.mark.slow

# A ClientApp whose clients 1, 2, ... do what $FAULTS says; the others are the real thing.
FAULTY = """
import os
import time

import numpy as np
from flwr.app import Array, ArrayRecord, Message
from flwr.clientapp import ClientApp

from client.app import make_app
from csg_core.codecs import codec_named
from csg_core.entries import Part
from csg_core.payload import Label, encode

app, real = ClientApp(), make_app()


def fault_of(context):
    faults = ["none", *os.environ["FAULTS"].split(",")]
    partition = context.node_config["partition-id"]
    return faults[partition] if partition < len(faults) else "none"


@app.evaluate()
def evaluate(message, context):
    fault = fault_of(context)
    if fault == "hang in evaluation":
        time.sleep(3600)
    if fault in ("raise in evaluation", "raise in both"):
        raise OSError("the camera is gone")
    return real(message, context)


@app.train()
def train(message, context):
    fault = fault_of(context)
    if fault in ("none", "raise in evaluation", "hang in evaluation"):
        return real(message, context)
    if fault in ("raise", "raise in both"):
        raise OSError("the camera is gone")
    if fault == "hang":
        while True:
            try:
                time.sleep(3600)
            except Exception:
                pass
    reply = real(message, context)
    record = reply.content["message"]
    payload = record["payload"]
    if fault == "nan":
        import struct, zlib
        body = struct.pack("<f", float("nan")) * ((len(payload) - 56) // 4)
        checksum = zlib.crc32(body, zlib.crc32(payload[:52]))
        payload = payload[:52] + struct.pack("<I", checksum) + body
    if fault == "architecture":
        label = Label(fingerprint="ab" * 16, parts=(Part("codes", 10),), round=1, kind="update",
                      version=1, digest=0)
        rng = np.random.default_rng(0)
        payload = encode(np.zeros(10, np.float32), label, codec_named("fp32"), rng)
    if fault == "noise":
        payload = np.random.default_rng(0).bytes(10_000_000)
    if fault == "examples":
        record["num-examples"] = 1438
    if fault == "partition":
        record["partition"] = 0
    if fault == "nothing":
        del record["payload"]
    else:
        record["payload"] = payload
    if fault == "interface":
        record.update({"interface-name": "eth0", "interface-shared": False,
                       "interface-sent": -1, "interface-received": 5})
    if fault == "extra":
        reply.content["more"] = ArrayRecord({"x": Array(np.zeros(3))})
    return reply
"""

# Kills this process with -9 when a function is called for the n-th time.
KILLER = """
import os
import signal
import sys

import importlib
place, count = sys.argv[1], int(sys.argv[2])
module, _, name = place.rpartition(".")
try:
    owner = importlib.import_module(module)
except ModuleNotFoundError:
    parent, _, kind = module.rpartition(".")
    owner = getattr(importlib.import_module(parent), kind)
whole = getattr(owner, name)
calls = 0


def killing(*arguments, **named):
    global calls
    calls += 1
    if calls == count:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments, **named)


setattr(owner, name, killing)
from simulations.cli import main

sys.exit(main(sys.argv[3:]))
"""

# Makes round 2 the best, whatever a processor's rounding makes of it; accuracies stay apart.
SECOND_IS_BEST = """
from server.rounds import Rounds
measured = Rounds._evaluate


def evaluated(self, round_, values):
    loss, accuracy = measured(self, round_, values)
    return loss, accuracy / 2 + (round_ == 2) / 2


Rounds._evaluate = evaluated
"""
BEST = f"""{SECOND_IS_BEST}
import sys
from simulations.cli import main

sys.exit(main(sys.argv[1:]))
"""


def _csg(*arguments, cwd, code=None, **environment):
    start = [sys.executable, *(["-c", code] if code else ["-m", "simulations.cli"])]
    return subprocess.run(
        [*start, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def demo(tmp_path, tiny_settings):
    (tmp_path / "faulty.py").write_text(FAULTY)
    return ["run", "demo", *tiny_settings, "--set", "run.dir=run"]


# What a client does, and what is said of it.
FAULTS = {
    "raise": "raised OSError: the camera is gone",
    "nan": "payload holds NaN or infinity",
    "architecture": "payload of another model",
    "noise": "payload of 10,000,000 bytes; this round takes",
    "examples": "num-examples 1438 is absurd; 1 to 1,437 are taken",
    "partition": "claims partition 0; it has 6",
    "nothing": "message without bytes 'payload'",
    "extra": "message without the one record 'message' (records: ['message', 'more'])",
    "interface": "interface-sent -1 cannot be",
    "hang": "did not answer within 3 s",
}
FAULTS_IN_EVALUATION = {
    "raise in evaluation": "evaluation: raised OSError: the camera is gone",
    "raise in both": "raised OSError: the camera is gone; evaluation: raised OSError: the",
    "hang in evaluation": "evaluation: did not answer within 4 s",
}


def test_faulty_clients_are_named_and_the_round_goes_on(demo, tmp_path):
    settings = ["--set", "run.client_app=faulty:app", "--set", "train.rounds=1",
                "--set", "data.clients=13", "--set", "server.min_clients=3",
                "--set", "server.round_timeout=3"]  # fmt: skip
    done = _csg(*demo, *settings, cwd=tmp_path, FAULTS=",".join(FAULTS))
    assert done.returncode == 0, done.stderr
    (row,) = RunFolder(tmp_path / "run").rows()
    assert (row.clients, row.failures) == (3, len(FAULTS))
    for client, message in enumerate(FAULTS.values(), start=1):
        assert message in row.failed[f"client {client}"]
        if client <= 3:
            assert f"client {client} failed: {message}" in done.stdout
    assert "and 7 more" in done.stdout
    assert row.test_accuracy is not None


def test_clients_that_fail_in_evaluation_are_named(demo, tmp_path):
    values = ["run.client_app=faulty:app", "train.rounds=1", "server.round_timeout=4",
              "data.clients=6", "train.batch_norm=local", "data.holdout=0.1"]  # fmt: skip
    settings = [part for value in values for part in ("--set", value)]
    done = _csg(*demo, *settings, cwd=tmp_path, FAULTS=",".join(FAULTS_IN_EVALUATION))
    assert done.returncode == 0, done.stderr
    (row,) = RunFolder(tmp_path / "run").rows()
    assert row.failures == len(FAULTS_IN_EVALUATION)
    for client, message in enumerate(FAULTS_IN_EVALUATION.values(), start=1):
        assert message in row.failed[f"client {client}"]
    assert row.test_accuracy is not None


def test_a_missed_quorum_stops_the_run_with_its_reasons(demo, tmp_path):
    settings = ["--set", "run.client_app=faulty:app", "--set", "server.min_clients=4"]
    done = _csg(*demo, *settings, cwd=tmp_path, FAULTS="raise")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert (
        "round 1: 3 of 4 clients answered usefully, the quorum is 4 (server.min_clients): "
        "client 1 raised OSError: the camera is gone" in done.stderr
    )
    assert RunFolder(tmp_path / "run").summary()["outcome"].startswith("stopped: round 1")


def test_an_unreadable_data_folder_is_named_before_anything_is_written(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.parquet").write_bytes(b"PAR1 and then nothing")
    done = _csg("run", "cifar10-resnet20", "--set", f"data.dir={folder}", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{folder}/train.parquet: cannot be read as parquet" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def _without_seconds(folder: RunFolder) -> list[tuple]:
    return [
        (row.round, row.train_loss, row.test_loss, row.test_accuracy, row.payload_bytes_up)
        for row in folder.rows()
    ]


STAGES = {
    "before the first checkpoint": ("server.rounds.save_state", 1),
    "while a client trains": ("client.local.train_epoch", 6),
    "while averaging": ("csg_core.averaging.WeightedMean.mean", 2),
    "while evaluating": ("server.rounds.Rounds._evaluate", 2),
    "before the row": ("server.record.RunFolder.append", 2),
    "after the row, before the best model": ("server.rounds.write_checkpoint", 2),
    "before the checkpoint": ("server.rounds.save_state", 3),
    "in the checkpoint's file": ("federation.files.os.replace", 6),
    "before the summary": ("server.record.RunFolder.write_summary", 1),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody interrupts, with a strategy that carries state."""
    place = tmp_path_factory.mktemp("whole")
    done = _csg(*_momentum("run"), cwd=place, code=BEST)
    assert done.returncode == 0, done.stderr
    return RunFolder(place / "run")


def _momentum(folder):
    values = ["model.width=0.25", "model.slice_size=4", "model.code_size=12", "data.clients=3",
              "data.images=600", "data.holdout=0.1", "train.rounds=3", "run.seed=1",
              "train.precision=fp32",
              "train.batch_norm=local", "train.batch_size=4", "train.lr=0.02",
              "server.strategy=fedavgm", "server.options.server_momentum=0.5",
              "wire.uplink=ecsq:step=2", "wire.downlink=uniform:bits=4", "wire.deltas=true",
              f"run.dir={folder}"]  # fmt: skip
    return ["run", "demo", *(part for value in values for part in ("--set", value))]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_killed_at_any_stage_ends_as_if_it_had_not_been(stage, whole, tmp_path):
    place, count = STAGES[stage]
    killed = _csg(place, count, *_momentum("run"), cwd=tmp_path, code=SECOND_IS_BEST + KILLER)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = _csg("resume", "run", "--json", cwd=tmp_path, code=BEST)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outcome"] == "completed"
    folder = RunFolder(tmp_path / "run")
    assert _without_seconds(folder) == _without_seconds(whole)
    for name in ("round-000003.safetensors", "best.safetensors"):
        ours, theirs = (load_file(run.checkpoints / name) for run in (folder, whole))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    ours, theirs = ({**run.summary(), "seconds": 0} for run in (folder, whole))
    assert ours == theirs
    assert not list(folder.path.rglob("*.tmp"))


def test_the_killed_run_had_state_of_every_kind_to_lose(whole):
    names = load_file(whole.checkpoints / "round-000003.safetensors").keys()
    carried = {"strategy/momentum_vector", "downlink/reference", "downlink/frames"}
    wanted = {f"extra/carried/{name}" for name in carried} | {"extra/client/0", "extra/round"}
    assert wanted <= set(names)
    assert whole.summary()["best_round"] == 2, "which the runs killed in round 2 make anew"


def test_a_complete_run_is_not_resumed(whole):
    done = _csg("resume", whole.path, cwd=whole.path)
    assert done.returncode == 2
    assert "its 3 rounds are complete and csg report shows them" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_cleanly_with_a_checkpoint(demo, tmp_path, number):
    settings = ["--set", "train.rounds=200", "--set", "run.checkpoint_every=200"]
    process = subprocess.Popen(
        [sys.executable, "-m", "simulations.cli", *demo, *settings],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell that starts tests in the background has them ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    folder = RunFolder(tmp_path / "run")
    until = time.monotonic() + 180
    while len(folder.rows()) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in out + err
    last = folder.rows()[-1].round
    assert f"outcome: interrupted after round {last}" in out
    assert (folder.checkpoints / f"round-{last:06d}.safetensors").is_file()


def test_a_full_disk_ends_the_run_with_a_clear_line(demo, tmp_path):
    """A real full file system where one can be mounted, else a limit on the size of files."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=120k", "tmpfs", str(disk)],
            check=False,
            capture_output=True,
        ).returncode
    )
    command = [sys.executable, "-m", "simulations.cli", *demo[:-1], f"run.dir={disk}/run",
               "--set", "train.rounds=40"]  # fmt: skip
    limit = "" if mounted else "ulimit -f 20; "
    try:
        done = subprocess.run(
            ["bash", "-c", limit + " ".join(command)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1, done.stderr
        assert "cannot be written" in done.stderr
        for path in Path(disk / "run" / "checkpoints").glob("*.safetensors"):
            from server.checkpoints import read_checkpoint

            read_checkpoint(path)
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)
