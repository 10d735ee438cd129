"""A server behind nginx as the images have it, for tests of what a SuperNode says to it."""

import hashlib
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor

from client.supernode import FleetClient
from simulations.processes import free_port, listens, wait_until
from simulations.studies.deployment import proxy_settings

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


def an_object(size: int) -> PushObjectRequest:
    return PushObjectRequest(object_id="x", object_content=bytes(range(256)) * (size // 256))
