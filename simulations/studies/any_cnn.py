"""Generated filters in torchvision's networks: what is replaced, and the parameters left.

MobileNetV2 and ShuffleNetV2 have hardly any ungrouped 3 x 3 convolution; as in the paper, their
slices lie over 1 x 1. Example:

    python -m simulations.studies.any_cnn --show mobilenet_v2
"""

from typing import Any

from csg_core import ConversionReport, SliceGenerator, generate_filters
from csg_core.networks.from_torchvision import torchvision
from simulations import command

# Slice size, code size and kernel size of each network's generator.
GENERATORS: dict[str, tuple[int, int, int]] = {
    "resnet18": (16, 128, 3),
    "resnet50": (16, 128, 3),
    "densenet121": (16, 128, 3),
    "mobilenet_v2": (16, 72, 1),
    "shufflenet_v2_x1_0": (16, 72, 1),
    "deeplabv3_resnet50": (16, 128, 3),
}


def main() -> None:
    parser = command.parser("simulations.studies.any_cnn", __doc__)
    parser.add_argument("--show", choices=GENERATORS, help="print one network's whole report")
    options = parser.parse_args()
    if options.show:
        print(convert(options.show)[1])
        return
    print("| torchvision network | slices | generated | left | before | after | ratio |")
    print("| --- | --- | --: | --: | --: | --: | --: |")
    for name, (s, d, k) in GENERATORS.items():
        report = convert(name)[1]
        before, after = report.parameters_before, report.parameters_after
        print(f"| {name} | {s} x {s} x {k} x {k}, d={d} | {len(report.replaced)} | "
              f"{len(report.left)} | {before:,} | {after:,} | {before / after:.2f} |")  # fmt: skip


def convert(name: str) -> tuple[Any, ConversionReport]:
    """One of the networks with random weights and generated filters, and the report."""
    models = torchvision().models
    backbone = {"weights_backbone": None} if name.startswith("deeplab") else {}
    model = models.get_model(name, weights=None, **backbone)
    s, d, k = GENERATORS[name]
    return model, generate_filters(model, SliceGenerator(s, d, k))


if __name__ == "__main__":
    command.run(main)
