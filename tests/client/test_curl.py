"""Requests by libcurl: their connections, through nginx over TLS, with a server behind it."""

import hashlib
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import certifi
import httpx
import pycurl
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
)
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client import curl
from client.supernode import FleetClient
from simulations.processes import wait_until
from tests.client.proxied import KEYS, Relay, an_object, changed, needs_nginx


@needs_nginx
def test_many_threads_at_once_over_few_connections(proxied):
    with proxied.client() as client, ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(client.PullMessages, PullMessagesRequest()) for _ in range(100)]
        jobs += [threads.submit(client.PushObject, an_object(1 << 18)) for _ in range(20)]
        beats = [threads.submit(client.SendNodeHeartbeat, SendNodeHeartbeatRequest())
                 for _ in range(20)]  # fmt: skip
        assert all(job.result().success for job in beats)
        assert [job.result() for job in jobs[:100]]
        assert all(job.result().stored for job in jobs[100:])
    wait_until(lambda: len(proxied.requests()) == 140, "not all requests are in the log")
    rows = proxied.requests()
    assert {(protocol, status) for _, protocol, status, _ in rows} == {("HTTP/2.0", "200")}
    assert len({number for number, *_ in rows}) <= 4


@needs_nginx
def test_no_upload_holds_up_a_heartbeat(proxied):
    proxied.free.clear()
    with proxied.client() as client, ThreadPoolExecutor(1) as threads:
        push = threads.submit(client.PushObject, an_object(1 << 18))
        assert proxied.pushing.wait(10)
        assert client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success
        assert not push.done()
        proxied.free.set()
        assert push.result().stored


@needs_nginx
def test_the_largest_piece_arrives_whole(proxied):
    piece = an_object(5 << 20)  # more than HTTP/2's windows: the server's word is waited for
    with proxied.client() as client:
        assert client.PushObject(piece).stored
    assert proxied.digests == [hashlib.sha256(piece.object_content).hexdigest()]


@needs_nginx
def test_what_the_proxy_refuses_is_refused_at_once(proxied):
    with proxied.client() as client:
        began = time.monotonic()
        with pytest.raises(httpx.HTTPStatusError, match="413"):
            client.PushObject(PushObjectRequest(object_content=bytes(7 << 20)))
        assert time.monotonic() - began < 5
        assert client.PushObject(an_object(256)).stored


@needs_nginx
@changed(keepalive_requests="5")
def test_a_connection_that_has_served_its_time_is_followed_by_another(proxied):
    with proxied.client() as client:
        for _ in range(30):
            client.PullMessages(PullMessagesRequest())
    assert proxied.served == {"pull-messages": 30}
    assert 6 <= len({number for number, *_ in proxied.requests()}) <= 12


@pytest.mark.slow
@needs_nginx
@changed(keepalive_time="1s")
def test_so_is_one_that_has_lived_long(proxied):
    with proxied.client() as client:
        for _ in range(12):
            time.sleep(0.3)
            client.PullMessages(PullMessagesRequest())
    assert proxied.served == {"pull-messages": 12}
    assert len({number for number, *_ in proxied.requests()}) > 1


@needs_nginx
def test_a_proxy_that_was_started_again_is_asked_over_a_new_connection(proxied):
    with proxied.client() as client:
        client.PullMessages(PullMessagesRequest())
        proxied.nginx.terminate()
        proxied.nginx.wait()
        proxied.start()
        time.sleep(2)  # polls are 3 s apart
        client.PullMessages(PullMessagesRequest())
    assert proxied.served == {"pull-messages": 2}


@needs_nginx
@changed(listen="8443 ssl")
def test_a_server_of_http_1_is_spoken_to(proxied):
    with proxied.client() as client:
        assert client.PushObject(an_object(5 << 20)).stored
        assert client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success
    assert {protocol for _, protocol, _, _ in proxied.requests()} == {"HTTP/1.1"}


@pytest.mark.slow
@needs_nginx
def test_a_connection_outlasts_the_pause_between_heartbeats(proxied):
    with proxied.client() as client:
        for pause in (0, 6):  # httpx's own would be closed after 5 s
            time.sleep(pause)
            assert client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success
    assert len({number for number, *_ in proxied.requests()}) == 1


@needs_nginx
def test_a_server_that_cannot_be_had_is_named_so_that_flower_knows_what_to_do(proxied, tmp_path):
    other = tmp_path / "other"
    make = ["make", "--host", "127.0.0.1", "--clients", "1"]
    subprocess.run([sys.executable, str(KEYS), "--dir", str(other), *make], check=True)
    place = f"127.0.0.1:{proxied.port}"
    stranger = FleetClient.from_server_address(place, False, str(other / "proxy" / "ca.crt"), [])
    with stranger, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        stranger.PullMessages(PullMessagesRequest())
    trusted = (proxied.folder / "keys" / "proxy" / "ca.crt").read_bytes()
    with FleetClient.from_server_address(place, False, trusted, []) as client:
        client.PullMessages(PullMessagesRequest())
        proxied.nginx.terminate()
        proxied.nginx.wait()
        for expected in ((httpx.RemoteProtocolError, httpx.ConnectError), httpx.ConnectError):
            with pytest.raises(expected) as refused:  # both are tried again
                client.PullMessages(PullMessagesRequest())
            assert not re.search("certificate|ssl|tls", str(refused.value), re.I), "unless"


@needs_nginx
def test_a_poll_takes_few_bytes(proxied):
    """No signature but now and then, and no frames of HTTP/2 by which the client makes room."""
    relay = Relay(proxied.port)
    proxied.port = relay.port
    with proxied.client(NodeAuthHttpInterceptor(*generate_key_pairs())) as client:
        for _ in range(5):
            client.PullMessages(PullMessagesRequest())
        time.sleep(0.2)
        before = list(relay.bytes)
        for _ in range(10):
            client.PullMessages(PullMessagesRequest())
        time.sleep(0.2)
    up, down = (now - then for now, then in zip(relay.bytes, before, strict=True))
    assert 0 < up < 10 * 90, "of TLS and HTTP/2"
    assert 0 < down < 10 * 110


@needs_nginx
def test_large_answers_come_at_once(proxied, monkeypatch):
    """libcurl may hold bytes of TLS that no socket tells of any more."""
    monkeypatch.setattr(curl, "_LOOK_S", 20.0)
    with proxied.client() as client:
        for size in (60_000, 300_000, 1 << 20, 5 << 20) * 3:
            proxied.answer = PullObjectResponse(object_found=True, object_content=bytes(size))
            began = time.monotonic()
            answer = client.PullObject(PullObjectRequest())
            assert len(answer.object_content) == size
            assert time.monotonic() - began < 10


@pytest.mark.slow
@needs_nginx
def test_a_server_that_says_nothing_is_waited_for_as_long_as_flower_does(proxied):
    proxied.free.clear()
    with proxied.client() as client:
        client._client.timeout = httpx.Timeout(2)
        began = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            client.PushObject(an_object(1 << 18))
        assert 2 < time.monotonic() - began < 8
        proxied.free.set()
        assert client.PushObject(an_object(1 << 18)).stored


@needs_nginx
def test_the_certificates_of_the_machine_prove_no_server(proxied, tmp_path, monkeypatch):
    """A client runs the app that its server sends: whom it is told to trust is all that it trusts.

    pycurl is built to look into a folder of the machine's as well, which is one of ours here.
    """
    machine, ours = tmp_path / "certs", tmp_path / "keys" / "proxy" / "ca.crt"
    machine.mkdir()
    shutil.copy(ours, machine / "ca.pem")
    subprocess.run(["openssl", "rehash", str(machine)], check=True)
    curl_of_pycurl, others = pycurl.Curl, Path(certifi.where()).read_bytes()

    def built():
        made = curl_of_pycurl()
        made.setopt(pycurl.CAPATH, str(machine))
        return made

    place = f"https://127.0.0.1:{proxied.port}/v1/fleet/"
    plain = built()  # which takes the machine's
    plain.setopt(pycurl.CAINFO_BLOB, others)
    plain.setopt(pycurl.URL, place)
    plain.setopt(pycurl.WRITEFUNCTION, len)
    plain.perform()
    monkeypatch.setattr(pycurl, "Curl", built)
    for certificates, refused in ((others, True), (ours.read_bytes(), False), (None, True)):
        with (
            httpx.Client(transport=curl.CurlTransport(certificates)) as client,
            pytest.raises(httpx.ConnectError, match="VERIFY") if refused else nullcontext(),
        ):
            client.post(place)


def test_a_host_whose_name_speaks_of_tls_is_asked_again():
    place = ("tls.localhost:1", False, None, [])
    with FleetClient.from_server_address(*place) as client:
        with pytest.raises(httpx.ConnectError) as refused:
            client.PullMessages(PullMessagesRequest())
        assert not re.search("certificate|ssl|tls", str(refused.value), re.I)


def test_headers_are_of_the_last_response_without_trailers():
    headers = curl._Headers()
    for line in (b"HTTP/2 103\r\n", b"link: x\r\n", b"\r\n", b"HTTP/2 200\r\n", b"A: b:c\r\n",
                 b"\r\n", b"x-trailer: 1\r\n", b"\r\n"):  # fmt: skip
        headers.take(line)
    assert headers.lines == [(b"A", b"b:c")]
