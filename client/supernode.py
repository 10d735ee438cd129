"""Flower's SuperNode, over HTTP/2 where the server offers it.

A SuperNode signs every request, polls included: about a kilobyte of headers, nearly the same each
time, and more than a round's payload in all. HTTP/2 sends of headers what is new (HPACK, RFC 7541),
and its connections are kept, so that a heartbeat takes no TLS handshake. It is agreed upon in TLS
(ALPN): a server that speaks HTTP/1.1 only, and one without TLS, is spoken to as Flower does. Who
has waited long asks less often (``Pace``). The arguments are those of ``flower-supernode``:

    python -m client.supernode --superlink HOST:8443 --root-certificates ca.crt ...
"""

import ssl
import time
from threading import Lock
from typing import Any

import httpx
from flwr.proto.fleet_pb2 import (
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.supernode import fleet_http_connection
from flwr.supernode.cli import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient

# seconds; longer than from one heartbeat to the next, shorter than the proxy's keepalive_timeout
_KEPT = httpx.Limits(keepalive_expiry=60.0)

_FLOWERS_PAUSE_S = 3.0  # between two polls
_MOST_PAUSE_S = 15.0  # a server's question whether a client is idle expires after 30 s


class Pace:
    """Pauses between polls: a quarter of the time for which nothing has come, 3 to 15 s.

    A client that waits for slower ones sees the next message a quarter of that wait late at most,
    and so goes on waiting for them: rounds become no longer.
    """

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """From now on, nothing has come."""
        self._since = time.monotonic()

    def pause(self) -> None:
        """Wait for what the pause has more than Flower's own."""
        waited = time.monotonic() - self._since - _FLOWERS_PAUSE_S  # when it asked last
        more = min(waited / 4, _MOST_PAUSE_S) - _FLOWERS_PAUSE_S
        if more > 0:
            time.sleep(more)


class GatheringSocket(ssl.SSLSocket):
    """What is written leaves when an answer is waited for, in as few packets as it takes.

    httpx writes headers, body and end of a request one by one, of which each would be a packet.
    """

    _waiting = b""

    def send(self, data: Any, flags: int = 0) -> int:  # noqa: ARG002
        """Keep ``data`` for the next ``recv``; past 64 kB, pass it all on."""
        self._waiting += bytes(data)
        if len(self._waiting) >= 1 << 16:
            self._flush()
        return len(data)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Write what waits, then read."""
        self._flush()
        return super().recv(buflen, flags)

    def _flush(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[super().send(self._waiting) :]


class Connection(httpx.Client):
    """One connection that is kept, with one request at a time.

    httpx's HTTP/2 is not safe among threads.
    """

    def __init__(self, context: ssl.SSLContext, timeout: float) -> None:
        super().__init__(
            verify=context, http2=True, limits=_KEPT, timeout=timeout, follow_redirects=True
        )
        self._free = Lock()

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        """The response, read to its end."""
        with self._free:
            return super().send(request, **options)


class FleetConnection(FleetHttpClient):
    """Flower's client of the Fleet API, over one ``Connection``."""

    def __init__(
        self,
        base_url: str,
        *,
        verify: ssl.SSLContext | bool | str = True,
        timeout: float = 30.0,
        **options: Any,
    ) -> None:
        context = _context(verify)
        super().__init__(base_url, verify=context, timeout=timeout, **options)
        self._client.close()
        self._client = Connection(context, timeout)


class FleetClient(FleetConnection):
    """The same, with a connection more for heartbeats, which no upload holds up, and a ``Pace``."""

    def __init__(self, base_url: str, **options: Any) -> None:
        super().__init__(base_url, **options)
        self._heartbeats = FleetConnection(base_url, **options)
        self._pace = Pace()

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

    def SendNodeHeartbeat(  # noqa: N802
        self, request: SendNodeHeartbeatRequest
    ) -> SendNodeHeartbeatResponse:
        return self._heartbeats.SendNodeHeartbeat(request)

    def close(self) -> None:
        self._heartbeats.close()
        super().close()


def _context(verify: ssl.SSLContext | bool | str) -> ssl.SSLContext:
    """What Flower verifies a server with: a context, a file of certificates, or whether at all."""
    if isinstance(verify, str):
        context = ssl.create_default_context(cafile=verify)
    else:
        context = httpx.create_ssl_context(verify=verify)
    context.sslsocket_class = GatheringSocket
    return context


def main() -> None:
    """Run a SuperNode until it is ended."""
    fleet_http_connection.FleetHttpClient = FleetClient  # type: ignore[attr-defined]
    flower_supernode()


if __name__ == "__main__":
    main()
