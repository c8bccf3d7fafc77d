"""Crop, flip and cutout against the same thing done image by image."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer import augment
from trainer.randomness import generator

pytestmark = pytest.mark.arithmetic


def one_by_one(images: Tensor, drawn: augment.Drawn) -> Tensor:
    results = []
    for image, top, left, flip in zip(
        images, drawn.top.tolist(), drawn.left.tolist(), drawn.flip.tolist(), strict=True
    ):
        bordered = F.pad(image, (4, 4, 4, 4))
        crop = bordered[:, top : top + image.shape[1], left : left + image.shape[2]]
        results.append(crop.flip(2) if flip else crop)
    return torch.stack(results)


def test_equals_the_loop() -> None:
    images = torch.randint(0, 256, (50, 3, 12, 9), dtype=torch.uint8, generator=generator(0, "test"))
    drawn = augment.draw(50, generator(1, "test"))
    result = augment.crop_flip(images, drawn)
    assert result.dtype == torch.uint8
    assert torch.equal(result, one_by_one(images, drawn))


def test_draws_every_offset_and_flips_half() -> None:
    drawn = augment.draw(9_000, generator(0, "test"))
    assert {*drawn.top.tolist()} == {*drawn.left.tolist()} == {*range(9)}
    assert 4_200 < int(drawn.flip.sum()) < 4_800


def test_in_place_is_no_change() -> None:
    images = torch.arange(2 * 16, dtype=torch.uint8).view(2, 1, 4, 4)
    still = augment.Drawn(torch.full((2,), 4), torch.full((2,), 4), torch.zeros(2, dtype=torch.bool))
    assert torch.equal(augment.crop_flip(images, still), images)


def test_every_offset_and_mirroring() -> None:
    images = torch.randint(1, 256, (162, 2, 5, 7), dtype=torch.uint8, generator=generator(0, "test"))
    top, left, flip = torch.cartesian_prod(torch.arange(9), torch.arange(9), torch.arange(2)).unbind(1)
    drawn = augment.Drawn(top, left, flip.bool())
    assert torch.equal(augment.crop_flip(images, drawn), one_by_one(images, drawn))
    one = augment.crop_flip(images[7:8], drawn.part(7, 8))
    assert torch.equal(one, one_by_one(images[7:8], drawn.part(7, 8)))


def test_cutout_replaces_a_square_and_nothing_else() -> None:
    images = torch.randint(1, 256, (300, 3, 16, 24), dtype=torch.uint8, generator=generator(0, "test"))
    hole = torch.rand(300, 2, generator=generator(1, "test"))
    fill = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    cut = augment.cut_out(images, hole, fill)
    for image, result, (down, across) in zip(images, cut, hole.tolist(), strict=True):
        top, left = int(down * 16) - 2, int(across * 24) - 2
        expected = image.clone()
        expected[:, max(0, top) : top + 4, max(0, left) : left + 4] = 0
        assert torch.equal(result, expected)


def test_cutout_draws_the_same_crops_and_flips_as_without() -> None:
    plain, cut = (augment.draw(50, generator(1, "test"), cutout=cutout) for cutout in (False, True))
    assert torch.equal(plain.top, cut.top)
    assert torch.equal(plain.left, cut.left)
    assert torch.equal(plain.flip, cut.flip)
    assert plain.hole is None
    assert cut.hole is not None
    part = cut.part(10, 12)
    assert part.hole is not None
    assert torch.equal(part.hole, cut.hole[10:12])
