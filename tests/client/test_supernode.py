"""The connections of a SuperNode, through nginx over TLS, with a server behind it."""

import hashlib
import shutil
import socket
import ssl
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.supernode.fleet_http_client import FleetHttpClient

from client import supernode
from client.supernode import FleetClient
from simulations.studies.processes import listens, wait_until

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is needed, as in .ci/run")
KEYS = Path(__file__).parents[2] / "docker" / "keys.py"
CONF = """
pid {folder}/pid;
user root;
events {{}}
http {{
  log_format requests '$connection $server_protocol $status $uri';
  access_log {folder}/requests requests;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 6m;
  keepalive_timeout {kept}s;
  ssl_certificate {folder}/keys/proxy/tls.crt;
  ssl_certificate_key {folder}/keys/proxy/tls.key;
  server {{
    listen 127.0.0.1:{port} ssl http2;
    location / {{ proxy_pass http://127.0.0.1:{behind}; }}
  }}
  server {{
    listen 127.0.0.1:{old_port} ssl;
    location / {{ proxy_pass http://127.0.0.1:{behind}; }}
  }}
}}
"""


class Proxied:
    """A server behind nginx; objects pushed to it wait for ``free``, if it is cleared."""

    def __init__(self, folder: Path, kept: int) -> None:
        self.folder, self.digests, self.free, self.pushing = folder, [], Event(), Event()
        self.free.set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                answer = b""
                if self.path.endswith("push-object"):
                    content = PushObjectRequest.FromString(body).object_content
                    outer.digests.append(hashlib.sha256(content).hexdigest())
                    outer.pushing.set()
                    outer.free.wait(30)
                    answer = PushObjectResponse(stored=True).SerializeToString()
                if self.path.endswith("heartbeat"):
                    answer = SendNodeHeartbeatResponse(success=True).SerializeToString()
                self.send_response(200)
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        make = ["make", "--host", "127.0.0.1", "--clients", "1"]
        subprocess.run([sys.executable, str(KEYS), "--dir", str(folder / "keys"), *make],
                       check=True, capture_output=True)  # fmt: skip
        self.port, self.old_port = _free_ports(2)
        text = CONF.format(folder=folder, kept=kept, port=self.port, old_port=self.old_port,
                           behind=self.server.server_port)  # fmt: skip
        (folder / "nginx.conf").write_text(text)
        command = [NGINX, "-e", "stderr", "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
        self.nginx = subprocess.Popen(command)
        wait_until(lambda: listens(self.nginx.pid, self.old_port), "nginx does not listen")

    def client(self, port: int | None = None) -> FleetClient:
        ca = str(self.folder / "keys" / "proxy" / "ca.crt")
        return FleetClient.from_server_address(f"127.0.0.1:{port or self.port}", False, ca, [])

    def requests(self) -> list[list[str]]:
        """Connection, protocol, status and path of each request."""
        return [line.split() for line in (self.folder / "requests").read_text().splitlines()]

    def close(self) -> None:
        self.nginx.terminate()
        self.nginx.wait()
        self.server.shutdown()
        self.server.server_close()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0)))
                   for _ in range(count)]  # fmt: skip
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture
def proxied(tmp_path, request):
    kept = getattr(request, "param", 75)
    proxied = Proxied(tmp_path, kept)
    yield proxied
    proxied.close()


def _object(size: int) -> PushObjectRequest:
    return PushObjectRequest(object_id="x", object_content=bytes(range(256)) * (size // 256))


def test_many_threads_share_one_connection_and_heartbeats_have_their_own(proxied):
    with proxied.client() as client, ThreadPoolExecutor(8) as threads:
        jobs = [threads.submit(client.PullMessages, PullMessagesRequest()) for _ in range(100)]
        jobs += [threads.submit(client.PushObject, _object(1 << 18)) for _ in range(20)]
        beats = [threads.submit(client.SendNodeHeartbeat, SendNodeHeartbeatRequest())
                 for _ in range(20)]  # fmt: skip
        assert all(job.result().success for job in beats)
        assert [job.result() for job in jobs[:100]]
        assert all(job.result().stored for job in jobs[100:])
    rows = proxied.requests()
    assert {(protocol, status) for _, protocol, status, _ in rows} == {("HTTP/2.0", "200")}
    beating = {number for number, *_, path in rows if path.endswith("heartbeat")}
    others = {number for number, *_, path in rows if not path.endswith("heartbeat")}
    assert len(rows) == 140
    assert len(beating) == len(others) == 1
    assert beating != others


def test_no_upload_holds_up_a_heartbeat(proxied):
    proxied.free.clear()
    with proxied.client() as client, ThreadPoolExecutor(1) as threads:
        push = threads.submit(client.PushObject, _object(1 << 18))
        assert proxied.pushing.wait(10)
        assert client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success
        assert not push.done()
        proxied.free.set()
        assert push.result().stored


def test_the_largest_piece_arrives_whole(proxied):
    piece = _object(5 << 20)  # more than HTTP/2's windows: the server's word is waited for
    with proxied.client() as client:
        assert client.PushObject(piece).stored
    assert proxied.digests == [hashlib.sha256(piece.object_content).hexdigest()]


def test_a_request_leaves_at_once_in_one_piece(proxied, monkeypatch):
    with proxied.client() as client:
        client.PullMessages(PullMessagesRequest())
        sizes, send = [], ssl.SSLSocket.send
        monkeypatch.setattr(
            ssl.SSLSocket, "send", lambda self, data: sizes.append(len(data)) or send(self, data)
        )
        client.PullMessages(PullMessagesRequest())
        assert len(sizes) == 1
        assert sizes[0] < 100, "the headers that are as before are a byte each"


def test_a_server_of_http_1_is_spoken_to(proxied):
    with proxied.client(proxied.old_port) as client:
        assert client.PushObject(_object(5 << 20)).stored
        assert client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success
    assert {protocol for _, protocol, _, _ in proxied.requests()} == {"HTTP/1.1"}


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
    with FleetClient("https://localhost:1") as client:
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


def test_a_connection_outlasts_the_pause_between_heartbeats(proxied):
    with proxied.client() as client:
        for pause in (0, 6):  # httpx's own would be closed after 5 s
            time.sleep(pause)
            assert client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success
    assert len({number for number, *_ in proxied.requests()}) == 1


@pytest.mark.parametrize("proxied", [1], indirect=True)
def test_a_connection_that_the_server_closed_is_made_anew(proxied):
    with proxied.client() as client:
        for pause in (0, 2):
            time.sleep(pause)
            assert client.SendNodeHeartbeat(SendNodeHeartbeatRequest()).success
    assert len({number for number, *_ in proxied.requests()}) == 2
