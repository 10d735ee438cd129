"""The compose project as an engineer brings it up: images, TLS, keys, runs, cuts and restarts.

Run by ``make deploy-test``, which brings a Docker engine where there is none.
"""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from deployment import DOCKER, HOST, USER, docker

pytestmark = pytest.mark.containers

TINY = ["data.clients=2", "model.width=0.25", "model.slice_size=4", "model.code_size=12",
        "train.precision=fp32", "train.batch_size=32"]  # fmt: skip


def csg(command, *settings):
    values = [part for value in settings for part in ("--set", value)]
    return ["csg", *command, *values]


def test_compose_files_are_valid_and_dockerfile_and_scripts_are_clean(project):
    project.compose("config", "--quiet")
    project.settings["CSG_KEY"] = "/nowhere"
    project.compose("--file", "compose.client.yml", "config", "--quiet")
    scripts = [*DOCKER.glob("*.sh"), *Path(__file__).parent.glob("*.sh")]
    for command in (["hadolint", DOCKER / "Dockerfile"], ["shellcheck", *scripts]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("service", ["server", "proxy", "client"])
def test_a_container_can_do_little(project, service):
    assert project.inside(service, "id", "-u") == (0, f"{USER}\n")
    for folder in ("opt", "usr", "keys", "etc"):  # of the container
        status, said = project.inside(service, "touch", f"/{folder}/x")
        assert status != 0
        assert "Read-only file system" in said or "Permission denied" in said
    status, said = project.inside(
        service, "grep", "-E", "^(CapEff|NoNewPrivs)", "/proc/self/status"
    )
    assert re.search(r"CapEff:\s*0+\n", said)
    assert re.search(r"NoNewPrivs:\s*1\n", said)
    _, found = docker("inspect", f"{project.name}-{service}-1")
    limits = json.loads(found)[0]["HostConfig"]
    assert limits["ReadonlyRootfs"]
    assert limits["Memory"] > 0
    assert limits["NanoCpus"] > 0
    assert limits["PidsLimit"] > 0


@pytest.mark.parametrize("service", ["server", "client"])
def test_an_image_holds_what_it_needs_and_the_versions_that_are_tested(project, service):
    listing = (
        "import importlib.metadata as m, importlib.util as u, json, shutil;"
        "print(json.dumps([{d.name: d.version for d in m.distributions()},"
        "[n for n in ('torchvision', 'ray', 'pytest', 'hypothesis', 'server', 'simulations')"
        " if u.find_spec(n)], [c for c in ('gcc', 'cc', 'make', 'uv', 'git') if shutil.which(c)]]))"
    )
    status, said = project.inside(service, "python", "-c", listing)
    assert status == 0, said
    versions, packages, tools = json.loads(said)
    assert packages == (["server", "simulations"] if service == "server" else [])
    assert tools == []
    pinned = dict(
        line.lower().replace("_", "-").split("==")
        for line in (DOCKER.parent / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    for name, version in versions.items():
        name = name.lower().replace("_", "-")
        if name in pinned:  # those of the base image's own Python are not
            assert version.partition("+")[0] == pinned[name], name
    assert "cuda" not in versions["torch"]


def test_a_folder_that_is_not_there_is_named_and_not_made(project):
    there = project.settings["CSG_DATA"]
    project.settings["CSG_DATA"] = missing = f"{there}-not"
    try:
        said = project.compose("run", "--rm", "--no-deps", "client", check=False)
    finally:
        project.settings["CSG_DATA"] = there
    assert missing in said
    assert not Path(missing).exists()


def test_threads_are_as_many_as_whole_processors(project):
    for service, threads in (("server", "2"), ("client", "1")):
        look = "grep -hz ^OMP_NUM_THREADS= /proc/[0-9]*/environ 2> /dev/null | tr '\\0' '\\n'"
        _, said = project.inside(service, "sh", "-c", look)
        assert set(said.split()) == {f"OMP_NUM_THREADS={threads}"}


def test_data_is_read_only_for_clients(project):
    status, said = project.inside("client", "touch", "/data/x")
    assert status != 0
    assert "Read-only file system" in said


PROBE = """
import socket, ssl, sys, urllib.error, urllib.request
context = ssl.create_default_context(cafile=sys.argv[1])
for path in sys.argv[3:]:
    request = urllib.request.Request(f"https://{sys.argv[2]}:8443{path}", data=b"")
    request.add_header("Content-Type", "application/protobuf")
    try:
        print(path, urllib.request.urlopen(request, context=context, timeout=10).status)
    except urllib.error.HTTPError as error:
        print(path, error.code)
"""


def test_clients_reach_the_fleet_api_and_nothing_else(project):
    control = ["/v1/control/list-runs", "/v1/control/start-run", "/v1/runtime/acquire-task",
               "/v1/fleet/../control/list-runs", "/v1/fleet/%2e%2e/control/list-runs", "/docs",
               "/openapi.json", "/"]  # fmt: skip
    status, said = project.inside(
        "client", "python", "-c", PROBE, "/keys/client-0/ca.crt", HOST, *control
    )
    assert status == 0, said
    assert [line.split()[1] for line in said.splitlines()] == ["404"] * len(control)
    status, said = project.inside(
        "client", "python", "-c", PROBE, "/keys/client-0/ca.crt", HOST, "/v1/fleet/activate-node"
    )
    assert said.split()[1] == "401"  # the SuperLink's answer to one without a key

    address = json.loads(docker("inspect", f"{project.name}-server-1")[1])[0]["NetworkSettings"]
    inside = address["Networks"][f"{project.name}_inside"]["IPAddress"]
    for host in ("server", inside):
        reach = f"import socket; socket.create_connection(({host!r}, 8000), timeout=5)"
        status, said = project.inside("client", "python", "-c", reach)
        assert status != 0
        assert any(
            why in said for why in ("Name or service", "timed out", "unreachable", "name res")
        )


def test_the_proxys_certificate_is_the_authoritys_and_of_its_name(project):
    for name, good in ((HOST, True), ("proxy", False)):
        status, said = project.inside(
            "client", "python", "-c", PROBE, "/keys/client-0/ca.crt", name, "/"
        )
        assert (status == 0) is good, said
        assert good or "certificate is not valid for 'proxy'" in said, said


def test_a_run_goes_to_its_end_and_its_folder_is_on_the_host(project):
    said = project.compose(
        "exec", "-T", "server",
        *csg(["run", "cifar10-resnet20"], *TINY, "train.rounds=3", "run.dir=runs/whole"),
    )  # fmt: skip
    assert "outcome: completed" in said
    folder = project.runs / "whole"
    assert {"config.toml", "environment.json", "rounds.jsonl", "summary.json", "report.html"} <= {
        path.name for path in folder.iterdir()
    }
    assert all(path.stat().st_uid == USER for path in folder.rglob("*"))
    rows = project.rows("whole")
    assert [row["clients"] for row in rows] == [2, 2, 2]
    assert [row["failures"] for row in rows] == [0, 0, 0]
    for row in rows[1:]:
        for way in ("up", "down"):
            assert row[f"wire_bytes_{way}"] > row[f"payload_bytes_{way}"] > 0
    report = [".venv/bin/csg", "report", str(folder), "--json"]
    done = subprocess.run(
        report, cwd=DOCKER.parent, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_a_client_is_cut_off_and_comes_back(project):
    process = project.start(
        *csg(["run", "cifar10-resnet20"], *TINY, "train.rounds=9", "server.min_clients=1",
             "run.dir=runs/cut")
    )  # fmt: skip
    network, container = f"{project.name}_outside", f"{project.name}-client-2"
    project.wait_for_rows("cut", 1)
    assert docker("network", "disconnect", network, container)[0] == 0
    time.sleep(10)
    assert docker("network", "connect", network, container)[0] == 0
    said, _ = process.communicate(timeout=420)
    assert process.returncode == 0, said
    rows = project.rows("cut")
    assert [row["round"] for row in rows] == list(range(1, 10))
    assert all(1 <= row["clients"] <= 2 for row in rows)
    assert rows[-1]["clients"] == 2, "it is back"


def test_a_stranger_is_turned_away_and_the_run_goes_on(project):
    project.compose("run", "--rm", "--no-deps", "keys", "add", "stranger")
    process = project.start(
        *csg(["run", "cifar10-resnet20"], *TINY, "train.rounds=3", "run.dir=runs/stranger")
    )
    said = project.compose(
        "run", "--rm", "--no-deps",
        "--volume", f"{project.folder}/keys/clients/stranger:/keys:ro",
        "client",
        check=False,
    )  # fmt: skip
    assert "Failed to activate SuperNode" in said
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert [row["clients"] for row in project.rows("stranger")] == [2, 2, 2]


def _begun(project, name):
    """A run of which two rounds are recorded and no checkpoint is due."""
    process = project.start(
        *csg(["run", "cifar10-resnet20"], *TINY, "train.rounds=9", "run.checkpoint_every=9",
             f"run.dir=runs/{name}")
    )  # fmt: skip
    project.wait_for_rows(name, 2)
    return process


def _resumed(project, name, before):
    """The run goes to its end, after all rounds that were there ``before``."""
    project.compose("up", "--detach", "--wait")
    said = project.compose("exec", "-T", "server", "csg", "resume", f"runs/{name}")
    assert "outcome: completed" in said
    rows = project.rows(name)
    assert [row["round"] for row in rows] == list(range(1, 10))
    assert rows[: len(before)] == before, "all of it was saved"


def test_the_whole_project_is_stopped_started_and_the_run_resumed(project):
    process = _begun(project, "stopped")
    project.compose("stop")
    process.communicate(timeout=60)
    _resumed(project, "stopped", project.rows("stopped"))


def test_a_server_that_is_told_to_end_saves_its_run(project):
    process = _begun(project, "told")
    project.compose("stop", "server")
    _, found = docker("inspect", f"{project.name}-server-1")
    assert json.loads(found)[0]["State"]["ExitCode"] == 143, "it ended by itself"
    process.communicate(timeout=60)
    before = project.rows("told")
    summary = json.loads((project.runs / "told" / "summary.json").read_text())
    assert summary["outcome"] == f"interrupted after round {len(before)}"
    _resumed(project, "told", before)


def test_a_client_alone_on_another_host(project, tmp_path):
    """By compose.client.yml and the published port, with the folder of its key and nothing else."""
    project.compose("run", "--rm", "keys", "add", "hospital-a")
    project.compose("run", "--rm", "keys", "register", "hospital-a")
    key = project.folder / "keys" / "clients" / "hospital-a"
    alone = {**project.settings, "CSG_KEY": str(key)}
    names = tmp_path / "names.yml"  # in place of DNS
    names.write_text(
        f"services: {{client: {{extra_hosts: [{project.settings['CSG_HOST']}:host-gateway]}}}}"
    )
    command = ["docker", "compose", "--project-name", f"{project.name}-alone"]
    command += ["--file", "compose.client.yml", "--file", str(names)]

    def alone_do(*arguments):
        done = subprocess.run(
            [*command, *arguments], cwd=DOCKER, env={**os.environ, **alone},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        alone_do("up", "--detach", "--wait")
        said = project.compose(
            "exec", "-T", "server",
            *csg(["run", "cifar10-resnet20"], *TINY, "data.clients=4", "train.rounds=2",
                 "train.clients_per_round=3", "server.min_clients=3", "run.dir=runs/alone"),
        )  # fmt: skip
        assert "outcome: completed" in said
        partitions = {
            of["partition"] for row in project.rows("alone") for of in row["contributions"]
        }
        known = json.loads((project.folder / "keys" / "clients.json").read_text())
        assert partitions == {0, 1, known["hospital-a"]["partition"]}
    finally:
        alone_do("down", "--volumes", "--timeout", "5")


def _health(container):
    return json.loads(docker("inspect", container)[1])[0]["State"]["Health"]["Status"]


def _await_health(container, health):
    until = time.monotonic() + 240
    while _health(container) != health:
        assert time.monotonic() < until, f"{container} is not {health}"
        time.sleep(2)


def test_a_client_is_healthy_only_if_the_server_answers_it(project):
    container = f"{project.name}-client-1"
    assert _health(container) == "healthy"
    network = f"{project.name}_outside"
    assert docker("network", "disconnect", network, container)[0] == 0
    _await_health(container, "unhealthy")
    assert docker("network", "connect", network, container)[0] == 0
    _await_health(container, "healthy")


def test_a_key_of_another_user_is_named(project, tmp_path):
    place = tmp_path / "key"
    place.mkdir(mode=0o700)
    (place / "key").write_text("x")
    os.chown(place, USER + 1, USER + 1)
    said = project.compose(
        "run", "--rm", "--no-deps", "--volume", f"{place}:/keys:ro", "client", check=False
    )
    assert f"/keys is not open to user {USER}; set CSG_UID" in said


def test_a_revoked_client_is_turned_away_and_the_run_goes_on(project):
    """The last of this file: client-1 does not come back."""
    process = project.start(
        *csg(["run", "cifar10-resnet20"], *TINY, "train.rounds=12", "server.min_clients=1",
             "run.dir=runs/revoked")
    )  # fmt: skip
    project.wait_for_rows("revoked", 2)
    project.compose("run", "--rm", "keys", "revoke", "client-1")
    said, _ = process.communicate(timeout=630)  # of 12 rounds
    assert process.returncode == 0, said
    rows = project.rows("revoked")
    assert len(rows) == 12
    assert rows[-1]["clients"] == 1
    assert {of["partition"] for of in rows[-1]["contributions"]} == {0}
    listed = project.compose("run", "--rm", "keys", "list")
    assert re.search(r"client-1 +partition 1 +revoked", listed)
