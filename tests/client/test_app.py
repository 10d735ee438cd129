"""The ClientApp around local training."""

from types import SimpleNamespace

from client.app import _interface


def test_a_client_whose_interface_has_gone_counts_nothing_and_goes_on(tiny, caplog):
    """Docker gives a container that is connected to its network again an eth1 for its eth0."""
    recipe = tiny(run={"engine": "flower", "superlink": "127.0.0.1:8000"})
    gone = SimpleNamespace(node_config={"interface": "gone0"})
    assert _interface(recipe, gone) is None
    assert "interface 'gone0' is not there" in caplog.text
    there = SimpleNamespace(node_config={"interface": "lo"})
    assert _interface(recipe, there).name == "lo"
