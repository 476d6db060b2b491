"""Random shifts and mirrors of whole batches, against padding and cutting one image at a time."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nasspace.accuracy.augmentation import mirrored, shifted


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("most", [1, 3, 6])
def test_a_shift_is_a_cut_out_of_the_reflected_image(most):
    images = torch.rand(20, 3, 7, 9, generator=generator(0))
    moved = shifted(images, most, generator(5))
    offsets = torch.randint(-most, most + 1, (2, 20, 1), generator=generator(5))[..., 0] + most
    padded = functional.pad(images, (most,) * 4, mode="reflect")
    for image, result, top, left in zip(padded, moved, *offsets.tolist(), strict=True):
        assert torch.equal(result, image[:, top : top + 7, left : left + 9])


def test_every_shift_occurs_and_stays_uint8():
    image = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    image[0, 0, 4, 4] = 1
    moved = shifted(image.expand(500, -1, -1, -1), 2, generator(0))
    assert moved.dtype == torch.uint8
    assert {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()} == {
        (row, column) for row in range(2, 7) for column in range(2, 7)
    }


def test_about_half_the_images_are_mirrored():
    images = torch.rand(400, 1, 3, 3, generator=generator(0))
    result = mirrored(images, generator(1))
    same = (result == images).all((1, 2, 3))
    flipped = (result == images.flip(3)).all((1, 2, 3))
    assert (same ^ flipped).all()
    assert 160 < int(flipped.sum()) < 240
    assert torch.equal(result, mirrored(images, generator(1)))
