"""Fuzz the doors, guided by coverage: ``python -m tests.fuzz [DOOR ...] --seconds 60``.

What is found lands in ``tests/fuzz/found/``; mend it, then move the file to ``corpus/DOOR``, where
the tests try it ever after.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
NAMES = ("server", "client", "messages")
_MEMORY_MB = 4096  # of a process; atheris itself keeps some hundred bytes of every run
_INPUT_S = 5  # of one input; it takes milliseconds


def main() -> int:
    """Fuzz each door for its share of the time; 0 if nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.fuzz")
    parser.add_argument("doors", nargs="*", metavar="DOOR", default=NAMES, help=", ".join(NAMES))
    parser.add_argument("--seconds", type=int, default=60, help="for all doors together")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations")
    asked = parser.parse_args()
    if unknown := set(asked.doors) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: use {', '.join(NAMES)}")
    share = max(1, asked.seconds // len(asked.doors))
    return max([_in_process_of_its_own(door, share, asked.seed) for door in asked.doors])


def _in_process_of_its_own(door: str, seconds: int, seed: int) -> int:
    """libFuzzer ends the process that it runs in."""
    found = HERE / "found"
    found.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as grown:  # new inputs go here, not into the repository
        print(f"{door}: {seconds} s", flush=True)
        command = [
            sys.executable, "-c", f"from tests.fuzz.__main__ import fuzz; fuzz({door!r})",
            grown, str(HERE / "corpus" / door), f"-max_total_time={seconds}", f"-seed={seed}",
            f"-timeout={_INPUT_S}", f"-rss_limit_mb={_MEMORY_MB}", "-max_len=2048",
            "-len_control=0", "-keep_seed=1", "-reduce_inputs=0", "-use_value_profile=1",
            "-print_final_stats=1", f"-artifact_prefix={found}/{door}-",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        return subprocess.run(command, env=environment, cwd=HERE.parents[1], check=False).returncode


def fuzz(door: str) -> None:
    """Run libFuzzer in this process, on its arguments."""
    import atheris

    # numpy and flwr are used everywhere and are not what is fuzzed
    with atheris.instrument_imports(include=["csg_core", "federation.messages", "tests.fuzz"]):
        from tests.fuzz.doors import DOORS
    atheris.Setup(sys.argv, DOORS[door])
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
