"""A SuperLink and SuperNodes in network namespaces, and what the kernel counts between them."""

import os
import shutil

import pytest

from simulations.studies import wire
from simulations.studies.network import Network

needs_namespaces = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("ethtool"),
    reason="network namespaces need root, iproute2 and ethtool, as in .ci/run",
)


@pytest.mark.slow
@needs_namespaces
def test_a_deployed_run_counts_more_than_its_payload(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("flwr", "ray"):
        (tmp_path / name).mkdir()
    tiny = ["model.name=resnet20", "model.width=0.25", "model.slice_size=4", "model.code_size=12",
            "train.precision=fp32", "wire.uplink=ecsq", "wire.downlink=ecsq",
            "wire.deltas=true"]  # fmt: skip
    with Network(wire.CLIENTS) as network:
        found = wire.ours(network, tmp_path, 3, tiny)
    for way in ("up", "down"):
        payload, measured = found[f"payload_{way}"], found[f"wire_{way}"]
        assert 200 < payload < 4 * 3_398 / 5
        assert payload + 1_000 < measured < payload + 60_000
    assert found["accuracy"] is not None


def test_the_table_is_made_from_the_results(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["wire", "--arms"])
    wire.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(wire.ARMS)
    readme = (wire.RESULTS.parents[2] / "README.md").read_text()
    assert all(line in readme for line in lines[3:]), "the README's table is of these results"
