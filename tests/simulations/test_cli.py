"""The command surface, as a user meets it: answers on stdout, mistakes in one line."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from csg_core import ModelSpec, build
from csg_core.evaluation import evaluate
from federation.sources import load_digits
from server.checkpoints import read_checkpoint, write_checkpoint
from simulations.cli import main
from simulations.processes import read, wait_until


def test_estimate_prints_the_costs_of_a_recipe(capsys):
    assert main(["estimate", "cifar10-resnet20", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["parameters"] == {
        "total": 115_426,
        "generator": 93_312,
        "codes": 19_656,
        "other": 2_458,
        "dense": 269_722,
    }
    one_way = 56 + 4 * (115_426 + 2 * 688)  # a header, and running means and variances as well
    assert (answer["payload_bytes_up"], answer["payload_bytes_down"]) == (one_way, one_way)
    assert answer["total_bytes"] == 20 * 10 * 2 * one_way
    assert answer["ratio_to_dense"] == pytest.approx(2.3209, abs=1e-4)


def test_bytes_are_compared_with_those_of_plain_fedavg(capsys):
    lossy = ["wire.deltas=true", "wire.uplink=ecsq", "wire.downlink=ecsq"]
    settings = [part for value in lossy for part in ("--set", value)]
    answers = []
    for arguments in (["cifar10-resnet20-dense"], ["cifar10-resnet20", *settings]):
        assert main(["estimate", *arguments, "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    plain, ours = answers
    assert plain["ratio_to_dense"] == 1
    assert ours["ratio_to_dense"] == pytest.approx(plain["total_bytes"] / ours["total_bytes"])
    assert ours["ratio_to_dense"] > 50


def test_a_command_starts_without_flowers_superlink():
    heavy = ("flwr.superlink", "sqlalchemy")
    found = f"[m for m in sys.modules if m.startswith({heavy})], 'torch' in sys.modules"
    code = f"import sys; from simulations import cli; cli._parser(); print({found})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] True\n", "it takes half as long again to start"


def test_estimate_says_which_dense_twin(capsys):
    assert main(["estimate", "cifar10-compressed-wide"]) == 0
    assert "dense twin (1.5 times the channels) 605,026\n" in capsys.readouterr().out


@pytest.mark.slow
def test_estimate_prints_one_thing(capsys):
    for options in (["demo", "--json"], ["--table"]):
        assert main(["estimate", "--toml", *options]) == 2
        assert "--toml prints a recipe; leave out --json and --table" in capsys.readouterr().err


def test_estimate_prints_the_papers_table(capsys):
    assert main(["estimate", "--table"]) == 0
    table = capsys.readouterr().out
    for count in ("269,722", "160,450", "1,542,682", "1,416,394", "11,689,512"):
        assert count in table


def test_evaluate_prints_accuracy_of_the_released_checkpoint(shared, capsys):
    checkpoint = shared / "reference" / "acl-resnet20-slice16-code72.t7"
    data = shared / "data" / "cifar10-original-train-first1000.parquet"
    assert main(["evaluate", str(checkpoint), "--data", str(data), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["accuracy"] >= 0.986
    assert answer["examples"] == 1000
    assert answer["loss"] < 0.1


@pytest.mark.slow
def test_train_then_compress_and_fine_tune(tmp_path, capsys):
    """A dense network is trained, its kernels fitted, and the generated network trained on."""
    dense, fitted = tmp_path / "dense.safetensors", tmp_path / "fitted.safetensors"
    common = ["--data", "digits", "--epochs", "3", "--batch-size", "64", "--json"]
    assert main(["train", "resnet20", "--width", "0.5", "--parametrization", "dense",
                 "--out", str(dense), *common]) == 0  # fmt: skip
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.8
    assert main(["train", "--fit-to", str(dense), "--slice-size", "8", "--code-size", "48",
                 "--lr", "0.01", "--out", str(fitted), *common]) == 0  # fmt: skip
    answer = json.loads(capsys.readouterr().out)
    assert answer["accuracy"] > 0.85
    assert answer["spec"]["width"] == 0.5
    frozen = ["--generator-from", str(fitted), "--generator", "frozen", "--width", "0.5"]
    assert main(["train", *frozen, *common]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] < answer["parameters"]
    for wrong, message in (
        (["resnet56"], f"name resnet56: {dense} has resnet20"),
        (["--width", "0.75"], f"width 0.75: {dense} has 0.5"),
        (["--parametrization", "dense"], "leave out dense"),
    ):
        assert main(["train", "--fit-to", str(dense), *wrong, *common]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
def test_kernels_of_another_size_are_generated_when_asked_for(capsys):
    of_digits = ["--data", "digits", "--epochs", "1", "--slice-size", "4", "--code-size", "4"]
    assert main(["train", "blazefl-cnn", "--kernel-size", "5", *of_digits, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["spec"]["kernel_size"] == 5
    assert answer["parameters"] < 62_006
    assert main(["train", "blazefl-cnn", *of_digits]) == 2
    assert "conv2 is 5 x 5; the generator makes 3 x 3" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("generator", ["learned", "frozen", "binary"])
@pytest.mark.parametrize("start", ["fan_in", "paper"])
def test_a_fitted_network_is_read_back_as_it_was_trained(tmp_path, capsys, generator, start):
    dense, fitted = tmp_path / "dense.safetensors", tmp_path / "fitted.safetensors"
    spec = ModelSpec(parametrization="dense", width=0.25, classes=10)
    write_checkpoint(dense, build(spec), spec)
    arguments = ["train", "--fit-to", str(dense), "--generator", generator, "--start", start,
                 "--slice-size", "4", "--code-size", "20", "--epochs", "1", "--out", str(fitted),
                 "--json"]  # fmt: skip
    assert main(arguments) == 0
    trained = json.loads(capsys.readouterr().out)["accuracy"]
    _, model = read_checkpoint(fitted)
    assert evaluate(model, load_digits(train=False)).accuracy == trained


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["estimate"], "RECIPE is missing; name one, as cifar10-resnet20"),
        (["estimate", "resnet20"], "recipe 'resnet20' is unknown; use one of bench-blazefl-cnn"),
        (["estimate", "a/b.toml"], "a/b.toml: no such file"),
        (["estimate", "./"], "./: is a folder; give a recipe's TOML file or its name"),
        (["estimate", "demo", "--set", "model.slice_size=0"], "slice size 0 is too small"),
        (["estimate", "demo", "--set", "model.slice_size=x"], "model.slice_size = 'x'"),
        (["estimate", "demo", "--set", "model.code_size=5000"], "code size 5000 is larger than"),
        (["estimate", "demo", "--set", "model.width=-1"], "width -1.0 cannot be"),
        (["run", "demo", "--set", "train.rounds=0"], "train.rounds = 0"),
        (["run", "demo", "--set", ".rounds=5"], "--set .rounds=5: give section.key=value"),
        (["run", "demo", "--set", "server.options.eta=1"], "nothing that fedavg takes"),
        (
            ["run", "demo", "--set", "run.client_app=nowhere:app"],
            "cannot be imported (ModuleNotFoundError: No module named 'nowhere'); give module:name",
        ),
        (
            ["run", "demo", "--set", "run.client_app=.x:app"],
            "'.x:app' cannot be imported",
        ),
        (["run", "cifar10-resnet20", "--set", "data.dir=nowhere"], "nowhere: no such folder"),
        (["run", "demo", "--set", "server.start_from=no.t7"], "no.t7: no such file; give a check"),
        (["resume", "nowhere"], "nowhere: holds no run (no config.toml)"),
        (["resume", sys.executable], "holds no run (no config.toml)"),
        (["compare", "nowhere"], "nowhere: holds no run"),
        (["report", "nowhere"], "nowhere: holds no run"),
        (["export", "nowhere"], "nowhere: holds no run"),
        (["evaluate", "nowhere.t7", "--data", "x"], "nowhere.t7: no such file"),
        (["train", "--data", "nowhere"], "nowhere: no such folder"),
        (["train", "--epochs", "0"], "epochs 0 is not a positive number"),
        (["train", "--device", "abacus"], "device 'abacus' cannot be used here"),
        (["train", "--fit-to", "nowhere"], "nowhere: no such file"),
        (["train", "--generator-from", "a", "--parametrization", "dense"], "has no use for a gen"),
        (["train", "--slice-size", "16", "--parametrization", "dense"], "slice_size 16 is of gene"),
        (["train", "--device", "meta"], "device 'meta' cannot be used here"),
        (["train", "--width", "inf"], "width inf cannot be; use a number up to 16"),
        (["train", "--seed", "-1"], "seed -1 is out of range; use 0 to 2**63 - 1"),
        (["train", "--momentum", "nan"], "momentum nan cannot be; use 0 or more"),
        (["train", "--momentum", "1"], "momentum 1.0 cannot be; use a number below 1"),
        (["train", "--out", "/dev/null/a"], "/dev/null/a: cannot be written"),
        (["train", "--out", "/"], "/: is a folder; name a file in it"),
    ],
)
def test_mistakes_get_one_line_and_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # run.client_app adds the folder to it
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    assert status == 2
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert not list(tmp_path.rglob("*")), "a mistake leaves nothing behind"


def test_an_interrupt_while_a_command_begins_is_one_line(tmp_path):
    """Imports take seconds, that of torch most of them."""
    heard = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    arguments = ["run", "demo", "--set", f"run.dir={tmp_path / 'run'}"]
    code = f"{heard}from simulations.cli import main; sys.exit(main({arguments}))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as started:
        try:
            wait_until(lambda: b"libtorch" in read(Path(f"/proc/{started.pid}/maps")), "no torch")
            started.send_signal(signal.SIGINT)
            _, said = started.communicate(timeout=60)
        finally:
            started.kill()
    assert (started.returncode, said) == (130, "csg: interrupted\n")


def test_a_command_in_the_background_is_not_interrupted_while_it_begins():
    """A shell has such commands ignore Ctrl-C, which is for the one in the foreground."""
    ignoring = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    code = ignoring + "from simulations.cli import main; sys.exit(main(['estimate', 'demo']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as started:
        try:
            wait_until(lambda: b"libtorch" in read(Path(f"/proc/{started.pid}/maps")), "no torch")
            started.send_signal(signal.SIGINT)
            assert started.wait(60) == 0
        finally:
            started.kill()


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["fly"], ["resume", "nowhere"]])
def test_a_command_gives_its_status_to_the_shell(arguments, tmp_path):
    command = [sys.executable, "-m", "simulations.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    "command", ["run", "resume", "estimate", "compare", "report", "export", "evaluate", "train"]
)
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"example: csg {command}" in capsys.readouterr().out


def test_training_that_diverges_says_so(capsys):
    assert main(["train", "--width", "0.25", "--epochs", "2", "--lr", "1e20"]) == 2
    assert "lower lr 1e+20" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_keeps_the_one_before(tmp_path):
    """A limit on file size stands for a full disk; the write itself is real."""
    path, spec = tmp_path / "a.safetensors", ModelSpec(width=0.25)
    write_checkpoint(path, build(spec), spec)
    before = path.read_bytes()
    train = f"{sys.executable} -m simulations.cli train --width 0.25 --epochs 1 --out {path}"
    command = ["bash", "-c", f"ulimit -f 100; {train}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{path}: cannot be written (File too large); a file that was there" in done.stderr
    assert done.stderr.count("\n") == 1
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_a_reader_that_stops_reading_is_no_error():
    command = (
        f"{sys.executable} -m simulations.cli estimate --table | head -1; exit ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("network")
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr
