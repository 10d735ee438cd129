"""A slow link takes the time that its rate and its delay say, and no bytes are lost on it."""

import os
import shutil
import subprocess
import sys

import pytest

from simulations.studies.network import Network
from simulations.studies.slow_link import Link

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("tc") or not os.path.exists("/dev/net/tun"),
    reason="a slow link needs root, iproute2 and /dev/net/tun, as in .ci/run",
)

# Prints seconds from the connection's start to the first byte back, and to the end of the data.
SERVER = """
import socket, sys
with socket.create_server(("0.0.0.0", 9000)) as server:
    print("ready", flush=True)
    peer, _ = server.accept()
    with peer:
        peer.sendall(b"x")
        received = 0
        while found := peer.recv(65536):
            received += len(found)
        peer.sendall(str(received).encode())
"""
CLIENT = """
import socket, sys, time
began = time.monotonic()
with socket.create_connection((sys.argv[1], 9000)) as peer:
    peer.recv(1)
    first = time.monotonic() - began
    began = time.monotonic()
    peer.sendall(bytes(int(sys.argv[2])))
    peer.shutdown(socket.SHUT_WR)
    received = int(peer.recv(100))
    print(first, time.monotonic() - began, received)
"""


def _transfer(network, size):
    def start(host, *command):
        return subprocess.Popen([*network.inside(host), sys.executable, "-c", *command],
                                stdout=subprocess.PIPE, text=True)  # fmt: skip

    with start("server", SERVER) as server:
        assert server.stdout.readline() == "ready\n"
        address = network.address("server")
        with start("client-0", CLIENT, address, str(size)) as client:
            return [float(word) for word in client.communicate(timeout=60)[0].split()]


def test_a_transfer_takes_the_time_it_must():
    size, rate, delay = 100_000, 1e6, 0.05
    with Network(1, link=Link("1mbit", delay)) as network:
        first, seconds, received = _transfer(network, size)
    assert received == size
    assert 4 * delay <= first < 4 * delay + 3.0  # there and back, twice
    least = 8 * (1.04 * size - 4096) / rate + 2 * delay  # headers are 4 %; a burst is free
    assert least <= seconds < 10


def test_without_a_link_nothing_is_slow():
    with Network(1, timestamps=False) as network:
        transfers = [_transfer(network, 100_000) for _ in range(3)]
        script = "print(open('/proc/sys/net/ipv4/tcp_timestamps').read().strip())"
        command = [*network.inside("server"), sys.executable, "-c", script]
        assert subprocess.run(command, capture_output=True, text=True).stdout == "0\n"
    assert [received for _, _, received in transfers] == [100_000] * 3
    quickest = min(first + seconds for first, seconds, _ in transfers)
    assert quickest < 0.8, "a link of 1 Mbit/s takes longer, however idle the machine"


def test_a_network_leaves_nothing_behind():
    with Network(1, link=Link("8mbit", 0.01)) as network:
        made = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
        assert made.count(network.prefix) == 3
    left = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert network.prefix not in left
    links = subprocess.run(["ip", "link"], capture_output=True, text=True, check=True).stdout
    assert f"t{os.getpid()}" not in links
