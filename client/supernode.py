"""Flower's SuperNode, over HTTP/2 where the server offers it.

A SuperNode signs every request, polls included: about a kilobyte of headers, nearly the same each
time, and more than a round's payload in all. HTTP/2 sends of headers what is new (HPACK, RFC 7541),
and connections are kept, so that a heartbeat takes no TLS handshake. It is agreed upon in TLS
(ALPN): a server that speaks HTTP/1.1 only, and one without TLS, is spoken to as Flower does. Who
has waited long asks less often (``Pace``). The arguments are those of ``flower-supernode``:

    python -m client.supernode --superlink HOST:8443 --root-certificates ca.crt ...

``CSG_POLL_SECONDS`` is the longest pause between two polls, 3 to 15.
"""

import logging
import os
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from queue import Empty, LifoQueue
from typing import Any

import httpx
import pycurl
from flwr.proto.fleet_pb2 import (
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.supernode import fleet_http_connection
from flwr.supernode.cli import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient

_log = logging.getLogger(__name__)
_KEPT_S = 60  # a connection without requests; less than the proxy's keepalive_timeout
_FLOWERS_PAUSE_S = 3.0  # between two polls
_MOST_PAUSE_S = 15.0  # a server's question whether a client is idle expires after 30 s
_UNREACHABLE = (pycurl.E_COULDNT_CONNECT, pycurl.E_COULDNT_RESOLVE_HOST,
                pycurl.E_COULDNT_RESOLVE_PROXY, pycurl.E_SSL_CONNECT_ERROR)  # fmt: skip
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
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        trusted = context.get_ca_certs(binary_form=True)
        self._trusted = "".join(map(ssl.DER_cert_to_PEM_cert, trusted)).encode()
        self._verified = context.verify_mode != ssl.CERT_NONE
        self._idle: LifoQueue[pycurl.Curl] = LifoQueue()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        content, headers, body = request.read(), BytesIO(), BytesIO()
        waits = request.extensions.get("timeout", {})
        with self._handle() as curl:
            curl.setopt(pycurl.URL, str(request.url))
            curl.setopt(pycurl.CUSTOMREQUEST, request.method)
            curl.setopt(pycurl.POSTFIELDS, content)
            own = [f"{name}: {value}" for name, value in request.headers.items()
                   if name not in _LEFT_OUT]  # fmt: skip
            curl.setopt(pycurl.HTTPHEADER, [*own, "expect:"])
            curl.setopt(pycurl.CONNECTTIMEOUT_MS, _milliseconds(waits.get("connect")))
            curl.setopt(pycurl.LOW_SPEED_LIMIT, 1)  # bytes a second, either way
            curl.setopt(pycurl.LOW_SPEED_TIME, _milliseconds(waits.get("read")) // 1000)
            curl.setopt(pycurl.HEADERFUNCTION, headers.write)
            curl.setopt(pycurl.WRITEFUNCTION, body.write)
            try:
                curl.perform()
            except pycurl.error as error:
                code, text = error.args[:2]
                raise _in_httpx(code, text, request) from error
            status = curl.getinfo(pycurl.RESPONSE_CODE)
        return httpx.Response(
            status, headers=_last_headers(headers.getvalue()), content=body.getvalue()
        )

    def close(self) -> None:
        while not self._idle.empty():
            self._idle.get().close()

    @contextmanager
    def _handle(self) -> Iterator[pycurl.Curl]:
        """A handle, with the connection that it has kept; after an error it is closed."""
        try:
            curl = self._idle.get_nowait()
        except Empty:
            curl = self._new()
        try:
            yield curl
        except BaseException:
            curl.close()
            raise
        self._idle.put(curl)

    def _new(self) -> pycurl.Curl:
        curl = pycurl.Curl()
        curl.setopt(pycurl.NOSIGNAL, 1)  # as threads need it
        curl.setopt(pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_2TLS)
        curl.setopt(pycurl.MAXAGE_CONN, _KEPT_S)
        curl.setopt(pycurl.USERAGENT, "")
        if self._verified:
            curl.setopt(pycurl.CAINFO_BLOB, self._trusted)
        else:
            curl.setopt(pycurl.SSL_VERIFYPEER, 0)
            curl.setopt(pycurl.SSL_VERIFYHOST, 0)
        return curl


class FleetClient(FleetHttpClient):
    """Flower's client of the Fleet API, over ``CurlTransport`` and with a ``Pace``."""

    def __init__(
        self,
        base_url: str,
        *,
        verify: ssl.SSLContext | bool | str = True,
        timeout: float = 30.0,
        **options: Any,
    ) -> None:
        if isinstance(verify, str):
            context = ssl.create_default_context(cafile=verify)
        else:
            context = httpx.create_ssl_context(verify=verify)
        super().__init__(base_url, verify=context, timeout=timeout, **options)
        self._client.close()
        self._client = httpx.Client(
            transport=CurlTransport(context), timeout=timeout, follow_redirects=True
        )
        self._pace = Pace(_most_pause())

    def PullMessages(self, request: PullMessagesRequest) -> PullMessagesResponse:  # noqa: N802
        self._pace.pause()
        try:
            response = super().PullMessages(request)
        except httpx.HTTPError:
            self._pace.begin()  # asked again soon
            raise
        if response.messages_list:
            self._pace.begin()
        return response

    def PushMessages(self, request: PushMessagesRequest) -> PushMessagesResponse:  # noqa: N802
        response = super().PushMessages(request)
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
    flower_supernode()
    # its connection ended by an error that it logged; threads of its would keep the process
    _log.error("the SuperNode has ended; start it again")
    os._exit(1)


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


def _milliseconds(seconds: float | None) -> int:
    """For libcurl, to which none are 0."""
    return 0 if seconds is None else max(1000, round(1000 * seconds))


def _last_headers(text: bytes) -> list[tuple[bytes, bytes]]:
    """Of the last response, after interim ones."""
    lines = text.strip().split(b"\r\n\r\n")[-1].split(b"\r\n")[1:]
    parts = (line.partition(b":") for line in lines)
    return [(name.strip(), value.strip()) for name, _, value in parts]


def _in_httpx(code: int, text: str, request: httpx.Request) -> httpx.TransportError:
    """libcurl's error as httpx has it, by which Flower decides whether to try again."""
    if code == pycurl.E_PEER_FAILED_VERIFICATION:
        return httpx.ConnectError(f"CERTIFICATE_VERIFY_FAILED: {text}", request=request)
    if code in _UNREACHABLE:
        return httpx.ConnectError(text, request=request)
    if code == pycurl.E_OPERATION_TIMEDOUT:
        return httpx.ReadTimeout(text, request=request)
    # Flower does not try again what speaks of TLS, as libcurl does of connections that broke
    return httpx.RemoteProtocolError(
        f"the connection broke (libcurl's error {code})", request=request
    )


if __name__ == "__main__":
    main()
