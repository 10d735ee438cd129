"""Print loss and accuracy of a checkpoint on a set of images."""

import argparse
import json
from pathlib import Path

from csg_core.evaluation import evaluate
from csg_core.images import ImageSet
from csg_core.networks import usual_classes
from federation.data_sets import source_of
from federation.image_files import load_parquet
from federation.sources import load_images
from server.checkpoints import CheckpointError, read_checkpoint

HELP = "accuracy of a checkpoint, in float32"
EXAMPLE = "csg evaluate acl-resnet20-slice16-code72.t7 --data test.parquet"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="this project's, or one the authors released")
    parser.add_argument("--data", required=True, metavar="PATH",
                        help="a parquet file in the layout of uoft-cs/cifar10, a folder with the "
                        "test images of CIFAR-10, or the word digits")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="machine-readable answer")


def run(options: argparse.Namespace) -> None:
    spec, model = read_checkpoint(options.checkpoint)
    data, outputs = _images(options.data), spec.classes or usual_classes(spec.name)
    if bool((data.labels >= outputs).any()):
        raise CheckpointError(
            f"{options.checkpoint}: its {spec.name} has {outputs:,} outputs, and {options.data} "
            f"has labels up to {int(data.labels.max()):,}; name images of the classes that it was "
            "trained on"
        )
    result = evaluate(model, data)
    if options.json:
        answer = {
            "accuracy": result.accuracy,
            "loss": result.loss,
            "examples": result.examples,
            "network": spec.name,
        }
        print(json.dumps(answer))
        return
    print(f"{spec.name} {spec.kind}: {100 * result.accuracy:.2f} % of {result.examples:,} images, "
          f"loss {result.loss:.4f}, in float32")  # fmt: skip


def _images(place: str) -> ImageSet:
    if place == "digits" or Path(place).is_dir():
        return load_images(*source_of(place), "test")
    return load_parquet(place, classes=None)
