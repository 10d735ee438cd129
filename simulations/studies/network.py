"""Several hosts on one machine: network namespaces, joined by a bridge in one of its own.

Needs root, iproute2 and ethtool.
"""

import itertools
import os
import subprocess
import sys

_numbers = itertools.count()


class Network:
    """Namespaces ``server`` and ``client-0`` and on, each with an eth0 on one bridge."""

    def __init__(self, clients: int) -> None:
        number = next(_numbers)
        self.prefix = f"csg{os.getpid()}-{number}-" if number else f"csg{os.getpid()}-"
        self.hosts = ["server", *(f"client-{n}" for n in range(clients))]
        self._made: list[str] = []

    def __enter__(self) -> "Network":
        try:
            self._add("switch")
            switch = self.prefix + "switch"
            _ip("-n", switch, "link", "add", "br0", "type", "bridge")
            _ip("-n", switch, "link", "set", "br0", "up")
            for number, host in enumerate(self.hosts, start=1):
                self._add(host)
                name, port = self.prefix + host, f"p{number}"
                pair = ["link", "add", "eth0", "netns", name, "type", "veth", "peer", "name"]
                _ip(*pair, port, "netns", switch)
                _ip("-n", switch, "link", "set", port, "master", "br0", "up")
                _ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
                _ip("-n", name, "link", "set", "lo", "up")
                _ip("-n", name, "link", "set", "eth0", "up")
                for where, link in ((name, "eth0"), (switch, port)):
                    offloads = ["tso", "off", "gso", "off", "gro", "off"]
                    _run("ip", "netns", "exec", where, "ethtool", "-K", link, *offloads)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
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
        self._link(host, "down")

    def restore(self, host: str) -> None:
        """Put the cable back."""
        self._link(host, "up")

    def _link(self, host: str, state: str) -> None:
        port = f"p{self.hosts.index(host) + 1}"
        _ip("-n", self.prefix + "switch", "link", "set", port, state)

    def _add(self, host: str) -> None:
        _ip("netns", "add", self.prefix + host)
        self._made.append(self.prefix + host)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        sys.exit(f"network: {' '.join(command)}: {reason.strip()} (it needs root and iproute2)")
