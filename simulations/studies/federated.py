"""Bytes to accuracy: ten clients a round, 20 rounds or 100, every network with every codec.

Networks are ResNet-20 where no depth is named, as in csg56; in arms called clip, the norm of each
step's gradient is at most 1, in those called momentum the server's momentum is 0.5. Those called
donated begin with the generator of a ResNet-32 that was trained on handwritten digits, which takes
minutes, once; in those called never the generator stays as it begins. The arms of a frontier are
dense and generated networks of many depths and widths with the same codec: of frontier-ecsq the
generated ones clipped, the dense ones clipped and not, since clipping costs some of them accuracy;
of frontier-ecsq-predict all of them clipped and with momentum. What an arm or a kind of shards is
cannot be changed by --set, which only says how runs are run.

Every run is a ``csg run``; what is kept of it is one JSON file, and a run whose file is there is
not repeated, but with ``--again``, which says what was kept before and what now. The tables in
docs/results.md and the README, and the pictures, are made from the files. Example:

    python -m simulations.studies.federated --data cifar10/ --copy "JPEG copy of CIFAR-10" \\
      --arms csg csg-ecsq --partitions dirichlet
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain, product
from pathlib import Path
from typing import Any

from federation.recipe import Recipe
from federation.recipe_file import read_recipe
from server.record import RunFolder
from simulations import command
from simulations.cli import main as csg
from simulations.command import StudyError
from simulations.curves import RunData, read_run
from simulations.pages import DOCS, README, fill, keep_json
from simulations.recipe_names import set_options
from simulations.studies.federated_arms import (
    ARMS,
    CODECS,
    DONATES,
    DONOR,
    FRONTIERS,
    NAMED,
    NETWORKS,
    PARTITIONS,
    SCHEDULED,
    SCHEDULES,
    SHORT,
)
from simulations.studies.federated_pictures import draw, draw_frontier
from simulations.studies.federated_tables import (
    DENSE,
    SOME_TARGETS,
    Result,
    by_payload,
    cheapest_table,
    codec_table,
    short_table,
    table,
)

RESULTS = Path(__file__).parent / "federated"
RECIPE = Path(__file__).parent / "federated.toml"
PAGE = DOCS / "results.md"
_ENOUGH = 4  # networks on the same shards, for a table and a picture of the frontier
_DRAWN = [*product(PARTITIONS, [0]), ("small", 1)]  # where most arms were run
_HOW = ("run.cohort", "run.workers", "run.device")  # what --set may change


def main() -> None:
    options = _options()
    if options.data is not None:
        chosen = [FRONTIERS.get(arm, [arm]) for arm in options.arms]
        for partition, arm in product(options.partitions, chain.from_iterable(chosen)):
            _run(arm, partition, options)
    results = kept()
    if not results:
        raise StudyError("no results yet; name the images with --data")
    sized = on_frontiers(results)
    shards = {result.partition for result in sized}
    named = [result for result in results if result.arm in NAMED]
    some = [r for r in named if r.content["recipe"]["data"].get("images") is not None]
    whole = [r for r in results if r.content["recipe"]["data"].get("images") is None]
    beside = [result for result in named if result.arm in DENSE and result.partition in shards]
    tables = {
        "federated-short": short_table(whole, SHORT),
        "federated": table(whole),
        "cheapest": cheapest_table(whole),
        "codec-names": codec_table(),
        "federated-some": table(some, SOME_TARGETS),
        "frontier": table(by_payload([*sized, *beside]), ()),
    }
    print("\n\n".join(tables.values()))
    fill(tables, PAGE, README)
    draw([r for r in results if (r.partition, r.seed) in _DRAWN], RESULTS / "accuracy.svg")
    short = [r for r in whole if r.seed == 0 and r.arm in SHORT.get(r.partition, ())]
    draw(short, RESULTS / "brief.svg", in_words=True)
    if sized:
        draw_frontier(sized, RESULTS / "frontier.svg")


def kept() -> list[Result]:
    """All results, by shards, in the order of the arms."""
    results = [_result(path) for path in RESULTS.glob("*-seed*.json")]
    arms = list(ARMS)
    shards = list(PARTITIONS)
    return sorted(results, key=lambda r: (shards.index(r.partition), r.seed, arms.index(r.arm)))


def _result(path: Path) -> Result:
    arm, partition, seed = path.stem.rsplit("-", 2)
    content = json.loads(path.read_text())
    return Result(partition, arm, int(seed.removeprefix("seed")), content)


def on_frontiers(results: Sequence[Result]) -> list[Result]:
    """Those of networks of a frontier, where enough have the same codec on the same shards."""
    arms = set(chain.from_iterable(FRONTIERS.values()))
    sized = [result for result in results if result.arm in arms]
    networks = {(result.partition, result.codec, result.network) for result in sized}
    counts = Counter((partition, codec) for partition, codec, _ in networks)
    return [r for r in sized if counts[r.partition, r.codec] >= _ENOUGH]


def _run(arm: str, partition: str, options: argparse.Namespace) -> None:
    path = RESULTS / f"{arm}-{partition}-seed{options.seed}.json"
    folder = options.runs / path.stem
    values = [
        *ARMS[arm],
        f"data.dir={options.data}",
        *PARTITIONS[partition],
        f"run.seed={options.seed}",
        f"run.dir={folder}",
        *options.set,
    ]
    donated = "server.start_with=generator" in ARMS[arm]
    if donated:
        values.append(f"server.start_from={options.runs / DONOR}")
    before = _result(path) if path.exists() else None
    if before is not None:
        _refuse_another_arm(path, before.content["recipe"], values)
        if not options.again:
            print(f"{path.stem} is kept; --again runs it anew", file=sys.stderr)
            return
    begun = (folder / "rounds.jsonl").exists()
    if begun:
        _refuse_another_arm(folder, RunFolder(folder).recipe().model_dump(), values)
    done = RunFolder(folder).summary().get("outcome") == "completed"
    arguments = ["resume", str(folder)] if begun else ["run", str(RECIPE), *set_options(values)]
    if before is not None and done:
        print(f"{folder} is complete, and kept; to run it anew, name another folder with --runs",
              file=sys.stderr)  # fmt: skip
    if donated and not begun:
        _train_donor(options)
    if not done and csg(arguments):
        see = f"; see {folder}" if folder.exists() else ""
        raise StudyError(f"{path.stem} did not end well{see}")
    keep(read_run(folder), path, options.copy)
    if before is not None:
        for when, result in (("before", before), ("now", _result(path))):
            print(f"{path.stem}, {when}: {100 * result.accuracy:.2f} %, "
                  f"{result.curve[-1][0]:.2f} MB, {result.machine}", file=sys.stderr)  # fmt: skip


def _train_donor(options: argparse.Namespace) -> None:
    """Train the network whose generator others begin with, unless that was done."""
    place = (options.runs / DONOR).parent.parent
    folder = RunFolder(place)
    while folder.held():  # by a study beside this one
        time.sleep(1.0)
    begun = (place / "rounds.jsonl").exists()
    if begun:
        _refuse_another_arm(place, folder.recipe().model_dump(), DONATES)
    if folder.summary().get("outcome") == "completed":
        return
    values = [*DONATES, f"run.dir={place}", *options.set]
    if csg(["resume", str(place)] if begun else ["run", str(RECIPE), *set_options(values)]):
        raise StudyError(f"the donor of generators did not end well; see {place}")


def _refuse_another_arm(place: Path, kept: dict[str, Any], values: Sequence[str]) -> None:
    if others := differences(kept, values):
        raise StudyError(f"{place} is of another arm ({others}); delete it to run this one")


def differences(kept: dict[str, Any], values: Sequence[str]) -> str:
    """What a kept recipe has otherwise than the arm of these values, in words.

    Where, how and in what precision a run was run, and how long was waited, is not the arm's. What
    a kept recipe doesn't say is as it is by default; what it says of a setting that there is no
    more is not looked at.
    """
    default, arm = Recipe().model_dump(), read_recipe(RECIPE, values).model_dump()
    of_arm = {section: list(arm[section]) for section in ("model", "data", "train", "wire")}
    of_arm |= {"server": ["strategy", "options", "start_with"], "run": ["seed", "eval_every"]}
    return ", ".join(
        f"{section}.{key}={was}, now {arm[section][key]}"
        for section, keys in of_arm.items()
        for key in keys
        if key not in ("dir", "precision")
        and (was := kept[section].get(key, default[section][key])) != arm[section][key]
    )


def keep(run: RunData, path: Path, copy: str) -> None:
    """Write what is kept of a run: curves, settings and machine, no clients and no folders.

    Raises:
        StudyError: if the run's recipe was changed since it began.
    """
    if run.folder.recipe_changed():
        raise StudyError(f"{run.folder.path}: config.toml was changed since the run began")
    columns = ("round", "train_loss", "test_loss", "test_accuracy", "seconds", "failures")
    payload = ("payload_bytes_up", "payload_bytes_down", "updates", "models")
    rows = [{key: asdict(row)[key] for key in columns + payload} for row in run.rows]
    environment = {key: value for key, value in run.environment.items() if key != "spread"}
    recipe = run.recipe.model_dump(exclude={"data": {"dir"}, "run": {"dir"}}, exclude_none=True)
    if recipe["server"].get("start_from") is not None:
        recipe["server"]["start_from"] = DONOR
    content = {"data": copy, "environment": environment, "recipe": recipe, "rows": rows}
    keep_json(path, content)


def _options() -> argparse.Namespace:
    parser = command.parser("simulations.studies.federated", __doc__)
    parser.add_argument("--data", metavar="DIR", help="CIFAR-10; none: only tables and pictures")
    parser.add_argument("--copy", default="CIFAR-10", help="which copy of the data this is")
    parser.add_argument("--runs", type=Path, default=Path("runs/federated"), metavar="DIR",
                        help="where the runs' folders go")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="run.KEY=VALUE", type=_of_run,
                        help="how every run is run, as run.cohort=20 or run.workers=0")  # fmt: skip
    parser.add_argument("--again", action="store_true",
                        help="run what is kept, too, and keep that in its place")  # fmt: skip
    parser.add_argument("--arms", nargs="+", type=_arm, metavar="ARM",
                        default=["dense", "csg", "dense-narrow"],
                        help=f"a network ({', '.join(NETWORKS)}), a dash and a codec "
                             f"({', '.join(filter(None, CODECS))}; none: float32); "
                             f"{' or '.join(SCHEDULED)}, a dash and {', '.join(SCHEDULES)}; or "
                             f"{' or '.join(FRONTIERS)}, all networks that are drawn as one",
                        )  # fmt: skip
    parser.add_argument("--partitions", nargs="+", choices=PARTITIONS,
                        default=["iid", "dirichlet"])  # fmt: skip
    return parser.parse_args()


def _arm(text: str) -> str:
    if text not in ARMS and text not in FRONTIERS:
        raise argparse.ArgumentTypeError(f"{text!r} is no arm; --help says how they are named")
    return text


def _of_run(text: str) -> str:
    if text.partition("=")[0] not in _HOW:
        raise argparse.ArgumentTypeError(
            f"{text} would make it another arm; {', '.join(_HOW)} can be set"
        )
    return text


if __name__ == "__main__":
    command.run(main)
