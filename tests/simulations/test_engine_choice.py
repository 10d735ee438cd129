"""What an engine needs is asked for before a run begins, and what it would ignore is refused."""

import sys
import time

import pytest

from federation.recipe import RecipeError
from server import flower_cli
from server.record import RunFolder
from simulations.cli import main
from simulations.run import check_engine, deployed

WITHOUT_RAY = "which is not installed; install the extra csg-fl[ray], or set run.engine=local\n"


@pytest.fixture
def without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)


@pytest.mark.usefixtures("without_ray")
def test_a_simulation_without_ray_is_refused_before_anything_is_made(
    tmp_path, tiny, tiny_settings, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "demo", *tiny_settings, "--set", "run.engine=flower"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("csg run: run.engine 'flower' ")
    assert said.endswith(WITHOUT_RAY)
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())
    RunFolder(tmp_path / "run").create(tiny(run={"engine": "flower"}), {}, [])
    assert main(["resume", "run"]) == 2
    assert capsys.readouterr().err.endswith(WITHOUT_RAY)
    assert not RunFolder(tmp_path / "run").log.exists()


@pytest.mark.usefixtures("without_ray")
def test_the_other_engines_do_without_ray(tiny):
    check_engine(tiny())
    check_engine(tiny(run={"engine": "flower", "superlink": "127.0.0.1:8000"}))


def test_a_certificate_that_is_not_there_is_named_before_the_run_begins(
    tiny_settings, tmp_path, capsys
):
    settings = ["run.engine=flower", "run.superlink=127.0.0.1:9", "run.superlink_ca=nosuch.crt",
                f"run.dir={tmp_path / 'run'}"]  # fmt: skip
    more = [part for value in settings for part in ("--set", value)]
    assert main(["run", "demo", *tiny_settings, *more]) == 2
    assert "nosuch.crt: no such file; name the certificate" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_command_of_flowers_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(flower_cli.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(flower_cli.os, "defpath", str(tmp_path))
    with pytest.raises(flower_cli.EngineError) as caught:
        flower_cli.script("flower-superlink")
    wanted = f"flower-superlink is not in {tmp_path}; install csg-fl there with its dependencies"
    assert str(caught.value) == wanted


@pytest.mark.slow
def test_a_superlink_that_is_away_is_waited_for_and_named(tmp_path, tiny_settings, capsys):
    settings = ["run.engine=flower", "run.superlink=127.0.0.1:9", "run.patience=5",
                "run.interface=none", f"run.dir={tmp_path / 'run'}"]  # fmt: skip
    more = [part for value in settings for part in ("--set", value)]
    began = time.monotonic()
    assert main(["run", "demo", *tiny_settings, *more]) == 1
    assert time.monotonic() - began > 5
    said = capsys.readouterr().err
    assert "the SuperLink 127.0.0.1:9 does not answer within 5 s (run.patience)" in said
    assert f"; start it, then csg resume {tmp_path / 'run'}" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("values", [{"workers": 4}, {"client_cpus": 2}, {"client_gpus": 1}])
def test_settings_of_this_machine_are_refused_where_clients_are_elsewhere(
    values, tiny, monkeypatch
):
    recipe = tiny(run=values)
    assert deployed(recipe) is recipe
    monkeypatch.setenv("CSG_SUPERLINK", "127.0.0.1:8000")
    ((key, value),) = values.items()
    wanted = (
        rf"^\$CSG_SUPERLINK: run.{key} {value} .* run.superlink '127.0.0.1:8000'; leave it out$"
    )
    with pytest.raises(RecipeError, match=wanted):
        deployed(recipe)
    assert deployed(tiny()).run.superlink == "127.0.0.1:8000"


def test_workers_are_refused_on_the_command_line_too(tmp_path, tiny_settings, monkeypatch, capsys):
    monkeypatch.setenv("CSG_SUPERLINK", "127.0.0.1:1")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "demo", *tiny_settings, "--set", "run.workers=4"]) == 2
    assert capsys.readouterr().err.startswith("csg run: $CSG_SUPERLINK: run.workers 4 ")
    assert not list(tmp_path.iterdir())
