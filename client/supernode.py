"""Flower's SuperNode, over HTTP/2 where the server offers it.

A SuperNode proves itself with every request, polls included: about a kilobyte of headers, nearly
the same each time, and more than a round's payload in all. HTTP/2 sends of headers what is new
(HPACK, RFC 7541), a signature is used for a minute (``KeptSignature``), and connections are kept,
so that a heartbeat takes no TLS handshake. It is agreed upon in TLS (ALPN): a server that speaks
HTTP/1.1 only, and one without TLS, is spoken to as Flower does. A client that has waited long polls
less often (``Pace``). The arguments are those of ``flower-supernode``:

    python -m client.supernode --superlink HOST:8443 --root-certificates ca.crt ...

``CSG_POLL_SECONDS`` is the longest pause between two polls, 3 to 15. The file that ``CSG_HEARD``
names, if any, is touched whenever the server has answered, for checks of health. Where its
connection ends by an error, or the server turns it away, the process says so and ends with status
1, so that a restart policy can help.
"""

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Event
from typing import Any, Self

import httpx
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.protobuf.client import (
    ProtobufCall,
    ProtobufClientInterceptor,
    ProtobufRequestContext,
)
from flwr.supercore.retry import RetryInvoker
from flwr.supernode import fleet_http_connection
from flwr.supernode.cli import flower_supernode
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.curl import CurlTransport

_log = logging.getLogger(__name__)
_FLOWERS_PAUSE_S = 3.0  # between two polls
_SIGNED_S = 60.0  # for which a signature is used
_LARGE = 1 << 16  # bytes of a request
_MOST_PAUSE_S = 15.0  # a server's question whether a client is idle expires after 30 s
_POLL, _HEARTBEAT = "/v1/fleet/pull-messages", "/v1/fleet/send-node-heartbeat"
_SMALL = {  # of which answers are short: all of a round but the objects of a message
    _POLL,
    _HEARTBEAT,
    "/v1/fleet/confirm-message-received",
    "/v1/fleet/push-messages",
    "/v1/fleet/push-object",
}


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


class KeptSignature:
    """Flower's proof of a client's identity, made once a minute.

    What is signed is the time alone, and a SuperLink takes it for five minutes. Made anew for every
    request, it would be most of what HTTP/2 sends of headers, and would push the key, which never
    changes, out of the table of headers that both ends know. Large requests, which may take minutes
    until they are looked at, have one of their own.
    """

    def __init__(self, signer: NodeAuthHttpInterceptor) -> None:
        self._signer = signer
        self._signed_at = 0.0  # by the clock that is signed, which may be set
        self._headers: dict[str, str] = {}

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add the headers of the last signature, or of a new one."""
        small = len(context.request.content) < _LARGE
        if small and 0 <= time.time() - self._signed_at < _SIGNED_S:
            add_headers(context.request, self._headers)
            return call_next(context)
        before = set(context.request.headers)

        def keep(signed: ProtobufRequestContext) -> httpx.Response:
            new = {k: v for k, v in signed.request.headers.items() if k not in before}
            self._headers, self._signed_at = new, time.time()
            return call_next(signed)

        return self._signer.intercept(context, keep)


class FleetClient(FleetHttpClient):
    """Flower's client of the Fleet API, over ``CurlTransport`` and with a ``Pace``."""

    _pace: Pace
    turned_away = Event()  # by any server, of this process

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
        kept = [
            KeptSignature(each) if isinstance(each, NodeAuthHttpInterceptor) else each
            for each in interceptors
        ]
        client = super().from_server_address(
            server_address, insecure, root_certificates, kept, retry_invoker=retry_invoker
        )
        timeout = client._client.timeout
        client._client.close()
        client._client = httpx.Client(
            transport=CurlTransport(root_certificates, _SMALL),
            timeout=timeout,
            follow_redirects=True,
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
            if isinstance(error, httpx.HTTPStatusError):
                if error.response.status_code == httpx.codes.UNAUTHORIZED:
                    self.turned_away.set()  # by which Flower ends the SuperNode
                elif path == _HEARTBEAT:
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
        SystemExit: if ``CSG_POLL_SECONDS`` cannot be, or as Flower ends it.
    """
    _most_pause()
    assert fleet_http_connection.FleetHttpClient is FleetHttpClient  # type: ignore[attr-defined]
    fleet_http_connection.FleetHttpClient = FleetClient  # type: ignore[attr-defined]
    try:
        flower_supernode()
    except SystemExit:
        if not FleetClient.turned_away.is_set():
            raise
        _log.error(
            "the server turns this client away: its key is not registered there any more, or was "
            "revoked, or the clocks of the two are apart"
        )
    except Exception:
        _log.exception("the SuperNode failed")
    # its connection ended by an error, and threads of its would keep the process for ever
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


if __name__ == "__main__":
    main()
