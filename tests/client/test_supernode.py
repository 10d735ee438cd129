"""The connections of a SuperNode, through nginx over TLS, with a server behind it."""

import hashlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from base64 import b64decode
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.supercore.primitives.asymmetric import generate_key_pairs, verify_signature
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supernode import fleet_http_connection
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client import curl, supernode
from client.supernode import FleetClient
from simulations.flower_engine import free_port
from simulations.studies.deployment import proxy_settings
from simulations.studies.processes import listens, wait_until

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is needed, as in .ci/run")
KEYS = Path(__file__).parents[2] / "docker" / "keys.py"
PROXY_CONF = (KEYS.parent / "proxy.conf").read_text()
LINE = "$connection $server_protocol $status $uri"


class Proxied:
    """A server behind nginx with docker/proxy.conf, in which ``changes`` are made.

    Objects pushed to it wait for ``free``, if that is cleared.
    """

    def __init__(self, folder: Path, changes: dict[str, str]) -> None:
        self.folder, self.digests, self.free, self.pushing = folder, [], Event(), Event()
        self.served, self.signatures, self.status = Counter(), [], 200
        self.free.set()
        self.answer = PullObjectResponse()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                name, answer = self.path.rpartition("/")[2], b""
                outer.served[name] += 1
                outer.signatures.append(
                    (self.headers["flwr-timestamp"], self.headers["flwr-signature"])
                )
                if name == "push-object":
                    content = PushObjectRequest.FromString(body).object_content
                    outer.digests.append(hashlib.sha256(content).hexdigest())
                    outer.pushing.set()
                    outer.free.wait(30)
                    answer = PushObjectResponse(stored=True).SerializeToString()
                if name == "pull-object":
                    answer = outer.answer.SerializeToString()
                if name == "send-node-heartbeat":
                    answer = SendNodeHeartbeatResponse(success=True).SerializeToString()
                self.send_response(outer.status)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        make = ["make", "--host", "127.0.0.1", "--clients", "1"]
        subprocess.run([sys.executable, str(KEYS), "--dir", str(folder / "keys"), *make],
                       check=True, capture_output=True)  # fmt: skip
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        own = folder / "keys" / "server"
        context.load_cert_chain(own / "tls.crt", own / "tls.key")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.port = health = free_port()
        while health == self.port:
            health = free_port()
        ports = {"8000": self.server.server_port, "8443": self.port, "8080": health}
        text = proxy_settings(folder, folder / "requests")
        text = text.replace("http {", f"http {{\n  log_format brief '{LINE}';", 1)
        text = text.replace("requests;", "requests brief;", 1)
        for there, other in changes.items():
            assert there in text
            text = text.replace(there, other)
        text = re.sub(r"\b(8000|8443|8080)\b", lambda found: str(ports[found[0]]), text)
        (folder / "nginx.conf").write_text(text)

    def start(self) -> None:
        command = [NGINX, "-e", "stderr", "-c", self.folder / "nginx.conf", "-g", "daemon off;"]
        self.nginx = subprocess.Popen(command)
        wait_until(lambda: listens(self.nginx.pid, self.port), "nginx does not listen")

    def client(self, *interceptors: ProtobufClientInterceptor) -> FleetClient:
        ca = str(self.folder / "keys" / "proxy" / "ca.crt")
        place = f"127.0.0.1:{self.port}"
        return FleetClient.from_server_address(place, False, ca, interceptors)

    def requests(self) -> list[list[str]]:
        """Connection, protocol, status and name of each request."""
        return [line.split() for line in (self.folder / "requests").read_text().splitlines()]

    def close(self) -> None:
        self.nginx.terminate()
        self.nginx.wait()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def proxied(tmp_path, request):
    proxied = Proxied(tmp_path, getattr(request, "param", {}))
    try:
        proxied.start()
        yield proxied
    finally:
        proxied.close()


def changed(**changes: str):
    """Settings of the proxy which are other than usual."""
    new = {re.search(rf"{key} [^;]*;", PROXY_CONF)[0]: f"{key} {value};"
           for key, value in changes.items()}  # fmt: skip
    return pytest.mark.parametrize("proxied", [new], indirect=True)


class Relay:
    """A port whose bytes go to another's, and back, and are counted: up and down."""

    def __init__(self, port: int) -> None:
        self.bytes = [0, 0]
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        Thread(target=self._accept, args=[port], daemon=True).start()

    def _accept(self, port: int) -> None:
        while True:
            near, _ = self._server.accept()
            far = socket.create_connection(("127.0.0.1", port))
            for way, ends in enumerate([(near, far), (far, near)]):
                Thread(target=self._pass, args=[way, *ends], daemon=True).start()

    def _pass(self, way: int, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):  # either end may be gone
            while data := source.recv(1 << 16):
                self.bytes[way] += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)


def _object(size: int) -> PushObjectRequest:
    return PushObjectRequest(object_id="x", object_content=bytes(range(256)) * (size // 256))


@needs_nginx
def test_many_threads_at_once_over_few_connections(proxied):
    with proxied.client() as client, ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(client.PullMessages, PullMessagesRequest()) for _ in range(100)]
        jobs += [threads.submit(client.PushObject, _object(1 << 18)) for _ in range(20)]
        beats = [threads.submit(client.SendNodeHeartbeat, SendNodeHeartbeatRequest())
                 for _ in range(20)]  # fmt: skip
        assert all(job.result().success for job in beats)
        assert [job.result() for job in jobs[:100]]
        assert all(job.result().stored for job in jobs[100:])
    rows = proxied.requests()
    assert {(protocol, status) for _, protocol, status, _ in rows} == {("HTTP/2.0", "200")}
    assert len(rows) == 140
    assert len({number for number, *_ in rows}) <= 4


@needs_nginx
def test_no_upload_holds_up_a_heartbeat(proxied):
    proxied.free.clear()
    with proxied.client() as client, ThreadPoolExecutor(1) as threads:
        push = threads.submit(client.PushObject, _object(1 << 18))
        assert proxied.pushing.wait(10)
        assert client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success
        assert not push.done()
        proxied.free.set()
        assert push.result().stored


@needs_nginx
def test_the_largest_piece_arrives_whole(proxied):
    piece = _object(5 << 20)  # more than HTTP/2's windows: the server's word is waited for
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
        assert client.PushObject(_object(256)).stored


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
@changed(keepalive_requests="5")
def test_a_connection_that_has_served_its_time_is_followed_by_another(proxied):
    with proxied.client() as client:
        for _ in range(30):
            client.PullMessages(PullMessagesRequest())
    assert proxied.served == {"pull-messages": 30}
    assert 6 <= len({number for number, *_ in proxied.requests()}) <= 12


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
        assert client.PushObject(_object(5 << 20)).stored
        assert client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success
    assert {protocol for _, protocol, _, _ in proxied.requests()} == {"HTTP/1.1"}


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
        client.PushObject(_object(1 << 17))
    first, *_ = proxied.signatures
    assert proxied.signatures[:4] == [first] * 4
    later = proxied.signatures[4]
    assert proxied.signatures[5] == later != first
    assert proxied.signatures[6] != later, "the clock was set"
    assert proxied.signatures[7] != proxied.signatures[6], "a large one's is looked at late"
    for stamp, signature in proxied.signatures:
        assert verify_signature(public, stamp.encode(), b64decode(signature))


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


@needs_nginx
def test_a_server_that_says_nothing_is_waited_for_as_long_as_flower_does(proxied):
    proxied.free.clear()
    with proxied.client() as client:
        client._client.timeout = httpx.Timeout(2)
        began = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            client.PushObject(_object(1 << 18))
        assert 2 < time.monotonic() - began < 8
        proxied.free.set()
        assert client.PushObject(_object(1 << 18)).stored


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
