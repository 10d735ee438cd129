"""A SuperLink and SuperNodes in network namespaces, and what the kernel counts between them."""

import os
import shutil

import pytest

from simulations.command import StudyError
from simulations.studies import wire
from simulations.studies.wire import Arm
from simulations.studies.wire_tables import PAGE

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("ethtool"),
    reason="network namespaces need root, iproute2 and ethtool, as in .ci/run",
)
TINY = ["model.name=resnet20", "model.width=0.25", "model.slice_size=4", "model.code_size=12",
        "train.precision=fp32", "wire.uplink=ecsq", "wire.downlink=ecsq",
        "wire.deltas=true"]  # fmt: skip


@pytest.mark.slow
@needs_namespaces
def test_server_and_clients_count_the_same_and_more_than_the_payload(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = wire.measure(Arm(TINY), 4, None)
    for way in ("up", "down"):
        payload, measured = found[f"payload_{way}"], found[f"wire_{way}"]
        assert 200 < payload < 4 * 3_398 / 5
        assert payload + 1_000 < measured < payload + 60_000
        # a client's rounds begin and end at other moments, with other polls in them
        assert found[f"client_wire_{way}"] == pytest.approx(measured, rel=0.25, abs=4_000)
    assert found["accuracy"] is not None
    requests, seconds = found["round"]["requests"], found["round"]["seconds"]
    questions = requests["push-messages"]["count"] - 1  # a slow round's: message and records each
    assert requests["push-object"]["count"] == pytest.approx(3 + 2 * questions), (
        "message, records and the one record"
    )
    assert requests["push-object"]["body"] > found["payload_up"]
    traced = sum(row["up"] for row in requests.values())
    assert traced == pytest.approx(found["client_wire_up"], rel=0.25, abs=4_000)
    assert all(part >= 0 for part in seconds.values())


@pytest.mark.parametrize("link", [[], ["--link", "1mbit"]])
def test_the_page_shows_the_results(monkeypatch, capsys, tmp_path, link):
    page = tmp_path / "wire.md"
    shutil.copy(PAGE, page)
    monkeypatch.setattr(wire, "PAGE", page)
    monkeypatch.setattr("sys.argv", ["wire", *link, "--arms"])
    wire.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    shown = {line.split("|")[1].strip() for line in lines}
    assert shown >= {"plain Flower", "csg s=12 d=72"}
    assert page.read_text() == PAGE.read_text(), "docs/wire.md holds the tables of these results"
    assert all(line in page.read_text() for line in lines)


def test_a_result_of_other_settings_is_not_shown_as_this_arms(monkeypatch):
    monkeypatch.setitem(wire.ARMS, "dense", Arm(["model.width=2"]))
    monkeypatch.setattr("sys.argv", ["wire", "--arms"])
    monkeypatch.setattr(wire, "fill", lambda *_: pytest.fail("it was shown"))
    with pytest.raises(StudyError, match="has 'dense' of other settings; measure it with --arms"):
        wire.main()
