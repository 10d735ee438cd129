"""What a simulated round costs, as ratios in one run, beside other simulators and on a GPU.

Each part keeps its figures, with machine and date, as JSON in ``simulations/bench/results/``, and
puts its tables into docs/speed.md. The part ``peers`` makes environments of some GB for other
simulators, in peers/ of the cache folder, the first time. Example:

    python -m simulations.bench --data cifar10/ --parts steps engines
"""

import argparse
import json
import sys
import time
import traceback
from typing import Any

from federation.sources import load_images
from server.outcome import RunError
from simulations import command
from simulations.bench import cohort, engines, growth, limits, overhead, server, steps
from simulations.bench.part import RESULTS, SPEED, Part
from simulations.bench.peers import side_by_side
from simulations.command import StudyError
from simulations.machine import commit, machine
from simulations.pages import README, fill, keep_json

PARTS: dict[str, Part] = {
    "steps": steps,
    "limits": limits,
    "overhead": overhead,
    "engines": engines,
    "growth": growth,
    "server": server,
    "peers": side_by_side,
    "cohort": cohort,
}


def main() -> None:
    options = _options()
    measured_on = commit()  # before a part's results change the tree
    if options.data is not None:
        load_images("cifar10", options.data, "test")  # before anything is measured
    failed: list[str] = []
    for name in options.parts or PARTS:
        part = PARTS[name]
        path = RESULTS / f"{name}.json"
        if options.show:
            if path.exists():
                show(name, json.loads(path.read_text()))
            else:
                print(f"{name}: {path.name} is not there; measure it first")
                failed += [name] if options.parts else []
            continue
        if part.NEEDS_IMAGES and options.data is None:
            print(f"{name}: needs CIFAR-10; name its folder with --data (make bench DATA=DIR)")
            failed.append(name)
            continue
        began = time.perf_counter()
        try:
            found = part.measure(options.data)
        except Exception as error:  # whatever it is, the other parts can be measured
            known = isinstance(error, (StudyError, RunError, OSError, ValueError))
            said = str(error) if known else traceback.format_exc()
            print(f"{name}: {said}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        if found is None:
            print(f"{name}: needs a GPU; what was measured on another machine is left as it is")
            failed += [name] if options.parts else []
            continue
        seconds = time.perf_counter() - began
        content = {
            "machine": machine(),
            "commit": measured_on,
            "seconds": round(seconds),
            "date": time.strftime("%Y-%m-%d"),
            "data": options.copy if part.NEEDS_IMAGES else None,
            "found": found,
        }
        keep_json(path, content)
        show(name, content)
        print(f"{name}: {seconds:.0f} s", flush=True)
    if failed:
        raise StudyError(f"not measured: {', '.join(failed)}; what was kept of them is as it was")


def show(name: str, content: dict[str, Any]) -> None:
    """Print a part's tables, and put them into its page with what they were measured on."""
    tables = dict(PARTS[name].tables(content["found"]))
    tables[f"{name}-where"] = _where(content)
    print("\n\n".join(tables.values()), flush=True)
    fill(tables, SPEED, README)


def _where(content: dict[str, Any]) -> str:
    on, images = content["machine"], content["data"]
    return (
        f"{on['cores']} cores of {on['cpu']}, {on['threads']} threads, {on['capability']}, torch "
        f"{on['torch']}; {images + '; ' if images else ''}{content['date']}."
    )


def _options() -> argparse.Namespace:
    parser = command.parser("simulations.bench", __doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART",
                        help=f"{', '.join(PARTS)} (all of them)")  # fmt: skip
    parser.add_argument(
        "--data", metavar="DIR", help="CIFAR-10, for overhead, engines, growth and peers"
    )
    parser.add_argument("--copy", default="CIFAR-10", help="which copy of the data this is")
    parser.add_argument("--show", action="store_true",
                        help="measure nothing; fill the pages with what is kept")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    command.run(main)
