"""Flower's SuperNode, over HTTP/2 where the server offers it.

A SuperNode signs every request, polls included: about a kilobyte of headers, nearly the same each
time, and more than a round's payload in all. HTTP/2 sends of headers what is new (HPACK, RFC 7541),
and connections are kept, so that a heartbeat takes no TLS handshake. It is agreed upon in TLS
(ALPN): a server that speaks HTTP/1.1 only, and one without TLS, is spoken to as Flower does. Who
has waited long asks less often (``Pace``). The arguments are those of ``flower-supernode``:

    python -m client.supernode --superlink HOST:8443 --root-certificates ca.crt ...

``CSG_POLL_SECONDS`` is the longest pause between two polls, 3 to 15. The file that ``CSG_HEARD``
names, if any, is touched whenever the server has answered, for checks of health. Where its
connection ends by an error, the process ends with status 1, so that a restart policy can help.
"""

import logging
import os
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any, Self

import certifi
import httpx
import pycurl
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import RetryInvoker
from flwr.supernode import fleet_http_connection
from flwr.supernode.cli import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient

_log = logging.getLogger(__name__)
_KEPT_S = 60  # a connection without requests; less than the proxy's keepalive_timeout
_FLOWERS_PAUSE_S = 3.0  # between two polls
_MOST_PAUSE_S = 15.0  # a server's question whether a client is idle expires after 30 s
_LOOK_S = 1.0  # after which a signal is heard at the latest
_UNREACHABLE = (
    pycurl.E_COULDNT_CONNECT,
    pycurl.E_COULDNT_RESOLVE_HOST,
    pycurl.E_COULDNT_RESOLVE_PROXY,
)
_POLL, _HEARTBEAT = "/v1/fleet/pull-messages", "/v1/fleet/send-node-heartbeat"
_LEFT_OUT = ("host", "content-length", "connection", "accept-encoding", "user-agent")


class Pace:
    """Pauses between polls: a quarter of the time for which nothing has come, 3 to ``most`` s.

    A client that waits for slower ones sees the next message a quarter of that wait late at most,
    and goes on waiting for them if they are in the next round. Where they are not, as in sampled
    cohorts, a round becomes up to ``most`` - 3 s longer.
    """

    def __init__(self, most: float) -> None:
        self._most = most
        self.begin()

    def begin(self) -> None:
        """From now on, nothing has come."""
        self._since = time.monotonic()

    def pause(self) -> None:
        """Wait for what the pause has more than Flower's own."""
        waited = time.monotonic() - self._since - _FLOWERS_PAUSE_S  # when it asked last
        more = min(waited / 4, self._most) - _FLOWERS_PAUSE_S
        if more > 0:
            time.sleep(more)


class CurlTransport(httpx.BaseTransport):
    """Requests by libcurl, as many at once as there are threads that ask.

    httpx's own HTTP/2 is not safe among threads, does not survive a server's GOAWAY, and does not
    read an answer that comes before a request is whole.

    Args:
        trusted: certificates that prove servers, PEM; none: those of certifi, as httpx has it.
    """

    def __init__(self, trusted: bytes | None) -> None:
        self._trusted = trusted
        self._idle: LifoQueue[_Line] = LifoQueue()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            line = self._idle.get_nowait()
        except Empty:
            line = _Line(self._trusted)
        try:
            response = line.exchange(request)
        except BaseException:
            line.close()
            raise
        self._idle.put(line)
        return response

    def close(self) -> None:
        while not self._idle.empty():
            self._idle.get().close()


class _Line:
    """A connection that is kept, for one request at a time; after an error it has to be closed."""

    def __init__(self, trusted: bytes | None) -> None:
        self._multi = pycurl.CurlMulti()  # the connection is its own
        self._curl = curl = pycurl.Curl()
        curl.setopt(pycurl.NOSIGNAL, 1)  # as threads need it
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
        curl.setopt(pycurl.MAXAGE_CONN, _KEPT_S)
        curl.setopt(pycurl.USERAGENT, "")
        if trusted is None:
            curl.setopt(pycurl.CAINFO, os.environ.get("SSL_CERT_FILE") or certifi.where())
        else:
            curl.setopt(pycurl.CAINFO_BLOB, trusted)

    def exchange(self, request: httpx.Request) -> httpx.Response:
        """The response to a request.

        Raises:
            httpx.TransportError: if there is none; ``timeout`` of the request is the time to
                connect, and the time without a byte in either direction.
        """
        headers, body, curl = _Headers(), BytesIO(), self._curl
        waits = request.extensions.get("timeout", {})
        sent = [f"{name}: {value}" for name, value in request.headers.items()
                if name not in _LEFT_OUT]  # fmt: skip
        try:
            curl.setopt(pycurl.URL, str(request.url))
            curl.setopt(pycurl.CUSTOMREQUEST, request.method)
            curl.setopt(pycurl.POSTFIELDS, request.read())
            curl.setopt(pycurl.HTTPHEADER, [*sent, "expect:"])
            curl.setopt(pycurl.CONNECTTIMEOUT_MS, round(1000 * (waits.get("connect") or 0)))
            curl.setopt(pycurl.HEADERFUNCTION, headers.take)
            curl.setopt(pycurl.WRITEFUNCTION, body.write)
            self._multi.add_handle(curl)
            self._perform(waits.get("read"))
            self._multi.remove_handle(curl)
            status = curl.getinfo(pycurl.RESPONSE_CODE)
            curl.setopt(pycurl.POSTFIELDS, b"")  # nothing is held while the line is idle
            curl.setopt(pycurl.HEADERFUNCTION, len)
            curl.setopt(pycurl.WRITEFUNCTION, len)
        except pycurl.error as error:
            code, text = error.args[:2]
            _log.warning("%s: %s (libcurl's error %d)", request.url, text, code)
            raise _in_httpx(code, text, request) from error
        except TimeoutError as error:
            raise httpx.ReadTimeout(str(error), request=request) from error
        return httpx.Response(status, headers=headers.lines, content=body.getvalue())

    def close(self) -> None:
        self._multi.close()
        self._curl.close()

    def _perform(self, seconds: float | None) -> None:
        """To the end; signals are heard meanwhile."""
        passed, since, going = 0, time.monotonic(), True
        while going:
            going = self._multi.perform()[1] > 0
            now = self._curl.getinfo(pycurl.SIZE_UPLOAD_T) + self._curl.getinfo(
                pycurl.SIZE_DOWNLOAD_T
            )
            if now != passed:
                passed, since = now, time.monotonic()
            if going and seconds is not None and time.monotonic() - since > seconds:
                raise TimeoutError(f"nothing came for {seconds:g} s")
            if going and self._multi.select(min(_LOOK_S, seconds or _LOOK_S)) <= 0:
                time.sleep(0.01)  # it returns at once while it has no socket
        for _, code, text in self._multi.info_read()[2]:
            raise pycurl.error(code, text)


class _Headers:
    """Of the last response, as libcurl tells of them: without interim ones and trailers."""

    def __init__(self) -> None:
        self.lines: list[tuple[bytes, bytes]] = []
        self._whole = False

    def take(self, line: bytes) -> None:
        if line.startswith(b"HTTP/"):
            self.lines, self._whole = [], False
        elif not line.strip():
            self._whole = True
        elif not self._whole:
            name, _, value = line.partition(b":")
            self.lines.append((name.strip(), value.strip()))


class FleetClient(FleetHttpClient):
    """Flower's client of the Fleet API, over ``CurlTransport`` and with a ``Pace``."""

    _pace: Pace

    @classmethod
    def from_server_address(
        cls,
        server_address: str,
        insecure: bool,
        root_certificates: bytes | str | None,
        interceptors: Sequence[ProtobufClientInterceptor],
        *,
        retry_invoker: RetryInvoker | None = None,
    ) -> Self:
        """As Flower makes one; ``root_certificates`` are PEM, or the path of a file of it."""
        if isinstance(root_certificates, str):
            root_certificates = Path(root_certificates).read_bytes()
        client = super().from_server_address(
            server_address, insecure, root_certificates, interceptors, retry_invoker=retry_invoker
        )
        timeout = client._client.timeout
        client._client.close()
        client._client = httpx.Client(
            transport=CurlTransport(root_certificates), timeout=timeout, follow_redirects=True
        )
        client._pace = Pace(_most_pause())
        return client

    def _unary_unary(self, *, path: str, **options: Any) -> Any:
        if path == _POLL:
            self._pace.pause()
        try:
            response = super()._unary_unary(path=path, **options)
        except httpx.HTTPError as error:
            if path != _HEARTBEAT:
                self._pace.begin()  # what failed is asked again soon
            elif isinstance(error, httpx.HTTPStatusError) and not _turned_away(error):
                # by another error Flower's thread of heartbeats would end, and nothing else
                raise httpx.NetworkError(str(error), request=error.request) from error
            raise
        if heard := os.environ.get("CSG_HEARD"):
            Path(heard).touch()
        if path not in (_POLL, _HEARTBEAT) or getattr(response, "messages_list", None):
            self._pace.begin()
        return response


def main() -> None:
    """Run a SuperNode until it is ended.

    Raises:
        SystemExit: if ``CSG_POLL_SECONDS`` cannot be.
    """
    _most_pause()
    assert fleet_http_connection.FleetHttpClient is FleetHttpClient  # type: ignore[attr-defined]
    fleet_http_connection.FleetHttpClient = FleetClient  # type: ignore[attr-defined]
    try:
        flower_supernode()
    except Exception:
        _log.exception("the SuperNode failed")
    # its connection ended by an error, and threads of its would keep the process for ever
    _log.error("the SuperNode has ended; start it again")
    os._exit(1)


def _turned_away(error: httpx.HTTPStatusError) -> bool:
    """Whether the server knows this client no longer, by which Flower ends the SuperNode."""
    return error.response.status_code == httpx.codes.UNAUTHORIZED


def _most_pause() -> float:
    text = os.environ.get("CSG_POLL_SECONDS", "")
    try:
        found = float(text or _MOST_PAUSE_S)
    except ValueError:
        found = -1.0
    if not _FLOWERS_PAUSE_S <= found <= _MOST_PAUSE_S:
        raise SystemExit(
            f"CSG_POLL_SECONDS={text}: give 3 to 15, seconds between two polls at most"
        )
    return found


def _in_httpx(code: int, text: str, request: httpx.Request) -> httpx.TransportError:
    """libcurl's error as httpx has it, by which Flower decides whether to try again.

    It does not if a message speaks of TLS, as libcurl's do of connections that broke, and as the
    name of a host may.
    """
    if code == pycurl.E_PEER_FAILED_VERIFICATION:
        return httpx.ConnectError(f"CERTIFICATE_VERIFY_FAILED: {text}", request=request)
    if code == pycurl.E_SSL_CONNECT_ERROR:
        return httpx.ConnectError(text, request=request)
    if code in _UNREACHABLE:
        return httpx.ConnectError(f"no connection (libcurl's error {code})", request=request)
    if code == pycurl.E_OPERATION_TIMEDOUT:
        return httpx.ConnectTimeout("no connection in time", request=request)
    broken = f"the connection broke (libcurl's error {code})"
    return httpx.RemoteProtocolError(broken, request=request)


if __name__ == "__main__":
    main()
