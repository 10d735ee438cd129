"""Several hosts on one machine: network namespaces, joined by a bridge in one of its own.

Needs root, iproute2 and ethtool.
"""

import itertools
import os
import subprocess

from simulations.command import StudyError
from simulations.studies.slow_link import Link, Relay, open_tap

_numbers = itertools.count()


class Network:
    """Namespaces ``server`` and ``client-0`` and on, each with an eth0 on one bridge.

    With ``link``, each client is behind a slow link of its own. With ``timestamps`` false, the
    server does not agree to TCP timestamps, so that nobody uses them. With ``merging``, hosts merge
    segments that arrive together (GRO) and acknowledge them together; each is still one frame to
    the counters, as offloads of the sender are always off.
    """

    def __init__(
        self,
        clients: int,
        *,
        link: Link | None = None,
        timestamps: bool = True,
        merging: bool = False,
    ) -> None:
        number = next(_numbers)
        self.prefix = f"csg{os.getpid()}-{number}-" if number else f"csg{os.getpid()}-"
        self.hosts = ["server", *(f"client-{n}" for n in range(clients))]
        self._link, self._timestamps, self._merging = link, timestamps, merging
        self._made: list[str] = []
        self._relays: list[Relay] = []

    def __enter__(self) -> "Network":
        try:
            self._add("switch")
            switch = self.prefix + "switch"
            _ip("-n", switch, "link", "add", "br0", "type", "bridge")
            _ip("-n", switch, "link", "set", "br0", "up")
            for number, host in enumerate(self.hosts, start=1):
                self._join(host, switch, f"p{number}")
            if not self._timestamps:
                setting = "echo 0 > /proc/sys/net/ipv4/tcp_timestamps"
                _run(*self.inside("server"), "sh", "-c", setting)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for relay in self._relays:
            relay.stop()
        while self._made:
            subprocess.run(["ip", "netns", "del", self._made.pop()], check=False)

    def address(self, host: str) -> str:
        """The IPv4 address of a host."""
        return f"10.77.0.{self.hosts.index(host) + 1}"

    def inside(self, host: str) -> list[str]:
        """What to put before a command to run it on a host."""
        return ["ip", "netns", "exec", self.prefix + host]

    def cut(self, host: str) -> None:
        """Pull a host's cable: what it sends and is sent is lost, and nobody is told."""
        self._switch(host, "down")

    def restore(self, host: str) -> None:
        """Put the cable back."""
        self._switch(host, "up")

    def _switch(self, host: str, state: str) -> None:
        port = f"p{self.hosts.index(host) + 1}"
        _ip("-n", self.prefix + "switch", "link", "set", port, state)

    def _add(self, host: str) -> None:
        _ip("netns", "add", self.prefix + host)
        self._made.append(self.prefix + host)

    def _join(self, host: str, switch: str, port: str) -> None:
        """Give a host its eth0, and the switch the other end."""
        self._add(host)
        name = self.prefix + host
        if self._link is None or host == "server":
            pair = ["link", "add", "eth0", "netns", name, "type", "veth", "peer", "name"]
            _ip(*pair, port, "netns", switch)
        else:
            self._slow(self._link, name, switch, port)
        _ip("-n", switch, "link", "set", port, "master", "br0", "up")
        _ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "set", "eth0", "up")
        for where, device in ((name, "eth0"), (switch, port)):
            merge = "on" if self._merging and device == "eth0" else "off"
            offloads = ["tso", "off", "gso", "off", "gro", merge]
            _run("ip", "netns", "exec", where, "ethtool", "-K", device, *offloads)

    def _slow(self, link: Link, name: str, switch: str, port: str) -> None:
        ends: list[int] = []
        for where, device in ((name, "eth0"), (switch, port)):
            here = f"t{os.getpid()}{'abcdefghij'[len(ends)]}"
            ends.append(open_tap(here))
            _ip("link", "set", here, "netns", where, "name", device)
            _run("tc", "-n", where, *link.shaping(device))
        self._relays.append(Relay(ends[0], ends[1], link.delay))
        self._relays[-1].start()


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        raise StudyError(
            f"{' '.join(command)}: {reason.strip()} (it needs root and iproute2)"
        ) from error
