"""What averaging means where kernels are products: parameters against generated kernels.

Averaging generator and codes is not averaging kernels. Each round, the same clients' models are
averaged in three ways, each is evaluated, and the next round starts from the way under study:

- parameters: the mean generator makes kernels from the mean codes, as FedAvg has it;
- kernels: the mean of all slices that the clients make, in the best generator and codes for it
  (truncated SVD, in the basis nearest the mean generator);
- exact: that mean itself, which no generator of this size may make; to evaluate only.

Example:

    python -m simulations.studies.averaging --data cifar10/ --images 5000 --rounds 10 --every 2

runs both ways on IID shards and on those of Dirichlet(0.1), and fills in docs/codecs.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client.job import Job
from client.local import LocalClient
from client.shard import Shards
from csg_core import Manifest, build, fold, generated, manifest, pack, split, unpack
from csg_core.averaging import WeightedMean
from csg_core.codecs import codec_named
from csg_core.evaluation import evaluate
from csg_core.layout import kernels_from_slices
from csg_core.payload import decode
from federation.data_sets import source_of
from federation.devices import precision_of
from federation.recipe import Recipe, recipe_of
from federation.sources import load_images
from server.downlink import Downlink
from simulations import command
from simulations.command import StudyError, positive
from simulations.machine import environment
from simulations.pages import DOCS, fill, keep_json

RESULTS = Path(__file__).parent / "averaging"
PAGE = DOCS / "codecs.md"
WAYS = ("parameters", "kernels")
SHARDS: dict[str, dict[str, Any]] = {
    "iid": {"partition": "iid"},
    "dirichlet-0.1": {"partition": "dirichlet", "alpha": 0.1, "min_images": 2},
}

Values = NDArray[np.float32]


class Averages:
    """The weighted means over clients of parameters and of the slices that they make."""

    def __init__(self, found: Manifest) -> None:
        self._found = found
        self._of_parameters = WeightedMean(found.size)
        (W,) = (entry for entry in found.entries if entry.group == "generator")
        slices = sum(entry.shape[0] for entry in found.entries if entry.group == "codes")
        self._shape = slices, W.shape[0]
        self._of_slices = WeightedMean(slices * W.shape[0])

    def add(self, values: Values, weight: float) -> None:
        """Take in a client's model, packed."""
        codes_SD, weight_VD = factors(values, self._found)
        self._of_parameters.add(values, weight)
        self._of_slices.add((codes_SD @ weight_VD.T).reshape(-1), weight)

    @property
    def parameters(self) -> Values:
        """FedAvg's model."""
        return self._of_parameters.mean()

    @property
    def slices_SV(self) -> Values:  # noqa: N802
        """The mean of all slices."""
        return self._of_slices.mean().reshape(self._shape)

    @property
    def kernels(self) -> Values:
        """FedAvg's model, but with the factors that make the mean slices as nearly as any do."""
        values = self.parameters
        codes_SD, weight_VD = factors(values, self._found)
        U, lengths, Vt = np.linalg.svd(self.slices_SV, full_matrices=False)
        D = weight_VD.shape[1]
        left, basis_VD = U[:, :D] * lengths[:D], Vt[:D].T
        turn_DD = basis_VD.T @ weight_VD  # of all bases, that nearest the mean generator's
        codes_SD[:] = left @ np.linalg.inv(turn_DD).T
        weight_VD[:] = basis_VD @ turn_DD
        return joined(values, self._found, codes_SD, weight_VD)


def factors(values: Values, found: Manifest) -> tuple[Values, Values]:
    """Copies of all codes, [S, D], and of W, [V, D], of a packed model."""
    parts = split(values, found.entries)
    codes = [array for entry, array in parts.items() if entry.group == "codes"]
    (weight_VD,) = (array for entry, array in parts.items() if entry.group == "generator")
    return np.concatenate(codes), weight_VD.copy()


def joined(values: Values, found: Manifest, codes_SD: Values, weight_VD: Values) -> Values:
    """The packed model with other codes and another W."""
    new, place = values.copy(), 0
    for entry, array in split(new, found.entries).items():  # views
        if entry.group == "generator":
            array[:] = weight_VD
        elif entry.group == "codes":
            array[:] = codes_SD[place : place + len(array)]
            place += len(array)
    return new


class Study:
    """Federated rounds by hand, without Flower: every client of a round, and the averages."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._client = LocalClient(recipe)
        self._shards = Shards(recipe, self._client.device)
        self._test = load_images(recipe.data.name, recipe.data.dir, "test")
        self._model = build(recipe.model, seed=recipe.run.seed)
        self._model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.found = manifest(self._model)
        self._downlink = Downlink(recipe, self.found, pack(self._model))
        self.first = self._downlink.held

    def round(self, model: Values, round_: int) -> Averages:
        """Train every client from a model."""
        nodes = list(range(self.recipe.data.clients))
        payload = self._downlink.payloads(model, round_, "train", nodes)[0]
        averages = Averages(self.found)
        for partition in nodes:
            shard = self._shards[partition]
            job = Job(payload=payload, shard=shard, round_=round_, partition=partition)
            trained = self._client.train(job)
            label = self._downlink.update_label(round_)
            assert isinstance(trained.payload, bytes)
            update = decode(trained.payload, label, codec_named("fp32"))
            averages.add(model + update, trained.report.examples)
        return averages

    def accuracy(self, model: Values) -> float:
        """On the test images."""
        unpack(self._model, model)
        return self._evaluated(self._model)

    def accuracy_of_slices(self, model: Values, slices_SV: Values) -> float:
        """Of a model whose kernels are put together from slices that no generator has to make."""
        unpack(self._model, model)
        plain, place = fold(self._model), 0
        for name, layer in generated(self._model).items():
            part = torch.from_numpy(slices_SV[place : place + layer.form.slices].copy())
            place += layer.form.slices
            kernel = kernels_from_slices(part[None], layer.form)[0]
            plain.get_submodule(name).weight = torch.nn.Parameter(kernel)
        return self._evaluated(plain)

    def _evaluated(self, model: torch.nn.Module) -> float:
        return evaluate(model, self._test, precision=precision_of(self.recipe)).accuracy


def run(recipe: Recipe, way: str, every: int = 1) -> list[dict[str, Any]]:
    """Figures of every so many rounds and the last, of a run averaged in one way throughout."""
    study, rows = Study(recipe), []
    model = study.first
    for round_ in range(1, recipe.train.rounds + 1):
        before_SV = np.matmul(*_both(model, study.found))
        averages = study.round(model, round_)
        parameters, kernels = averages.parameters, averages.kernels
        model = parameters if way == "parameters" else kernels
        if round_ % every and round_ < recipe.train.rounds:
            continue
        mean_SV = averages.slices_SV
        moved = np.linalg.norm(mean_SV - before_SV)

        def off(values: Values, mean_SV: Values = mean_SV, moved: Any = moved) -> float:
            made_SV = np.matmul(*_both(values, study.found))
            return float(np.linalg.norm(made_SV - mean_SV) / moved)

        rows.append({
            "round": round_,
            "off_parameters": off(parameters),
            "off_kernels": off(kernels),
            "accuracy_parameters": study.accuracy(parameters),
            "accuracy_kernels": study.accuracy(kernels),
            "accuracy_exact": study.accuracy_of_slices(parameters, mean_SV),
        })  # fmt: skip
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def _both(values: Values, found: Manifest) -> tuple[Values, Values]:
    codes_SD, weight_VD = factors(values, found)
    return codes_SD, weight_VD.T


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: each round of each run."""
    lines = ["| shards | run averages | round | off: parameters | off: kernels "
             "| accuracy: parameters | kernels | exact |",
             "| --- | --- | --: | --: | --: | --: | --: | --: |"]  # fmt: skip
    for result in results:
        for row in result["rows"]:
            offs = [f"{100 * row[f'off_{way}']:.2f} %" for way in WAYS]
            accuracies = [f"{100 * row[f'accuracy_{way}']:.2f} %" for way in (*WAYS, "exact")]
            cells = [result["shards"], result["way"], str(row["round"]), *offs, *accuracies]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def where(results: Sequence[dict[str, Any]]) -> str:
    """What the figures were measured on, a line for each kind of work."""
    lines = []
    for result in results:
        on, recipe = result["environment"], result["recipe"]
        images = recipe["data"].get("images")
        share = f"{images:,} images of" if images else "all images of"
        device = on["machine"]["cpu"] if on["device"] == "cpu" else on["device"]
        lines.append(
            f"{recipe['model']['name']}, ten clients, {share} {result['data']}, "
            f"{recipe['train']['rounds']} rounds, batches of {recipe['train']['batch_size']}; "
            f"{device}, {on['precision']}, {on['started'][:10]}."
        )
    return "\n".join(dict.fromkeys(lines))


def main() -> None:
    options = _options()
    if options.data is not None:
        data, folder = source_of(options.data)
        for name, way in product(options.shards, options.ways):
            recipe = recipe_of({
                "data": {"name": data, "dir": folder, "images": options.images, **SHARDS[name]},
                "train": {"rounds": options.rounds, "batch_size": options.batch_size,
                          "lr": 0.05, "lr_schedule": "cosine"},
            }, "averaging")  # fmt: skip
            kept = recipe.model_dump(
                mode="json", include={"model", "data", "train"}, exclude={"data": {"dir"}},
                exclude_none=True,
            )  # fmt: skip
            path = RESULTS / f"{name}-{way}.json"
            if path.exists():
                if json.loads(path.read_text())["recipe"] != kept:
                    raise StudyError(f"{path} is of other settings; remove it to run these")
                continue
            on = environment(recipe)
            rows = run(recipe, way, options.every)
            copy = options.copy or ("digits" if options.data == "digits" else "CIFAR-10")
            content = {"data": copy, "shards": name, "way": way, "environment": on,
                       "recipe": kept, "rows": rows}  # fmt: skip
            keep_json(path, content)
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    if not results:
        raise StudyError("no results yet; name the images with --data")
    found = {"averaging": table(results), "averaging-where": where(results)}
    print("\n\n".join(found.values()))
    fill(found, PAGE)


def _options() -> argparse.Namespace:
    parser = command.parser("simulations.studies.averaging", __doc__)
    parser.add_argument("--data", metavar="DIR",
                        help="CIFAR-10, or digits; none: only the table")  # fmt: skip
    parser.add_argument("--copy", help="which copy of the data this is")
    parser.add_argument("--images", type=positive, metavar="N",
                        help="train on so many, drawn by the seed; none: all")  # fmt: skip
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N")
    parser.add_argument("--rounds", type=positive, default=10, metavar="N")
    parser.add_argument("--every", type=positive, default=1, metavar="N",
                        help="evaluate every so many rounds, and the last")  # fmt: skip
    parser.add_argument("--shards", nargs="+", choices=SHARDS, default=list(SHARDS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    return parser.parse_args()


if __name__ == "__main__":
    command.run(main)
