"""Train a network centrally, without federation: the figure to measure a federated one against."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import get_args

from torch import nn

from csg_core import (
    ModelSpec,
    build,
    count_trainable,
    generate_filters,
)
from csg_core.evaluation import Precision
from csg_core.images import ImageSet
from csg_core.networks import usual_classes
from csg_core.spec import SHAPE_OF_GENERATOR, generator_of
from federation.data_sets import source_of
from federation.devices import device_named
from federation.files import check_writable
from federation.sources import load_images
from server.checkpoints import read_checkpoint, write_checkpoint
from server.start import generator_weight
from simulations.central import SCHEDULES, Epoch, Settings, train_centrally
from simulations.estimate import parameters
from simulations.model_options import add_model_options, spec_from

HELP = "train a network on one machine, without federation"
EXAMPLE = (
    "csg train resnet20 --data cifar10/ --epochs 12 --precision bf16 --out resnet20.safetensors"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    usual = Settings()
    add = parser.add_argument_group("first values taken from a checkpoint").add_argument
    add("--fit-to", type=Path, metavar="CHECKPOINT",
        help="trained dense network to compress: codes and generator are fitted to it")  # fmt: skip
    add("--generator-from", type=Path, metavar="CHECKPOINT",
        help="take the generator of this network; with --generator frozen, keep it")  # fmt: skip
    add = parser.add_argument_group("training").add_argument
    add("--data", default=os.environ.get("CSG_DATA_DIR", "digits"), metavar="DIR",
        help="folder of CIFAR-10, as python batches or parquet, or 'digits' (also from "
             "$CSG_DATA_DIR)")  # fmt: skip
    add("--epochs", type=int, default=usual.epochs, help="passes over the images")
    add("--batch-size", type=int, default=usual.batch_size, help="images of a step")
    add("--lr", type=float, default=usual.lr, help="learning rate at the start")
    add("--momentum", type=float, default=usual.momentum, help="of SGD")
    add("--weight-decay", type=float, default=usual.weight_decay, help="of SGD")
    add("--lr-schedule", choices=SCHEDULES, default=usual.schedule,
        help="cosine to zero, or a tenth at 1/2 and again at 3/4 of the epochs")  # fmt: skip
    add("--precision", choices=get_args(Precision), default=usual.precision, help="of the steps")
    add("--seed", type=int, default=usual.seed, help="of first values, order and augmentation")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    add("--out", type=Path, metavar="FILE", help="checkpoint to write after every epoch")
    add("--json", action="store_true", help="machine-readable answer")


def run(options: argparse.Namespace) -> None:
    settings = Settings(
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        schedule=options.lr_schedule,
        precision=options.precision,
        augment=options.data != "digits",
        seed=options.seed,
    )
    log = sys.stderr if options.json else sys.stdout
    if options.out is not None:
        check_writable(options.out)
    try:
        device = device_named(options.device)
    except ValueError as error:
        raise ValueError(f"device {error}") from error
    train, test = (data.to(device) for data in load_data(options.data))
    spec, model = first_model(options, classes=train.classes)
    counts = parameters(model)
    print(
        f"{spec.name} on {len(train):,} images: {counts['total']:,} trainable parameters "
        f"(generator {counts['generator']:,}, codes {counts['codes']:,}, "
        f"other {counts['other']:,})",
        file=log,
    )
    history: list[Epoch] = []
    for epoch in train_centrally(model, train, test, settings):
        history.append(epoch)
        print(
            f"epoch {epoch.epoch:3d}/{settings.epochs}  train loss {epoch.train_loss:.3f}  "
            f"test loss {epoch.test_loss:.3f}  accuracy {100 * epoch.test_accuracy:5.2f} %  "
            f"{epoch.seconds:.1f} s",
            file=log,
            flush=True,
        )
        if options.out is not None:
            write_checkpoint(options.out, model, spec)
    if options.out is not None:
        print(f"written: {options.out}", file=log)
    if options.json:
        answer = {"spec": spec.to_dict(), "settings": asdict(settings),
                  "parameters": count_trainable(model), "epochs": [asdict(e) for e in history],
                  "accuracy": history[-1].test_accuracy}  # fmt: skip
        print(json.dumps(answer))


def load_data(source: str) -> tuple[ImageSet, ImageSet]:
    """Training and test images: ``digits``, or a folder of CIFAR-10."""
    name, folder = source_of(source)
    return load_images(name, folder, "train"), load_images(name, folder, "test")


def first_model(options: argparse.Namespace, *, classes: int) -> tuple[ModelSpec, nn.Module]:
    """The model to start from, and what it is."""
    spec = spec_from(options, classes=classes)
    weight = None
    if options.generator_from is not None:
        if spec.parametrization != "csg":
            raise ValueError(f"{options.generator_from}: {spec.kind} has no use for a generator")
        donor_spec, donor = read_checkpoint(options.generator_from)
        weight = generator_weight(donor)
        if weight is None:
            raise ValueError(f"{options.generator_from}: is {donor_spec.kind}, without a generator")
        spec = _settled(spec, donor_spec, SHAPE_OF_GENERATOR, options.generator_from)
    if options.fit_to is None:
        return spec, build(spec, seed=options.seed, generator_weight=weight)
    dense, model = read_checkpoint(options.fit_to)
    if dense.parametrization != "dense":
        raise ValueError(f"{options.fit_to}: its filters are generated already; give a dense one")
    if spec.parametrization != "csg":
        raise ValueError(f"{options.fit_to}: fits generated filters only; leave out {spec.kind}")
    spec = _settled(spec, dense, ("name", "width"), options.fit_to)
    outputs = dense.classes or usual_classes(dense.name)
    if outputs != classes:
        raise ValueError(f"{options.fit_to}: tells {outputs} classes apart, the data has {classes}")
    generator = generator_of(spec, seed=options.seed, weight=weight)
    generate_filters(model, generator, layout=spec.layout, start="dense")
    return spec, model


def _settled(spec: ModelSpec, given: ModelSpec, keys: Sequence[str], path: Path) -> ModelSpec:
    """``spec`` with what a checkpoint settles; an option is refused that says otherwise.

    One that is as by default is taken for not given.
    """
    usual = ModelSpec()
    for key in keys:
        asked, found = getattr(spec, key), getattr(given, key)
        if asked not in (found, getattr(usual, key)):
            raise ValueError(f"{key} {asked}: {path} has {found}; leave it out")
    return replace(spec, **{key: getattr(given, key) for key in keys})
