"""Bytes on the wire between two moments, at the server and at clients."""

from dataclasses import replace

import pytest

from federation.interface import Interface
from federation.recipe import RecipeError
from server.wire import ClientBytes, ClientCounters, crossed, server_interface

FIRST = Interface(name="eth0", shared=False, received=1000, sent=100)


def test_a_nodes_bytes_are_differences_of_its_successive_reports():
    counters, found = ClientCounters(), []
    second = replace(FIRST, received=1500, sent=700)
    restarted = replace(FIRST, received=20, sent=800)
    for node, now in ((7, FIRST), (8, FIRST), (7, second), (7, restarted), (7, None), (7, second)):
        found.append(ClientBytes(payload_bytes_up=5))
        counters.note(node, now, found[-1])
    ways = [(one.wire_bytes_up, one.wire_bytes_down) for one in found]
    assert ways == [
        (None, None),
        (None, None),
        (600, 500),
        (None, None),
        (None, None),
        (None, None),
    ]
    assert [one.interface for one in found] == ["eth0"] * 4 + [None, "eth0"]
    assert found[2].interface_shared is False
    assert found[4].interface_shared is None


def test_another_interface_is_not_subtracted():
    assert crossed(FIRST, replace(FIRST, name="eth1", received=9999, sent=9999)) == (None, None)


def test_the_servers_interface_is_auto_in_a_deployment_only(tiny):
    assert server_interface(tiny()) is None
    assert server_interface(tiny(run={"interface": "lo"})).name == "lo"
    deployed = {"interface": "none", "superlink": "x:1", "engine": "flower"}
    assert server_interface(tiny(run=deployed)) is None
    with pytest.raises(RecipeError, match=r"run.interface 'eth99' is not there; use auto, none"):
        server_interface(tiny(run={"interface": "eth99"}))
