"""Network interfaces: bytes that crossed one, protocol and all, as the kernel counts them (Linux).

A counter is of everything that crosses the interface, whoever caused it. In a container, at the end
of a veth pair, that is the container; elsewhere it is the host, and the figure is called shared.
"""

import array
import fcntl
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_COUNTERS = Path("/proc/net/dev")  # of the network namespace of this process, as is all here
_ROUTES, _ROUTES6 = Path("/proc/net/route"), Path("/proc/net/ipv6_route")
_RECEIVED, _SENT = 0, 8  # columns
_OWN = ("veth", "macvlan", "ipvlan")  # drivers of interfaces that are made for one namespace
_ETHTOOL, _DRIVER_INFO, _INFO_BYTES = 0x8946, 3, 196  # SIOCETHTOOL, ETHTOOL_GDRVINFO


class InterfaceError(ValueError):
    """An interface that is not there; the message names it, and those that are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """An interface at one moment.

    Attributes:
        name: as eth0.
        shared: whether traffic of others than this container may be in its counters.
        received, sent: bytes since it came up.
    """

    name: str
    shared: bool
    received: int
    sent: int

    @classmethod
    def named(cls, name: str) -> Self | None:
        """The interface ``name``; of ``auto`` the one that leads out, of ``none`` none.

        Raises:
            InterfaceError: if there is no such interface here.
        """
        found = {"auto": _leading_out(), "none": None}.get(name, name)
        if found is None:
            return None
        received, sent = interface_bytes(found)
        return cls(name=found, shared=_driver(found) not in _OWN, received=received, sent=sent)


def interface_bytes(name: str) -> tuple[int, int]:
    """Bytes received and sent by an interface since it came up, whoever caused them.

    Raises:
        InterfaceError: if there is no such interface here.
    """
    found = _counters()
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise InterfaceError(f"interface {name!r} is not there; use auto, none or one of {known}")
    return found[name]


def _counters() -> dict[str, tuple[int, int]]:
    lines = _COUNTERS.read_text().splitlines()[2:] if _COUNTERS.exists() else []
    halves = (line.partition(":") for line in lines)
    fields = {before.strip(): after.split() for before, _, after in halves}
    return {name: (int(row[_RECEIVED]), int(row[_SENT])) for name, row in fields.items()}


def _leading_out() -> str | None:
    """The interface of the default route, else the only one but loopback that carried anything."""
    counters = _counters()
    # columns: interface, destination, gateway, flags, ..., mask; of IPv6 the name is the last
    for line in _lines(_ROUTES)[1:]:
        if line[1] == line[7] == "00000000" and line[0] != "lo":
            return line[0]
    for line in _lines(_ROUTES6):
        if set(line[0]) == {"0"} and line[1] == "00" and line[-1] != "lo":
            return line[-1]
    others = [name for name, counts in counters.items() if name != "lo" and any(counts)]
    return others[0] if len(others) == 1 else None


def _lines(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def _driver(name: str) -> str:
    """The kernel's name of the interface's kind, empty if it does not say."""
    info = array.array("B", struct.pack("I", _DRIVER_INFO).ljust(_INFO_BYTES, b"\0"))
    request = struct.pack("16sP", name.encode(), info.buffer_info()[0])
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _ETHTOOL, request.ljust(40, b"\0"))
    except OSError:
        return ""
    return bytes(info[4:36]).rstrip(b"\0").decode(errors="replace")
