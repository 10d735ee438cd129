"""A SuperNode: what it asks and how often, its signatures, and its end."""

import os
import subprocess
import sys
import time
from base64 import b64decode
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    PushObjectRequest,
)
from flwr.supercore.primitives.asymmetric import generate_key_pairs, verify_signature
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client import supernode
from client.supernode import FleetClient
from simulations.processes import free_port, wait_until
from tests.client.proxied import an_object, needs_nginx


@needs_nginx
def test_a_file_tells_when_the_server_answered_last(proxied, tmp_path, monkeypatch):
    heard = tmp_path / "heard"
    monkeypatch.setenv("CSG_HEARD", str(heard))
    with proxied.client() as client:
        with pytest.raises(httpx.HTTPStatusError, match="413"):
            client.PushObject(PushObjectRequest(object_content=bytes(7 << 20)))
        assert not heard.exists()
        client.SendNodeHeartbeat(SendNodeHeartbeatRequest())
        assert heard.exists()
        os.utime(heard, (0, 0))
        client.PullMessages(PullMessagesRequest())
    assert time.time() - heard.stat().st_mtime < 30


@needs_nginx
@pytest.mark.parametrize(
    ("status", "error"), [(500, httpx.TransportError), (401, httpx.HTTPStatusError)]
)
def test_a_servers_error_ends_no_heartbeats_but_of_who_is_turned_away(proxied, status, error):
    """Flower tries again after an error of transport, and ends its thread for good by another."""
    with proxied.client() as client:
        proxied.status = status
        with pytest.raises(error, match=str(status)):
            client.SendNodeHeartbeat(SendNodeHeartbeatRequest())
        with pytest.raises(httpx.HTTPStatusError, match=str(status)):
            client.PullMessages(PullMessagesRequest())
        proxied.status = 200
        assert client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success


@needs_nginx
def test_a_signature_is_used_until_it_is_old(proxied, monkeypatch):
    private, public = generate_key_pairs()
    with proxied.client(NodeAuthHttpInterceptor(private, public)) as client:
        for _ in range(3):
            client.PullMessages(PullMessagesRequest())
        assert client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success
        monkeypatch.setattr(supernode, "_SIGNED_S", 0.0)
        client.PullMessages(PullMessagesRequest())
        monkeypatch.setattr(supernode, "_SIGNED_S", 60.0)
        client.PullMessages(PullMessagesRequest())
        in_past = time.time() - 3600
        monkeypatch.setattr(supernode.time, "time", lambda: in_past)
        client.PullMessages(PullMessagesRequest())
        client.PushObject(an_object(1 << 17))
    first, *_ = proxied.signatures
    assert proxied.signatures[:4] == [first] * 4
    later = proxied.signatures[4]
    assert proxied.signatures[5] == later != first
    assert proxied.signatures[6] != later, "the clock was set"
    assert proxied.signatures[7] != proxied.signatures[6], "a large one's is looked at late"
    for stamp, signature in proxied.signatures:
        assert verify_signature(public, stamp.encode(), b64decode(signature))


def test_who_waits_long_asks_less_often_and_is_late_by_a_quarter(monkeypatch):
    now, asked = 0.0, []

    class Clock:
        @staticmethod
        def monotonic() -> float:
            return now

        @staticmethod
        def sleep(seconds: float) -> None:
            nonlocal now
            now += seconds

    answers = {"fail": False}

    def exchange(self, *, path, response_type, **_):
        if answers["fail"]:
            raise httpx.ConnectError("gone")
        asked.append(now)
        found = now > 600 and "pull" in path
        return response_type(messages_list=[{}]) if found else response_type()

    monkeypatch.setattr(supernode, "time", Clock)
    monkeypatch.setattr(FleetHttpClient, "_unary_unary", exchange)
    with FleetClient.from_server_address("localhost:1", True, None, []) as client:
        while not client.PullMessages(PullMessagesRequest()).messages_list:
            Clock.sleep(3)  # as Flower's loop does
        assert asked[:4] == [0, 3, 6, 9]
        assert now < 616
        assert len(asked) < 50, "of 200"
        assert all(
            later == pytest.approx(earlier + min(max(3, earlier / 4), 15))
            for earlier, later in pairwise(asked)
        )
        began = now = now + 500  # it trains
        client.PushMessages(PushMessagesRequest())
        asked.clear()
        client.PullMessages(PullMessagesRequest())
        assert asked == [began]

        now += 500
        answers["fail"] = True
        with pytest.raises(httpx.ConnectError):
            client.PullMessages(PullMessagesRequest())
        answers["fail"], before = False, now
        client.PullMessages(PullMessagesRequest())
        assert now == before, "a server that comes back is asked at once"


def test_a_supernode_that_cannot_begin_ends(tmp_path):
    """Threads of Flower's would keep it up."""
    (tmp_path / "ca.crt").write_text("none")
    port = free_port()
    command = [sys.executable, "-m", "client.supernode", "--superlink", "127.0.0.1:1",
               "--root-certificates", str(tmp_path / "ca.crt"), "--port", str(port)]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "FLWR_HOME": str(tmp_path)}
    with (tmp_path / "log").open("w+") as log:  # which its child may hold for longer
        ended = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=90)
        said = (tmp_path / "log").read_text()
    assert ended.returncode == 1
    assert "the SuperNode failed" in said
    assert "the SuperNode has ended; start it again" in said


@pytest.mark.slow
@needs_nginx
def test_a_supernode_that_is_turned_away_says_so_and_fails(proxied, tmp_path):
    """With status 0, a restart policy of failures would leave it, and nobody would see why."""
    keys = tmp_path / "keys"
    command = [sys.executable, "-m", "client.supernode",
               "--superlink", f"127.0.0.1:{proxied.port}",
               "--root-certificates", str(keys / "proxy" / "ca.crt"),
               "--auth-supernode-private-key", str(keys / "clients" / "client-0" / "key"),
               "--node-config", "partition-id=0", "--port", str(free_port())]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "FLWR_HOME": str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        running = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_until(lambda: proxied.served["pull-messages"] > 0, "it does not poll", 90)
        proxied.status = 401
        assert running.wait(60) == 1
    finally:
        running.kill()
        running.wait()
    assert "the server turns this client away: its key is" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("value", ["2", "16", "soon", "nan"])
def test_pauses_that_cannot_be_are_refused(value):
    command = [sys.executable, "-m", "client.supernode", "--insecure"]
    environment = {**os.environ, "CSG_POLL_SECONDS": value}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        f"CSG_POLL_SECONDS={value}: give 3 to 15, seconds between two polls at most"
    ]


def test_a_supernode_that_loses_its_connection_ends(monkeypatch):
    """Flower's own stays up then, and no restart policy helps it."""
    ended = []
    monkeypatch.setattr(fleet_http_connection, "FleetHttpClient", FleetHttpClient)
    monkeypatch.setattr(supernode, "flower_supernode", lambda: None)
    monkeypatch.setattr(os, "_exit", ended.append)
    supernode.main()
    assert ended == [1]
    assert fleet_http_connection.FleetHttpClient is FleetClient
