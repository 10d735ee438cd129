"""A slow link between two network namespaces: a rate by ``tc``, and a delay by a relay in here.

Kernels without netem cannot delay packets. Two TAP devices stand for the ends of a cable; what one
end sends, this process reads, holds and writes to the other. Needs root and iproute2.
"""

import fcntl
import heapq
import os
import select
import struct
import threading
import time
from dataclasses import dataclass

_TUN = "/dev/net/tun"
_TUNSETIFF, _TAP, _NO_INFO = 0x400454CA, 0x0002, 0x1000
_FRAME = 65536
_BURST, _QUEUE = "4kb", "400ms"  # a bucket of two packets; what waits longer is dropped


@dataclass(frozen=True, slots=True)
class Link:
    """``rate`` each way, as ``tc`` writes it (1mbit), and ``delay`` each way in seconds."""

    rate: str
    delay: float

    def shaping(self, device: str) -> list[str]:
        """Arguments for ``tc`` that limit what a device sends."""
        bucket = ["rate", self.rate, "burst", _BURST, "latency", _QUEUE]
        return ["qdisc", "add", "dev", device, "root", "tbf", *bucket]


def open_tap(name: str) -> int:
    """A new TAP device in this namespace, as a file of Ethernet frames; closing removes it.

    It may be moved to another namespace and renamed afterwards.
    """
    device = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _NO_INFO))
    except OSError:
        os.close(device)
        raise
    return device


class Relay(threading.Thread):
    """Passes frames between two TAP devices, each ``delay`` seconds after it was sent."""

    def __init__(self, one: int, other: int, delay: float) -> None:
        super().__init__(daemon=True)
        self._other = {one: other, other: one}
        self._delay = delay
        self._waiting: list[tuple[float, int, int, bytes]] = []
        self._count = 0
        self._ended, self._end = os.pipe()

    def run(self) -> None:
        while True:
            due = self._waiting[0][0] - time.monotonic() if self._waiting else None
            ready, _, _ = select.select(
                [*self._other, self._ended], [], [], None if due is None else max(0.0, due)
            )
            if self._ended in ready:
                return
            for device in ready:
                self._take(device)
            self._pass()

    def stop(self) -> None:
        """End the thread and close the devices."""
        os.write(self._end, b"x")
        self.join()
        for device in (*self._other, self._ended, self._end):
            os.close(device)

    def _take(self, device: int) -> None:
        try:
            frame = os.read(device, _FRAME)
        except BlockingIOError:
            return
        self._count += 1  # frames of one moment keep their order
        due = time.monotonic() + self._delay
        heapq.heappush(self._waiting, (due, self._count, self._other[device], frame))

    def _pass(self) -> None:
        while self._waiting and self._waiting[0][0] <= time.monotonic():
            _, _, device, frame = heapq.heappop(self._waiting)
            try:
                os.write(device, frame)
            except OSError:  # the other end is down; a cable loses the frame, too
                continue
