"""The HTTP requests that cross an interface, and their bytes: packet and HTTP headers, body.

Reads packets from a raw socket, so it runs where the interface is, as root. Flower 1.41 speaks
HTTP/1.1 with one request at a time on a connection: whatever crosses a connection from the first
packet of a request on belongs to it.
"""

import json
import signal
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

_ALL = 0x0003  # ETH_P_ALL
_OUTGOING = 4  # PACKET_OUTGOING
_IPV4, _TCP = b"\x08\x00", 6
_ETHERNET, _END = 14, b"\r\n\r\n"
_BUFFER = 64 << 20
_OBJECTS, _OF_QUESTION = 3, 2  # of a message with a record at least, and of one without

Connection = tuple[int, int]  # ports of the client and the server


@dataclass(slots=True)
class Exchange:
    """A request and its response, as a client's interface saw them.

    Attributes:
        path: of the request; ``connection`` is what opens or follows one without a request.
        began, answered: seconds, monotonic, of the first packet and the last one with data.
        up, down: bytes of frames, Ethernet header included, as the kernel counts them.
        packets: frames of both directions.
        http: bytes of HTTP headers, both directions.
        body: bytes after them.
    """

    path: str
    began: float
    answered: float
    up: int = 0
    down: int = 0
    packets: int = 0
    http: int = 0
    body: int = 0


class Trace:
    """Sorts frames into exchanges."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self._current: dict[Connection, Exchange] = {}
        self._in_head: dict[tuple[Connection, bool], bool] = {}

    def add(self, frame: bytes, *, sent: bool, when: float) -> None:
        """Count a frame; ``sent`` says that the client sent it."""
        found = _segment(frame, sent=sent)
        connection, data = found or ((0, 0), b"")
        exchange = self._current.get(connection)
        starts = sent and data.startswith((b"POST ", b"GET "))
        if exchange is None or starts:
            path = data.split(b" ", 2)[1].decode() if starts else "connection"
            exchange = Exchange(path if found else "not TCP", when, when)
            self._current[connection] = exchange
            self.exchanges.append(exchange)
        exchange.packets += 1
        if sent:
            exchange.up += len(frame)
        else:
            exchange.down += len(frame)
        if data:
            exchange.answered = when
            head = self._head(connection, data, sent=sent, starts=starts)
            exchange.http += head
            exchange.body += len(data) - head

    def _head(self, connection: Connection, data: bytes, *, sent: bool, starts: bool) -> int:
        """How many of the bytes are HTTP headers."""
        way = (connection, sent)
        if starts or (not sent and data.startswith(b"HTTP/1.1 ")):
            self._in_head[way] = True
        if not self._in_head.get(way, False):
            return 0
        place = data.find(_END)
        if place < 0:
            return len(data)
        self._in_head[way] = False
        return place + len(_END)


def _segment(frame: bytes, *, sent: bool) -> tuple[Connection, bytes] | None:
    """The connection and the data of a TCP segment over IPv4."""
    if frame[12:14] != _IPV4 or len(frame) < _ETHERNET + 40:
        return None
    ip = _ETHERNET
    total = int.from_bytes(frame[ip + 2 : ip + 4], "big")
    if frame[ip + 9] != _TCP:
        return None
    tcp = ip + 4 * (frame[ip] & 15)
    ports = struct.unpack_from(">HH", frame, tcp)
    data = frame[tcp + 4 * (frame[tcp + 12] >> 4) : ip + total]
    return (ports if sent else ports[::-1]), data


def read(path: Path) -> list[Exchange]:
    """The exchanges that ``capture`` wrote."""
    return [Exchange(**json.loads(line)) for line in path.read_text().splitlines()]


def by_round(exchanges: list[Exchange]) -> dict[str, Any]:
    """Means over a client's rounds, each from one reply (push-messages) to the next.

    A server's question whether a client is idle, and its answer, belong to the round that they fall
    into.

    Returns:
        ``requests``: by path, bytes as in Exchange and ``count``; ``seconds``: ``push`` of a
        reply, ``wait`` for the next message, ``pull`` of it, ``work`` until the next reply.
    """
    places = _replies(exchanges)
    rounds = [exchanges[first:last] for first, last in pairwise(places)]
    if not rounds:
        raise ValueError("a trace without two rounds")
    keys = ("up", "down", "packets", "http", "body")
    requests: dict[str, dict[str, float]] = {}
    for exchange in (exchange for round_ in rounds for exchange in round_):
        name = exchange.path.rpartition("/")[2]
        sums = requests.setdefault(name, dict.fromkeys(("count", *keys), 0.0))
        sums["count"] += 1
        for key in keys:
            sums[key] += getattr(exchange, key)
    for sums in requests.values():
        sums |= {key: value / len(rounds) for key, value in sums.items()}
    phases = [
        _phases(_without_questions(round_), exchanges[last].began)
        for round_, last in zip(rounds, places[1:], strict=True)
    ]
    return {
        "requests": dict(sorted(requests.items())),
        "seconds": {key: mean(found[key] for found in phases) for key in phases[0]},
    }


def _replies(exchanges: list[Exchange]) -> list[int]:
    """Where rounds begin: at a reply from which on a model was sent and another fetched."""
    places = [n for n, found in enumerate(exchanges) if found.path.endswith("push-messages")]
    begins = places[:1]
    for place in places[1:]:
        since = exchanges[begins[-1] : place]
        if all(len(_of(since, name)) >= _OBJECTS for name in ("push-object", "pull-object")):
            begins.append(place)
    return begins


def _without_questions(round_: list[Exchange]) -> list[Exchange]:
    """A round without the objects of questions: two before each further reply, and two after it."""
    further = [n for n, found in enumerate(round_) if found.path.endswith("push-messages")][1:]
    gone: set[int] = set()
    for place in further:
        fetched = [n for n in range(place) if round_[n].path.endswith("pull-object")]
        sent = [n for n in range(place, len(round_)) if round_[n].path.endswith("push-object")]
        gone |= {*fetched[-_OF_QUESTION:], *sent[:_OF_QUESTION]}
    return [found for n, found in enumerate(round_) if n not in gone]


def _phases(round_: list[Exchange], end: float) -> dict[str, float]:
    pushed = max(found.answered for found in _of(round_, "push-object"))
    asked = _of(round_, "pull-object")[0].began
    pulled = max(found.answered for found in _of(round_, "pull-object"))
    return {
        "push": pushed - round_[0].began,
        "wait": asked - pushed,
        "pull": pulled - asked,
        "work": end - pulled,
    }


def _of(round_: list[Exchange], name: str) -> list[Exchange]:
    return [found for found in round_ if found.path.endswith(name)]


def capture(interface: str, out: Path) -> None:
    """Trace an interface of this network namespace until SIGTERM, then write JSON lines."""
    trace, going = Trace(), True

    def stop(*_: object) -> None:
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, stop)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL)) as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        raw.bind((interface, 0))
        raw.settimeout(0.2)
        print("ready", flush=True)
        while going:
            try:
                frame, (_, _, kind, *_rest) = raw.recvfrom(65536)
            except TimeoutError:
                continue
            trace.add(frame, sent=kind == _OUTGOING, when=time.monotonic())
    out.write_text("".join(json.dumps(asdict(found)) + "\n" for found in trace.exchanges))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m simulations.studies.trace INTERFACE FILE (until SIGTERM; root)")
    capture(sys.argv[1], Path(sys.argv[2]))
