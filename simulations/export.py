"""Export the model of a run as a plain CNN, with a card that says where it comes from."""

import argparse
import io
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csg_core import build, fold, to_onnx, to_safetensors
from federation.data_sets import DATA_SETS
from federation.files import check_writable, replace_files
from server.checkpoints import read_with_extra
from server.record import RunFolderError
from server.rows import RoundRow
from server.state import checkpoint_paths
from simulations.curves import RunData, read_run

HELP = "the folded model of a run: state_dict, safetensors, ONNX, model card"
EXAMPLE = "csg export runs/cifar10-resnet20-20261124-120000 --which best --out exported/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run")
    parser.add_argument("--which", choices=("best", "last"), default="best", help="round to export")
    parser.add_argument("--out", type=Path, metavar="DIR",
                        help="folder for the files; none: export/ in the run's folder")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="machine-readable answer")


def run(options: argparse.Namespace) -> None:
    data = read_run(options.run)
    checkpoint = _checkpoint(data, options.which)
    spec, model, extra = read_with_extra(checkpoint)
    row = _row(data, checkpoint, extra)
    out = options.out or options.run / "export"
    plain, twin = fold(model).eval(), spec.dense_twin()
    same = build(twin).state_dict().keys() == plain.state_dict().keys()
    buffer = io.BytesIO()
    torch.save(plain.state_dict(), buffer)
    files = {
        "model.pt": buffer.getvalue(),
        "model.safetensors": to_safetensors(plain, twin if same else None),
        "README.md": card(data, checkpoint, row).encode(),
    }
    try:
        files["model.onnx"] = to_onnx(plain)
    except ModuleNotFoundError as error:
        raise ValueError(f"ONNX needs {error.name}; install the extra csg-fl[onnx]") from error
    for name in files:
        check_writable(out / name)
    replace_files({out / name: content for name, content in files.items()})
    if options.json:
        print(json.dumps({"export": str(out), "files": sorted(files), "network": spec.name}))
        return
    print(f"{spec.name} of {checkpoint.name}, folded: {out}")
    for name, content in sorted(files.items()):
        print(f"  {name:<18} {len(content):>11,} bytes")


_STAYED = {"local": "Norms", "local_statistics": "Running statistics"}  # by train.batch_norm


def card(run: RunData, checkpoint: Path, row: RoundRow) -> str:
    """The model card of a checkpoint, made in the row's round, Markdown."""
    recipe = run.recipe
    shared, whose = sum(map(sum, run.environment["spread"])), str(recipe.data.name)
    images = round((1 - recipe.data.holdout) * shared)
    if recipe.run.superlink:  # where clients may have pictures of their own
        trained = {of["partition"]: of["examples"] for r in run.rows for of in r.contributions}
        images, whose = sum(trained.values()), f"{whose} or pictures of the clients' own"
    count = f"{images:,}" if images else "an unknown number of"
    facts: dict[str, Any] = {
        "Network": f"{recipe.model.name}, generated filters folded into ordinary ones"
        if recipe.model.parametrization == "csg"
        else f"{recipe.model.name}, {recipe.model.kind}",
        "Data": f"{whose}, {count} training images, {recipe.data.partition} over "
        f"{recipe.data.clients:,} clients" + (f", from {recipe.data.dir}" * bool(recipe.data.dir)),
        "Rounds": f"{row.round} of {recipe.train.rounds}, {recipe.cohort:,} clients a round, "
        f"{recipe.train.local_epochs} local epochs",
        "Accuracy on clients' held-out images, with their own norms or statistics"
        if recipe.train.batch_norm != "average"
        else "Test accuracy": "not evaluated"
        if row.test_accuracy is None
        else f"{100 * row.test_accuracy:.2f} %",
        "Payload exchanged until then": f"{run.megabytes_until(row.round):.2f} MB, all clients, "
        "both directions",
        "Seed": recipe.run.seed,
        "Checkpoint": f"{run.name}/checkpoints/{checkpoint.name}",
        "Made with": json.dumps(run.environment.get("versions", {})),
    }
    lines = [f"# {recipe.model.name} trained federatedly on {recipe.data.name}", ""]
    lines += [f"- **{what}**: {fact}" for what, fact in facts.items()]
    if stayed := _STAYED.get(recipe.train.batch_norm):
        lines.append(f"- **{stayed}** stayed with the clients; those in here are the first ones.")
    pixels = DATA_SETS[recipe.data.name]
    lines += [
        "",
        "Input: float32 [N, 3, 32, 32], RGB scaled to 0..1, then less the channels' means "
        f"{list(pixels.mean)} and divided by their deviations {list(pixels.std)}. Output: logits "
        "[N, classes].",
        "`model.pt` and `model.safetensors` hold the plain network's state_dict, `model.onnx` the "
        "graph in evaluation mode.",
        "",
    ]
    return "\n".join(lines)


def _row(run: RunData, checkpoint: Path, extra: dict[str, Tensor]) -> RoundRow:
    """The row of the round that made a checkpoint."""
    round_ = int(extra.get("round", torch.tensor(-1)))
    for row in run.rows:
        if row.round == round_:
            return row
    raise RunFolderError(
        f"{checkpoint}: is of round {round_}, of which rounds.jsonl has no row; csg resume goes on"
    )


def _checkpoint(run: RunData, which: str) -> Path:
    folder = run.folder.checkpoints
    found = [folder / "best.safetensors"] if which == "best" else checkpoint_paths(folder)
    if not found or not found[-1].is_file():
        other = "; use --which last" if which == "best" else ""
        raise RunFolderError(f"{folder}: has no {which} checkpoint{other}")
    return found[-1]
