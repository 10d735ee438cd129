"""Labelled images as one uint8 array, and what is done to whole batches of them.

Shape letters: N images, B images of a batch, H height, W width; the last axis is the 3 channels.
"""

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2023, 0.1994, 0.2010)  # the released code's, to which its checkpoints are bound


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images [N, H, W, 3] (uint8), labels [N] (int64), and the data set's normalisation.

    ``mean`` and ``std`` are per channel, of pixels scaled to 0..1.
    """

    images: Tensor
    labels: Tensor
    classes: int
    mean: tuple[float, float, float] = CIFAR10_MEAN
    std: tuple[float, float, float] = CIFAR10_STD

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if self.images.dtype != torch.uint8 or len(shape) != 4 or shape[-1] != 3:
            raise ValueError(f"images are {self.images.dtype} {shape}; need uint8 [N, H, W, 3]")
        if self.labels.dtype != torch.int64 or tuple(self.labels.shape) != shape[:1]:
            raise ValueError(
                f"labels are {self.labels.dtype} {tuple(self.labels.shape)}; "
                f"need int64 [{shape[0]}]"
            )
        least, most = map(int, self.labels.aminmax()) if shape[0] else (0, 0)
        if not 0 <= least <= most < self.classes:
            raise ValueError(f"labels are {least}..{most}; they must lie in 0..{self.classes - 1}")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same images on another device."""
        images, labels = self.images.to(device), self.labels.to(device)
        return ImageSet(images, labels, self.classes, self.mean, self.std)

    def normalise(self, images_BHW3: Tensor) -> Tensor:
        """Network input, float32 [B, 3, H, W] in channels_last memory, from uint8 images."""
        scale, shift = _normalisation(self.mean, self.std, images_BHW3.device)
        return (images_BHW3.float() * scale - shift).permute(0, 3, 1, 2)


@functools.cache
def _normalisation(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """What pixels of 0..255 are multiplied by, and what is taken off then, by channel."""
    with torch.inference_mode(False):
        deviations = torch.tensor(std)  # computed here, so that any stream may use it once copied
        return (1 / (255 * deviations)).to(device), (torch.tensor(mean) / deviations).to(device)


def random_crop_and_flip(images_BHW3: Tensor, *, padding: int, rng: torch.Generator) -> Tensor:
    """Shift every image by up to ``padding`` pixels over black and mirror half of them.

    The draws come from ``rng``, a CPU generator.
    """
    return crop_and_flip(images_BHW3, draw_crops(len(images_BHW3), padding, rng), padding)


def draw_crops(count: int, padding: int, rng: torch.Generator) -> Tensor:
    """Rows and columns of the crops of B images, and which are mirrored: int64 [3, B, 1]."""
    shifts = torch.randint(0, 2 * padding + 1, (2, count, 1), generator=rng)
    return torch.cat([shifts, torch.randint(0, 2, (1, count, 1), generator=rng)])


def crop_and_flip(images_BHW3: Tensor, crops_3B1: Tensor, padding: int) -> Tensor:
    """Crop every image out of black as ``draw_crops`` says; one gather for the whole batch."""
    B, H, W, _ = images_BHW3.shape
    device = images_BHW3.device
    down, right, mirrored = crops_3B1.to(device)
    rows_BH = down + torch.arange(H, device=device)
    columns = torch.arange(W, device=device).expand(B, W)
    columns_BW = right + torch.where(mirrored.bool(), W - 1 - columns, columns)
    padded = F.pad(images_BHW3, (0, 0, padding, padding, padding, padding))
    return padded[
        torch.arange(B, device=device)[:, None, None], rows_BH[:, :, None], columns_BW[:, None, :]
    ]
