"""Many rounds of a deployed run under faults at random, and the memory of every part.

Three clients, TLS, node authentication, a tiny model. Every few rounds, drawn from the seed, a
client is killed or its cable pulled, or the server side or the SuperLink is killed; what ends is
started again, and the run resumed. At the end every round has to be recorded once, and no part's
memory may have grown by 10 MB in 100 rounds. Needs root, iproute2, ethtool and nginx. Example:

    python -m simulations.studies.soak --rounds 200 --seed 0
"""

import argparse
import json
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from server.outcome import RunError
from server.record import RunFolder
from server.signals import terminate_as_interrupt
from simulations import command
from simulations.command import positive
from simulations.machine import machine
from simulations.pages import keep_json
from simulations.recipe_names import set_options
from simulations.studies.deployment import SERVER, SUPERLINK, Deployment

RESULTS = Path(__file__).parent / "soak"
FAULTS = ("client killed", "client cut", "server side killed", "SuperLink killed")
_CLIENTS, _COHORT = 3, 2
_EVERY = (5, 9)  # rounds between faults
_CUT_S = (5.0, 15.0)
_DOWN_S = (1.0, 8.0)  # of a SuperLink
_WARM = 3  # rounds after a start that do not count
_LEAST = 8  # rounds of a fit
_STUCK_S = 900.0  # without a round
_MOST_GROWTH = 1e5  # bytes a round
_JUDGED = 100  # rounds from which growth is told from noise
_RECIPE = [
    *("model.width=0.25", "model.slice_size=4", "model.code_size=12", "train.precision=fp32"),
    *("train.batch_size=128", "run.eval_every=10", "run.dir=run", f"data.clients={_CLIENTS}"),
    *(f"train.clients_per_round={_COHORT}", "server.min_clients=1", "server.round_timeout=300"),
    *("wire.uplink=ecsq", "wire.downlink=ecsq", "wire.deltas=true"),
]

Sample = dict[str, Any]


class Soak:
    """One run under faults; ``faults`` are those done, ``samples`` the memory after each round."""

    def __init__(self, deployment: Deployment, rounds: int, seed: int) -> None:
        self.deployment, self.rounds = deployment, rounds
        self.folder = RunFolder(deployment.folder / "run")
        self.faults: list[dict[str, Any]] = []
        self.samples: list[Sample] = []
        self.resumed = 0
        self._draw = random.Random(seed)
        self._csg: subprocess.Popen[str] | None = None
        self._restores: dict[str, float] = {}  # cut clients, and when their cables are put back

    def run(self) -> None:
        """Every round, whatever happens.

        Raises:
            RunError: if the run makes no progress.
        """
        settings = set_options([*_RECIPE, f"train.rounds={self.rounds}"])
        self._start("run", "demo", *self.deployment.settings, *settings)
        done, moved, due = 0, time.monotonic(), self._next(0)
        while self._csg is not None and (self._csg.poll() is None or self._goes_on()):
            time.sleep(0.5)
            self._repair()
            rows = self.folder.rows()
            if len(rows) != done:
                done, moved = len(rows), time.monotonic()
                self._sample(done)
                print(f"round {done}, {rows[-1].seconds:.0f} s, failed {rows[-1].failed}" if rows
                      else "from the beginning", flush=True)  # fmt: skip
            if time.monotonic() - moved > _STUCK_S:
                raise RunError(f"no round since round {done}; see {self.deployment.folder}")
            if due <= done < self.rounds - 2:
                self._fault(done)
                due = self._next(done)

    def _start(self, *arguments: str) -> None:
        with (self.deployment.folder / "csg.log").open("a") as log:
            self._csg = self.deployment.csg(*arguments, log=log)

    def _goes_on(self) -> bool:
        """Resume a run that stopped short of its end."""
        assert self._csg is not None
        if self._csg.returncode == 0:
            return False
        self.resumed += 1
        if self.resumed > self.rounds // 4 + 4:
            raise RunError(f"resumed {self.resumed} times; see {self.deployment.folder}")
        print(f"resume (status {self._csg.returncode})", flush=True)
        self._repair()
        self.deployment.await_ready(SUPERLINK)
        self._start("resume", "run")
        return True

    def _next(self, done: int) -> int:
        return done + self._draw.randint(*_EVERY)

    def _fault(self, done: int) -> None:
        kind = self._draw.choice(FAULTS)
        client = self._draw.choice(self.deployment.clients)
        cut, down = self._draw.uniform(*_CUT_S), self._draw.uniform(*_DOWN_S)
        print(f"{kind} ({client})", flush=True)
        self.faults.append({"kind": kind, "after_round": done})
        if kind == "client killed":
            self.deployment.restart(client, wait=False)
        elif kind == "client cut":
            self.deployment.cut(client)
            self._restores[client] = time.monotonic() + cut
        elif kind == "server side killed":
            self.deployment.restart(SERVER)
        else:
            self.deployment.kill(SUPERLINK)
            time.sleep(down)
            self.deployment.start(SUPERLINK)

    def _repair(self) -> None:
        for client, due in list(self._restores.items()):
            if time.monotonic() > due:
                self.deployment.restore(client)
                del self._restores[client]
        self.deployment.keep_up()

    def _sample(self, done: int) -> None:
        for of in self.deployment.memory():
            if not (of.name.startswith("client") and of.name.endswith("app")):  # of one round each
                self.samples.append({"round": done, "name": of.name, "process": of.process,
                                     "pss": of.pss, "anonymous": of.anonymous})  # fmt: skip


def growth(samples: Sequence[Sample], key: str) -> float | None:
    """Bytes a round, by one linear fit over all spans between restarts; None if all are short."""
    spans: dict[int, list[Sample]] = {}
    for sample in samples:
        spans.setdefault(sample["process"], []).append(sample)
    xx = xy = 0.0
    for span in spans.values():
        counted = span[_WARM:]
        if len(counted) < _LEAST:
            continue
        x = np.array([sample["round"] for sample in counted], float)
        y = np.array([sample[key] for sample in counted], float)
        xx += float(((x - x.mean()) ** 2).sum())
        xy += float(((x - x.mean()) * (y - y.mean())).sum())
    return xy / xx if xx else None


def summary(soak: Soak, seconds: float) -> dict[str, Any]:
    """What the study keeps."""
    names = sorted({sample["name"] for sample in soak.samples})
    rows = soak.folder.rows()
    memory = {}
    for name in names:
        of = [sample for sample in soak.samples if sample["name"] == name]
        memory[name] = {
            "largest": max(sample["pss"] for sample in of),
            "starts": len({sample["process"] for sample in of}),
            "growth": growth(of, "pss"),
            "growth_anonymous": growth(of, "anonymous"),
        }
    return {
        "rounds": [row.round for row in rows],
        "round_seconds": [round(row.seconds, 1) for row in rows],
        "failed": dict(Counter(why for row in rows for why in row.failed.values())),
        "clients_failed": sum(row.failures for row in rows),
        "outcome": soak.folder.summary().get("outcome"),
        "accuracy": rows[-1].test_accuracy,
        "faults": soak.faults,
        "resumed": soak.resumed,
        "seconds": round(seconds),
        "memory": memory,
        "samples": [list(sample.values()) for sample in soak.samples],
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def table(found: Mapping[str, Any]) -> str:
    """Markdown: memory by component."""
    lines = ["| component | starts | largest PSS MB | kB per 100 rounds | of it anonymous |",
             "| --- | --: | --: | --: | --: |"]  # fmt: skip

    def per_hundred(slope: float | None) -> str:
        return "too short" if slope is None else f"{100 * slope / 1e3:,.0f}"

    for name, of in found["memory"].items():
        lines.append(f"| {name} | {of['starts']} | {of['largest'] / 1e6:.0f} | "
                     f"{per_hundred(of['growth'])} | "
                     f"{per_hundred(of['growth_anonymous'])} |")  # fmt: skip
    return "\n".join(lines)


def soak(rounds: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run one, and check that nothing is lost.

    Raises:
        RunError: if the run did not end well, a round is not recorded once, or the memory of a
            part grows by more than 10 MB in 100 rounds.
    """
    began = time.monotonic()
    with Deployment(folder, clients=_CLIENTS, secure=True) as deployment:
        found = Soak(deployment, rounds, seed)
        with terminate_as_interrupt():
            found.run()
        kept = summary(found, time.monotonic() - began)
    if kept["outcome"] != "completed" or kept["rounds"] != list(range(1, rounds + 1)):
        raise RunError(f"{kept['outcome']}, with rounds {kept['rounds']}; see {folder}")
    grown = {name: of["growth"] for name, of in kept["memory"].items()
             if rounds >= _JUDGED and (of["growth"] or 0) > _MOST_GROWTH}  # fmt: skip
    if grown:
        raise RunError(f"bytes a round by which memory grows: {grown}; see {folder}")
    return kept


def main() -> None:
    options = _options()
    path = RESULTS / f"seed{options.seed}.json"
    if not options.show:
        folder = Path(tempfile.mkdtemp(prefix="soak-csg-"))
        print(f"everything lies in {folder}", flush=True)
        found = soak(options.rounds, options.seed, folder)
        keep_json(path, found, indent=None)
        shutil.rmtree(folder)
    found = json.loads(path.read_text())
    kinds = Counter(fault["kind"] for fault in found["faults"])
    print(f"{len(found['rounds'])} rounds in {found['seconds']} s, each recorded once; "
          f"{', '.join(f'{kind} {count}' for kind, count in sorted(kinds.items()))}; "
          f"resumed {found['resumed']} times")  # fmt: skip
    print(table(found))


def _options() -> argparse.Namespace:
    parser = command.parser("simulations.studies.soak", __doc__)
    parser.add_argument("--rounds", type=positive, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="only print what was kept before")
    return parser.parse_args()


if __name__ == "__main__":
    command.run(main)
