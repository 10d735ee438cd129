"""Bytes at the network interface, per client and round: plain Flower, dense, generated, compressed.

One server and two clients, each in a network namespace of its own, joined by a bridge; the kernel
counts what crosses the interfaces of the server and of the clients, offloads switched off. All arms
exchange ResNet-56, the trained ones on digits, one of them on CIFAR-10 where ``--data`` names it.
With ``--link``, each client is behind a slow link of its own. The tables go into docs/wire.md.
Needs root, iproute2, ethtool and nginx. Examples:

    python -m simulations.studies.wire --data cifar10/
    python -m simulations.studies.wire --link 1mbit --delay 50
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from server.outcome import RunError
from simulations import command
from simulations.command import StudyError, several
from simulations.machine import machine
from simulations.pages import fill, keep_json
from simulations.studies import trace
from simulations.studies.deployment import SERVER, SUPERLINK, Deployment
from simulations.studies.network import Network
from simulations.studies.slow_link import Link
from simulations.studies.wire_runs import CLIENTS, SETTINGS, MeasureError, ours, plain
from simulations.studies.wire_tables import FILE, PAGE, RESULTS, tables

_FAILED = Path("runs/wire-failed")


@dataclass(frozen=True, slots=True)
class Arm:
    """Settings over a recipe, or none for the plain app; and where the arm is measured."""

    settings: list[str] | None
    recipe: str = "cifar10-resnet56"
    timestamps: bool = True  # of TCP
    merging: bool = False  # of received segments, by hosts
    slow: bool = False  # also on a slow link
    over: Literal["HTTP/1.1", "TLS", "HTTP/2"] = "HTTP/1.1"  # HTTP/2 is over TLS as well
    images: int | None = None  # of CIFAR-10, trained as the recipe says; none: a little on digits

    @property
    def rounds(self) -> int:
        """Of which the first does not count."""
        return 20 if self.images else 5


def _lossy(line: str) -> list[str]:
    return [f"wire.uplink={line}", f"wire.downlink={line}", "wire.deltas=true"]


def _deployed(settings: list[str], recipe: str = "cifar10-resnet56") -> Arm:
    """As docker/compose.yml has it, whose proxy leaves timestamps out."""
    return Arm(settings, recipe, over="HTTP/2", timestamps=False)


_LOSSLESS = ["wire.uplink=fp32z", "wire.downlink=fp32z"]
_DENSE = "model.parametrization=dense"
ARMS = {
    "plain Flower": Arm(None, slow=True),
    "dense": Arm([_DENSE], slow=True),
    "csg s=16 d=128": Arm(["model.slice_size=16", "model.code_size=128"], slow=True),
    "csg s=12 d=72": Arm([], slow=True),
    "csg s=12 d=72, GRO": Arm([], merging=True),
    "csg s=12 d=72, GRO, no timestamps": Arm([], timestamps=False, merging=True),
    "dense, fp32z": Arm([_DENSE, *_LOSSLESS]),
    "csg s=12 d=72, fp32z": Arm(_LOSSLESS, slow=True),
    "dense, ecsq": Arm([_DENSE, *_lossy("ecsq")]),
    "csg s=12 d=72, ecsq": Arm(_lossy("ecsq"), slow=True),
    "csg s=12 d=72, ecsq steps 3, 4": Arm(_lossy("ecsq:step=3,codes=4")),
    "plain Flower, TLS": Arm(None, over="TLS"),
    "csg s=12 d=72, ecsq, TLS": Arm(_lossy("ecsq"), over="TLS"),
    "csg s=12 d=72, ecsq, HTTP/2": _deployed(_lossy("ecsq")),
    "csg s=12 d=72, ecsq codes 1.5, HTTP/2": _deployed(
        ["model.code_size=72", "wire.predict=false", *_lossy("ecsq:codes=1.5")],
        "cifar10-compressed",
    ),
    "csg s=12 d=72, ecsq steps 3, 4, HTTP/2": _deployed(_lossy("ecsq:step=3,codes=4")),
    "dense, HTTP/2": _deployed([_DENSE]),
    "cifar10-compressed, HTTP/2": _deployed([], "cifar10-compressed"),
    "cifar10-compressed-wide, HTTP/2": _deployed([], "cifar10-compressed-wide"),
    "cifar10-compressed, CIFAR-10, HTTP/2": replace(
        _deployed([], "cifar10-compressed"), images=10_000
    ),
}
_DIGITS = ["data.name=digits", "train.local_epochs=1", "train.lr=0.01"]


def measure(arm: Arm, rounds: int, link: Link | None, data: str | None = None) -> dict[str, Any]:
    """Bytes and seconds per client and round, the first one not counted; ``data`` is CIFAR-10's.

    Raises:
        MeasureError: if the arm's run does not end well; its logs are kept.
    """
    network = Network(CLIENTS, link=link, timestamps=arm.timestamps, merging=arm.merging)
    parts = [SUPERLINK, SERVER, *network.hosts[1:]]
    traced = arm.over == "HTTP/1.1"  # no requests can be read in TLS
    settings = {} if arm.settings is None else SETTINGS
    with tempfile.TemporaryDirectory(prefix="wire-csg-") as place:
        scratch = Path(place)
        deployment = Deployment(
            scratch,
            clients=CLIENTS,
            secure=arm.over != "HTTP/1.1",
            http2=arm.over == "HTTP/2",
            network=network,
            lasting=False,
            environments=dict.fromkeys(parts, settings),
        )
        try:
            tracing = _traced(network, scratch / "trace") if traced else nullcontext()
            with deployment, tracing:
                if arm.settings is None:
                    found = plain(deployment, rounds)
                else:
                    on = (
                        [f"data.dir={data}", f"data.images={arm.images}"] if arm.images else _DIGITS
                    )
                    found = ours(deployment, rounds, arm.recipe, [*on, *arm.settings])
        except (RunError, TimeoutError) as error:
            shutil.rmtree(_FAILED, ignore_errors=True)
            shutil.copytree(scratch, _FAILED)
            raise MeasureError(f"{error}; see {_FAILED}/logs") from error
        by_round = trace.by_round(trace.read(scratch / "trace")) if traced else {}
        return {**found, "round": by_round}


@contextmanager
def _traced(network: Network, out: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "simulations.studies.trace", "eth0", str(out)]
    inside = network.inside("client-0")
    with subprocess.Popen([*inside, *command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise StudyError("the packets of client-0 cannot be read (it needs root)")
        try:
            yield
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    options = _options()
    link = Link(options.link, options.delay / 1e3) if options.link else None
    known = [
        name
        for name, arm in ARMS.items()
        if (arm.slow or not link) and (options.data or not arm.images)
    ]
    slow = RESULTS / f"resnet56-{options.link}-{options.delay:g}ms.json"
    path = slow if link else FILE
    content = json.loads(path.read_text()) if path.exists() else {"results": {}}
    for name in known if options.arms is None else options.arms:
        began, arm = time.monotonic(), ARMS[name]
        if arm.images and not options.data:
            raise StudyError(f"{name}: needs CIFAR-10; name its folder with --data")
        rounds = options.rounds or (3 if link else arm.rounds)
        try:
            found = measure(arm, rounds, link, options.data)
            about = {"rounds": rounds, "date": time.strftime("%Y-%m-%d"), "machine": machine()}
            about |= {"data": options.copy} if arm.images else {}
            content["results"][name] = {"arm": asdict(arm), **about, **found}
        except MeasureError as error:
            raise StudyError(f"{name}: {error}") from error
        print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr)
        keep_json(path, content)
    kept = content["results"]
    if not kept:
        raise StudyError(f"{path} holds no results yet; leave --arms out to measure")
    ordered = {name: kept[name] for name in ARMS if name in kept}
    for name, result in ordered.items():
        if result.get("arm") != asdict(ARMS[name]):
            raise StudyError(
                f"{path} has {name!r} of other settings; measure it with --arms {name!r}"
            )
    found = tables({**content, "results": ordered}, link=link is not None)
    print("\n\n".join(found.values()))
    fill(found, PAGE)


def _options() -> argparse.Namespace:
    parser = command.parser("simulations.studies.wire", __doc__)
    parser.add_argument(
        "--rounds",
        type=several,
        help="of which the first does not count; 5, of CIFAR-10 20, on a link 3",
    )
    parser.add_argument("--data", type=os.path.abspath, metavar="DIR",
                        help="CIFAR-10, for the arm that trains on it")  # fmt: skip
    parser.add_argument("--copy", default="CIFAR-10", help="which copy of the data this is")
    parser.add_argument("--link", metavar="RATE", help="of each client, as 1mbit; none: no limit")
    parser.add_argument("--delay", type=float, default=50.0, metavar="MS",
                        help="of the link, each way (50)")  # fmt: skip
    parser.add_argument("--arms", nargs="*", choices=ARMS,
                        help="without a name: only print what was measured before")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    command.run(main)
