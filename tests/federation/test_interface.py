"""The kernel's own counters of an interface."""

import socket

import pytest

from federation import interface
from federation.interface import Interface, InterfaceError, interface_bytes

ROUTES = """\
Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT
br0\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth7\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
"""
ROUTES6 = """\
{0} 00 {0} 00 {0} ffffffff 00000001 00000000 00200200       lo
{0} 00 {0} 00 fe800000000000000000000000000001 00000400 00000002 00000000 00000003     eth6
""".format("0" * 32)
COUNTERS = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo: 10 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0
  sit0: 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
  eth3: 300 1 0 0 0 0 0 0 400 1 0 0 0 0 0 0
"""


def test_what_crosses_an_interface_is_counted():
    before = interface_bytes("lo")
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname()) as client:
        peer, _ = server.accept()
        with peer:
            client.sendall(bytes(100_000))
            client.shutdown(socket.SHUT_WR)
            while peer.recv(65536):
                pass
    received, sent = (now - then for now, then in zip(interface_bytes("lo"), before, strict=True))
    assert received == pytest.approx(sent, rel=0.5)
    assert received > 100_000


def test_an_interface_that_is_not_there_is_named():
    with pytest.raises(InterfaceError, match=r"'eth99' is not there; use auto, none or .*lo"):
        Interface.named("eth99")
    assert Interface.named("none") is None


def test_an_interface_that_is_no_containers_own_is_shared():
    assert Interface.named("lo").shared


@pytest.mark.parametrize(
    ("routes", "routes6", "found"),
    [(ROUTES, ROUTES6, "eth7"), ("Iface\n", ROUTES6, "eth6"), ("Iface\n", "", "eth3")],
)
def test_auto_is_the_interface_that_leads_out(tmp_path, monkeypatch, routes, routes6, found):
    for name, content in (("_ROUTES", routes), ("_ROUTES6", routes6), ("_COUNTERS", COUNTERS)):
        path = tmp_path / name
        path.write_text(content)
        monkeypatch.setattr(interface, name, path)
    assert interface._leading_out() == found


def test_auto_is_none_where_nothing_leads_out(tmp_path, monkeypatch):
    for name in ("_ROUTES", "_ROUTES6", "_COUNTERS"):
        monkeypatch.setattr(interface, name, tmp_path / "nothing")
    assert Interface.named("auto") is None
