"""httpx over libcurl: HTTP/2 where the server offers it, and connections that are kept."""

import logging
import os
import time
from collections.abc import Collection
from io import BytesIO
from queue import Empty, LifoQueue

import certifi
import httpx
import pycurl

_log = logging.getLogger(__name__)
_KEPT_S = 60  # a connection without requests; less than the proxy's keepalive_timeout
_LOOK_S = 1.0  # after which a signal is heard at the latest
_WINDOW = 1 << 16  # bytes a second: libcurl makes room for as much as it may receive in one
_UNREACHABLE = (
    pycurl.E_COULDNT_CONNECT,
    pycurl.E_COULDNT_RESOLVE_HOST,
    pycurl.E_COULDNT_RESOLVE_PROXY,
)
_LEFT_OUT = ("host", "content-length", "connection", "accept-encoding", "user-agent")


class CurlTransport(httpx.BaseTransport):
    """Requests by libcurl, as many at once as there are threads that ask.

    httpx's own HTTP/2 is not safe among threads, does not survive a server's GOAWAY, and does not
    read an answer that comes before a request is whole.

    Args:
        trusted: certificates that prove servers, PEM, and no others do; none: those of certifi, as
            httpx has it.
        small: paths of which answers are short, of which one of 3 kB is 40 ms late, one of 60 kB a
            second. With every other request libcurl makes room for more than HTTP/2 has at first,
            64 KiB, by a frame that takes some 180 bytes with its headers and its acknowledgement.
    """

    def __init__(self, trusted: bytes | None, small: Collection[str] = ()) -> None:
        self._trusted = trusted
        self._small = small
        self._idle: LifoQueue[_Line] = LifoQueue()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        try:
            line = self._idle.get_nowait()
        except Empty:
            line = _Line(self._trusted)
        try:
            response = line.exchange(request, small=request.url.path in self._small)
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
        curl.unsetopt(pycurl.CAPATH)  # the machine's own, by which pycurl is built to go as well
        if trusted is None:
            curl.setopt(pycurl.CAINFO, os.environ.get("SSL_CERT_FILE") or certifi.where())
        else:
            curl.setopt(pycurl.CAINFO_BLOB, trusted)

    def exchange(self, request: httpx.Request, *, small: bool = False) -> httpx.Response:
        """The response to a request; a small one is taken at 64 KiB a second at most.

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
            curl.setopt(pycurl.MAX_RECV_SPEED_LARGE, _WINDOW if small else 0)
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

    def _wait(self, seconds: float) -> None:
        """For the network, or until libcurl wants to go on by itself, as with bytes it has read."""
        wanted = self._multi.timeout()  # ms; less than none: it has no wish
        if wanted >= 0:
            seconds = min(seconds, wanted / 1000)
        if seconds and self._multi.select(seconds) < 0:
            time.sleep(min(seconds, 0.01))  # it returns at once while it has no socket

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
            if going:
                self._wait(min(_LOOK_S, seconds or _LOOK_S))
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
