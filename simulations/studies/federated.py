"""Bytes to accuracy: ten clients a round, 20 rounds, every network with every codec.

Networks are ResNet-20 where no depth is named, as in csg56; in arms called clip, the norm of each
step's gradient is at most 1. The arms called frontier are dense and generated networks of many
depths and widths with the same codec, the generated ones clipped, the dense ones clipped and not,
since clipping costs some of them accuracy. What an arm or a kind of shards is cannot be
changed by --set, which only says how runs are run.

Every run is a ``csg run``; what is kept of it is one JSON file, and a run whose file is there is
not repeated. The tables in docs/results.md and the README, and the pictures, are made from the
files. Example:

    python -m simulations.studies.federated --data cifar10/ --copy "JPEG copy of CIFAR-10" \\
      --arms csg csg-ecsq --partitions dirichlet
"""

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from itertools import product
from pathlib import Path

from server.checkpoints import replace_file
from simulations.cli import main as csg
from simulations.curves import RunData, read_run
from simulations.studies.federated_tables import (
    DENSE,
    SOME_TARGETS,
    Result,
    by_payload,
    draw,
    draw_frontier,
    short_table,
    table,
)
from simulations.studies.pages import DOCS, README, fill

RESULTS = Path(__file__).parent / "federated"
RECIPE = Path(__file__).parent / "federated.toml"
PAGE = DOCS / "results.md"
# A tenth of the images, with which many methods can be compared in minutes each, and three tenths.
_SMALL = ("data.images=5000", "train.batch_size=32", "run.eval_every=2")
# Shards: of the recipe's ten clients, or of fifty, of which ten train in a round.
PARTITIONS: dict[str, tuple[str, ...]] = {
    "iid": ("data.partition=iid",),
    "dirichlet": ("data.partition=dirichlet",),
    "dirichlet50": ("data.partition=dirichlet", "data.clients=50", "train.clients_per_round=10"),
    "middle": ("data.partition=dirichlet", "data.images=15000"),
    "small": ("data.partition=dirichlet", *_SMALL),
    "small_iid": ("data.partition=iid", *_SMALL),
    "small_skewed": ("data.partition=dirichlet", "data.alpha=0.1", *_SMALL),
}

_NETWORKS: dict[str, tuple[str, ...]] = {
    "dense": ("model.parametrization=dense",),
    "csg": (),
    # a dense network of about as many parameters as csg has
    "dense-narrow": ("model.parametrization=dense", "model.width=0.6875"),
    "csg-slow": ("train.generator_lr=0.3",),
    "csg-small": ("model.code_size=36",),
    # more channels with shorter codes, about as many parameters
    "csg-wide": ("model.width=1.5", "model.code_size=36"),
    "csg-frozen": ("model.generator=frozen", "model.code_size=144"),
    "fedpara": ("model.parametrization=fedpara",),
    "flocora": ("model.parametrization=flocora", "model.options.rank=8"),
    "dense32": ("model.parametrization=dense", "model.name=resnet32"),
    "dense56": ("model.parametrization=dense", "model.name=resnet56"),
    "csg56": ("model.name=resnet56",),
    "csg56-slow": ("model.name=resnet56", "train.generator_lr=0.3"),
}
_CLIPPED = ("dense", "csg", "dense-narrow", "csg-small", "csg-wide", "dense32", "dense56",
            "csg56")  # fmt: skip
_CLIP = ("train.clip_norm=1",)
_NETWORKS |= {f"{name}-clip": _NETWORKS[name] + _CLIP for name in _CLIPPED}


def _both(codec: str, *more: str) -> tuple[str, ...]:
    """The same codec up and down; running statistics need finer steps than the rest, whoever's."""
    line = codec if codec.startswith("ecsq") else f"{codec}; statistics=ecsq"
    return (f"wire.uplink={line}", f"wire.downlink={line}", *more)


_DELTAS = "wire.deltas=true"
# whole models: in one scale with others, small variances would come to zero
_INT8 = "uniform:bits=8; norms=fp16; statistics=fp16"
_CODECS: dict[str, tuple[str, ...]] = {
    "": (),
    "fp16": ("wire.uplink=fp16", "wire.downlink=fp16"),
    "int8": (f"wire.uplink={_INT8}", f"wire.downlink={_INT8}"),
    "int4": _both("uniform:bits=4", _DELTAS),
    "ternary": _both("ternary", _DELTAS),
    # sparse ternary compression with the authors' 1/400 in both directions
    "stc": _both("topk:fraction=0.0025,ternary=true", _DELTAS),
    "ecsq": _both("ecsq", _DELTAS),
    "ecsq-fine": _both("ecsq:step=1", _DELTAS),
    "ecsq-low": _both("ecsq:step=3,codes=4", _DELTAS),
    # nearly all levels zero, as in sparse compression
    "ecsq-sparse": _both("ecsq:step=8,codes=8", _DELTAS),
    # codes in steps as fine as the generator's; kernels by place, not by frequency
    "ecsq-even": _both("ecsq:codes=1.5", _DELTAS),
    "ecsq-places": _both("ecsq:dct=false", _DELTAS),
}
_SCHEDULES: dict[str, tuple[str, ...]] = {  # of csg's generator
    "csg-ecsq-seldom": (*_CODECS["ecsq"], "wire.generator_every=4"),
    "csg-ecsq-freeze": (*_CODECS["ecsq"], "wire.generator_until=5"),
}
_DEPTHS = (20, 32, 56)
# Networks of the frontier, dense ones by depth and channels of the first stage, generated ones by
# depth, channels of the first stage, slice and code.
_SIZED_DENSE: dict[str, tuple[str, ...]] = {
    f"dense{depth}-{channels}": (
        "model.parametrization=dense",
        f"model.name=resnet{depth}",
        f"model.width={channels / 16}",
    )
    for depth, channels in product(_DEPTHS, (6, 8, 11, 16))
}
_SIZED_CSG: dict[str, tuple[str, ...]] = {
    f"csg{depth}-{channels}-s{slice_size}-d{code}": (
        f"model.name=resnet{depth}",
        f"model.width={channels / 16}",
        f"model.slice_size={slice_size}",
        f"model.code_size={code}",
    )
    for depth, channels, (slice_size, code) in product(
        _DEPTHS, (16, 24, 32), ((12, 36), (12, 72), (16, 72))
    )
}
_KNOWN = {  # networks above, which have names
    "dense20-16": "dense",
    "dense20-11": "dense-narrow",
    "dense32-16": "dense32",
    "dense56-16": "dense56",
    "csg20-16-s12-d72": "csg",
    "csg20-16-s12-d36": "csg-small",
    "csg20-24-s12-d36": "csg-wide",
    "csg56-16-s12-d72": "csg56",
}
_SIZED_ARMS = {
    f"{_KNOWN.get(name, name)}-ecsq": values + _CODECS["ecsq"]
    for name, values in _SIZED_DENSE.items()
} | {
    f"{_KNOWN.get(name, name)}-clip-ecsq": values + _CLIP + _CODECS["ecsq"]
    for name, values in (_SIZED_DENSE | _SIZED_CSG).items()
}
FRONTIER = list(_SIZED_ARMS)
_NAMED = {
    f"{network}-{codec}".rstrip("-"): _NETWORKS[network] + _CODECS[codec]
    for network, codec in product(_NETWORKS, _CODECS)
} | _SCHEDULES
ARMS = _NAMED | _SIZED_ARMS
_SHORT = [  # in the README
    *("dense", "dense-ecsq", "dense-narrow-ecsq", "dense-narrow-ecsq-low"),
    *("csg", "csg-ecsq", "csg-ecsq-low"),
]
_ENOUGH = 4  # networks on the same shards, for a table and a picture of the frontier
_HOW = ("run.cohort", "run.workers", "run.device")  # what --set may change


def main() -> None:
    options = _options()
    if options.data is not None:
        chosen = [arm for arm in options.arms if arm != "frontier"]
        chosen += FRONTIER if "frontier" in options.arms else ()
        for partition, arm in product(options.partitions, chosen):
            _run(arm, partition, options)
    results = kept()
    if not results:
        sys.exit("federated: no results yet; name the images with --data")
    networks = {(result.partition, result.arm) for result in results if result.arm in FRONTIER}
    counts = Counter(partition for partition, _ in networks)
    shards = [partition for partition, count in counts.items() if count >= _ENOUGH]
    sized = [r for r in results if r.arm in FRONTIER and r.partition in shards]
    named = [result for result in results if result.arm in _NAMED]
    some = [r for r in named if r.content["recipe"]["data"].get("images") is not None]
    whole = [result for result in named if result not in some]
    short = [r for r in whole if r.partition == "dirichlet" and r.arm in _SHORT and r.seed == 0]
    beside = [result for result in named if result.arm in DENSE and result.partition in shards]
    tables = {
        "federated-short": short_table(short),
        "federated": table(whole),
        "federated-some": table(some, SOME_TARGETS),
        "frontier": table(by_payload([*sized, *beside]), ()),
    }
    print("\n\n".join(tables.values()))
    fill(tables, PAGE, README)
    draw(named, RESULTS / "accuracy.svg")
    if sized:
        draw_frontier(sized, RESULTS / "frontier.svg")


def kept() -> list[Result]:
    """All results, by shards, in the order of the arms."""
    results = []
    for path in RESULTS.glob("*-seed*.json"):
        arm, partition, seed = path.stem.rsplit("-", 2)
        content = json.loads(path.read_text())
        results.append(Result(partition, arm, int(seed.removeprefix("seed")), content))
    arms = list(ARMS)
    shards = list(PARTITIONS)
    return sorted(results, key=lambda r: (shards.index(r.partition), r.seed, arms.index(r.arm)))


def _run(arm: str, partition: str, options: argparse.Namespace) -> None:
    path = RESULTS / f"{arm}-{partition}-seed{options.seed}.json"
    if path.exists():
        return
    folder = options.runs / path.stem
    values = [
        *ARMS[arm],
        f"data.dir={options.data}",
        *PARTITIONS[partition],
        f"run.seed={options.seed}",
        f"run.dir={folder}",
        *options.set,
    ]
    settings = [part for value in values for part in ("--set", value)]
    again = (folder / "rounds.jsonl").exists()
    command = ["resume", str(folder)] if again else ["run", str(RECIPE), *settings]
    if csg(command):
        sys.exit(f"federated: {path.stem} did not end well; see {folder}")
    keep(read_run(folder), path, options.copy)


def keep(run: RunData, path: Path, copy: str) -> None:
    """Write what is kept of a run: curves, settings and machine, no clients and no folders."""
    columns = ("round", "train_loss", "test_loss", "test_accuracy", "seconds", "failures")
    payload = ("payload_bytes_up", "payload_bytes_down")
    rows = [{key: asdict(row)[key] for key in columns + payload} for row in run.rows]
    environment = {key: value for key, value in run.environment.items() if key != "spread"}
    recipe = run.recipe.model_dump(exclude={"data": {"dir"}, "run": {"dir"}}, exclude_none=True)
    content = {"data": copy, "environment": environment, "recipe": recipe, "rows": rows}
    path.parent.mkdir(exist_ok=True)
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m simulations.studies.federated",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", metavar="DIR", help="CIFAR-10; none: only tables and pictures")
    parser.add_argument("--copy", default="CIFAR-10", help="which copy of the data this is")
    parser.add_argument("--runs", type=Path, default=Path("runs/federated"), metavar="DIR",
                        help="where the runs' folders go")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="run.KEY=VALUE", type=_of_run,
                        help="how every run is run, as run.cohort=20 or run.workers=0")  # fmt: skip
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, "frontier"], metavar="ARM",
                        default=["dense", "csg", "dense-narrow"],
                        help=f"a network ({', '.join(_NETWORKS)}), a dash and a codec "
                             f"({', '.join(filter(None, _CODECS))}; none: float32); "
                             f"{', '.join(_SCHEDULES)}; or frontier: {', '.join(FRONTIER)}",
                        )  # fmt: skip
    parser.add_argument("--partitions", nargs="+", choices=PARTITIONS,
                        default=["iid", "dirichlet"])  # fmt: skip
    return parser.parse_args()


def _of_run(text: str) -> str:
    if text.partition("=")[0] not in _HOW:
        raise argparse.ArgumentTypeError(
            f"{text} would make it another arm; {', '.join(_HOW)} can be set"
        )
    return text


if __name__ == "__main__":
    main()
