"""What is known of each data set before any image is read."""

from dataclasses import dataclass

from csg_core.images import CIFAR10_MEAN, CIFAR10_STD
from federation.sections import DataSet

SIDE = 32  # pixels, of all images


class DataError(ValueError):
    """Images that cannot be used; the message names the file or folder and the remedy."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Of a data set.

    Attributes:
        names: of its classes, in the order of their numbers.
        training: number of images to train on.
        mean, std: of the channels, of pixels scaled to 0..1.
    """

    names: tuple[str, ...]
    training: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


_CIFAR10_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip
DATA_SETS: dict[DataSet, Facts] = {
    "cifar10": Facts(_CIFAR10_NAMES, 50_000, CIFAR10_MEAN, CIFAR10_STD),
    "digits": Facts(tuple(map(str, range(10))), 1437, (0.305,) * 3, (0.323,) * 3),
}
CLASSES = 10  # of all of them


def source_of(place: str) -> tuple[DataSet, str | None]:
    """The data set that a command is given as ``digits``, or as a folder of CIFAR-10."""
    return ("digits", None) if place == "digits" else ("cifar10", place)
