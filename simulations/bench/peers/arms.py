"""What is compared, and one measurement of one arm in processes of its own."""

import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from federation.recipe import Recipe
from server.record import RunFolder
from simulations.bench.measured import Measured, measured
from simulations.bench.peers.environments import (
    BLAZEFL,
    FEDLAB,
    FLOWER,
    OWN,
    PFL,
    Environment,
    interpreter_of,
    surroundings,
)
from simulations.bench.runs import report_times, round_seconds
from simulations.command import StudyError
from simulations.recipe_names import set_options

LIMIT_S = 3600.0  # of an arm
BARE = "bare"  # no simulator: what a round cannot be faster than
BASE = "ours-fp32"  # what others are compared with: their precision, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Ours with ``settings`` of the recipe, or a peer's ``script`` with its arguments.

    ``says`` is how a reader would call it.
    """

    says: str
    settings: tuple[str, ...] = ()
    environment: Environment = OWN
    script: tuple[str, ...] = ()


ARMS = {
    BASE: Arm(says="csg-fl, fp32", settings=("train.precision=fp32",)),
    "ours": Arm(says="csg-fl, precision auto", settings=("train.precision=auto",)),
    "ours-workers": Arm(
        says="csg-fl, workers, precision auto",
        settings=("train.precision=auto", "run.workers=0"),
    ),
    "ours-csg": Arm(
        says="csg-fl, generated kernels, precision auto",
        settings=(
            "train.precision=auto",
            "model.parametrization=csg",
            "model.slice_size=12",
            "model.code_size=72",
        ),
    ),
    BARE: Arm(
        says="bare steps of the dense network, a process a core, precision auto",
        script=("run_bare",),
    ),
    "flower-ray": Arm(
        says="Flower on Ray, a CPU a client", environment=FLOWER, script=("run_flower", "1")
    ),
    "flower-ray-last": Arm(
        says="Flower on Ray, channels last",
        environment=FLOWER,
        script=("run_flower", "1", "--channels-last"),
    ),
    "flower-ray-bf16": Arm(
        says="Flower on Ray, channels last, bf16",
        environment=FLOWER,
        script=("run_flower", "1", "--channels-last", "--bf16"),
    ),
    "blazefl": Arm(says="BlazeFL, one by one", environment=BLAZEFL, script=("run_blazefl",)),
    "blazefl-pool": Arm(
        says="BlazeFL, processes", environment=BLAZEFL, script=("run_blazefl", "--processes")
    ),
    "pfl": Arm(says="pfl", environment=PFL, script=("run_pfl",)),
    "fedlab": Arm(says="FedLab", environment=FEDLAB, script=("run_fedlab",)),
}

# Two clients at once, with a thread each; each differs from the one before in one thing.
FROM_FLOWER = ("flower-ray", "flower-ray-last", "flower-ray-bf16", "ours-workers")
STEPS = ("the images' format in memory", "precision", "the engine and what else a client does")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One run of an arm: seconds, megabytes, accuracy.

    ``round`` is the median after the first, ``begin`` all before the first.
    """

    round: float
    wall: float
    begin: float
    peak_mb: float
    test_accuracy: float | None
    rounds: list[float]

    def row(self) -> dict[str, object]:
        """For the record."""
        return asdict(self)


def run(name: str, work: Path, recipe: Recipe, environments: Path) -> Found:
    """Run an arm, to its end.

    Raises:
        StudyError: if it does not install, run or do all its rounds.
    """
    arm = ARMS[name]
    python = interpreter_of(arm.environment, environments)
    with tempfile.TemporaryDirectory(prefix="peers-") as place:
        scratch = Path(place)
        errors = scratch / "errors"
        # Ray's sockets and what Flower keeps; their paths must be short
        more = {"FLWR_HOME": str(scratch / "flwr"), "RAY_TMPDIR": str(scratch / "ray")}
        (scratch / "ray").mkdir()
        if arm.script:
            script, *arguments = arm.script
            command = ["-m", f"simulations.bench.peers.{script}", str(work), *arguments]
        else:
            command = _our_command(arm, recipe, scratch / "run")
        done = measured(
            command,
            interpreter=python,
            environment=surroundings() | more,
            errors=errors,
            limit=LIMIT_S,
        )
        if done.status and done.seconds > LIMIT_S:
            raise StudyError(f"{name} was ended after {LIMIT_S:g} s; ask for fewer --images")
        if done.status:
            raise StudyError(f"{name} ended with status {done.status}: {_last(errors)}")
        if arm.script:
            return _of_lines(name, done, recipe.train.rounds)
        rows = RunFolder(scratch / "run").rows()
        if len(rows) != recipe.train.rounds:
            raise StudyError(f"{name} did {len(rows)} of {recipe.train.rounds} rounds")
    seconds = round_seconds(done, rows)  # from report to report, as the peers' are
    return _found(done, seconds, report_times(done, rows)[0], rows[-1].test_accuracy or 0.0)


def _our_command(arm: Arm, recipe: Recipe, folder: Path) -> list[str]:
    path = folder.with_suffix(".toml")
    path.write_text(recipe.to_toml())
    settings = set_options((*arm.settings, f"run.dir={folder}"))
    return ["-m", "simulations.cli", "run", str(path), *settings]


def _of_lines(name: str, done: Measured, rounds: int) -> Found:
    """What a peer's script has reported: a JSON line a round."""
    reports = [(at, json.loads(line)) for at, line in done.lines() if line.startswith('{"round"')]
    if [row["round"] for _, row in reports] != list(range(1, rounds + 1)):
        raise StudyError(f"{name} reported {len(reports)} of {rounds} rounds")
    seconds = [row["seconds"] for _, row in reports]
    return _found(done, seconds, reports[0][0], reports[-1][1]["test_accuracy"])


def _found(done: Measured, seconds: Sequence[float], first: float, accuracy: float | None) -> Found:
    """``first`` is when the first round was reported, in seconds from the start."""
    return Found(
        round=statistics.median(seconds[1:] or seconds),
        wall=done.seconds,
        begin=first - seconds[0],
        peak_mb=done.peak_bytes / 1e6,
        test_accuracy=accuracy,
        rounds=list(seconds),
    )


def _last(errors: Path) -> str:
    lines = [line.strip() for line in errors.read_text().splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
