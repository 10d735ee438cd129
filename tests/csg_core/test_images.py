"""Whole-batch augmentation does to every image what per-image code would."""

import pytest
import torch
import torch.nn.functional as F

from csg_core.images import ImageSet, random_crop_and_flip


def test_every_image_is_a_crop_of_its_padded_self_mirrored_or_not():
    images = torch.randint(1, 256, (64, 8, 8, 3), dtype=torch.uint8)
    found = random_crop_and_flip(images, padding=2, rng=torch.Generator().manual_seed(0))
    assert found.dtype == torch.uint8
    padded = F.pad(images, (0, 0, 2, 2, 2, 2))
    seen = set()
    for before, after in zip(padded, found, strict=True):
        matches = [
            (row, column, flip)
            for row in range(5)
            for column in range(5)
            for flip in (False, True)
            if torch.equal(after.flip(1) if flip else after,
                           before[row : row + 8, column : column + 8])
        ]  # fmt: skip
        assert len(matches) == 1
        seen.add(matches[0])
    assert {flip for *_, flip in seen} == {False, True}
    assert len({(row, column) for row, column, _ in seen}) > 15


def test_the_same_seed_augments_the_same_way():
    images = torch.randint(0, 256, (16, 8, 8, 3), dtype=torch.uint8)
    first, same, other = (
        random_crop_and_flip(images, padding=4, rng=torch.Generator().manual_seed(s))
        for s in (1, 1, 2)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_normalised_batches_are_float_channels_last():
    images = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    data = ImageSet(images, torch.zeros(4, dtype=torch.int64), 10)
    found = data.normalise(images)
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    expected = ((images / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2).long(), "need uint8"),
        (torch.zeros(2, 8, 8, 3), torch.zeros(2).long(), "need uint8"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.zeros(3).long(), r"need int64 \[2\]"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.full((2,), 10), "must lie in 0..9"),
    ],
)
def test_arrays_of_another_kind_are_refused(images, labels, message):
    with pytest.raises(ValueError, match=message):
        ImageSet(images, labels, 10)
