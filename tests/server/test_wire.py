"""The kernel's own counters of an interface."""

import socket

import pytest

from federation.recipe import RecipeError
from server.wire import interface_bytes


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
    with pytest.raises(RecipeError, match=r"run.interface 'eth99' is not there; use one of .*lo"):
        interface_bytes("eth99")
