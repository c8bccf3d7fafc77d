"""Augmentation as tensor code over a whole batch: random crop with padding, horizontal flip, and cutout.

Drawing and applying are separate steps. All random values of an epoch are drawn at once, so the augmentation of an
image does not depend on the batch size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.streaming import to_device

PADDING = 4  # pixels on each side, as in the usual CIFAR-10 recipe
HOLE = 1 / 4  # side of the square that is cut out, as a fraction of the image's shorter side: 8 of 32 pixels


@dataclass(frozen=True)
class Drawn:
    """The random values for N images: offsets ``top`` and ``left`` int64 [N] in 0..8, and ``flip`` bool [N].

    An offset of 4 means no shift.
    ``hole`` float32 [N, 2] in 0..1 is the center (row, column) of the square to cut out; None means no cutout.
    """

    top: Tensor
    left: Tensor
    flip: Tensor
    hole: Tensor | None = None

    def part(self, begin: int, end: int) -> Drawn:
        hole = None if self.hole is None else self.hole[begin:end]
        return Drawn(self.top[begin:end], self.left[begin:end], self.flip[begin:end], hole)

    def to(self, device: torch.device) -> Drawn:
        hole = None if self.hole is None else to_device(self.hole, device)
        return Drawn(to_device(self.top, device), to_device(self.left, device), to_device(self.flip, device), hole)


def draw(num_images: int, generator: torch.Generator, *, cutout: bool = False) -> Drawn:
    """Draw offsets, flips and holes for one epoch, each uniform and independent."""
    offsets = torch.randint(0, 2 * PADDING + 1, (2, num_images), generator=generator)
    flip = torch.rand(num_images, generator=generator) < 0.5
    return Drawn(offsets[0], offsets[1], flip, torch.rand(num_images, 2, generator=generator) if cutout else None)


def apply(images: Tensor, drawn: Drawn, fill: Tensor) -> Tensor:
    """Crop and flip images uint8 [N, C, H, W], and fill holes, if any, with ``fill`` uint8 [1, C, 1, 1]."""
    images = crop_flip(images, drawn)
    return images if drawn.hole is None else cut_out(images, drawn.hole, fill)


def cut_out(images: Tensor, hole: Tensor, fill: Tensor) -> Tensor:
    """Fill a square of each image uint8 [N, C, H, W] with ``fill`` (cutout, DeVries and Taylor 2017).

    The center can be any pixel of the image, so a square near the border is clipped. Images with a side below 3 pixels
    are left unchanged.
    """
    height, width = images.shape[2:]
    side = round(HOLE * min(height, width))
    inside = []
    for length, middle in zip((height, width), hole.unbind(1), strict=True):
        begin = (middle * length).long() - side // 2
        place = torch.arange(length, device=images.device) - begin[:, None]
        inside.append((place >= 0) & (place < side))
    return torch.where((inside[0][:, :, None] & inside[1][:, None, :])[:, None], fill, images)


def crop_flip(images: Tensor, drawn: Drawn) -> Tensor:
    """Shift images uint8 [N, C, H, W] within a black border of 4 pixels, and flip those marked in ``drawn.flip``.

    The border is 0 before normalization, as when torchvision pads an image and normalizes it afterwards.
    """
    count, channels, height, width = images.shape
    starts = _starts(drawn, channels, height, width)
    canvas = _canvas(images).view(-1)
    windows = canvas.as_strided((canvas.numel() - width + 1, width), (1, 1))  # every run of ``width`` pixels, no copy
    return windows.index_select(0, starts.view(-1)).view(count, channels, height, width)


def _canvas(images: Tensor) -> Tensor:
    """Each image and its mirror image side by side, with borders: uint8 [N, C, H + 8, 4 + W + 4 + W + 4]."""
    count, channels, height, width = images.shape
    canvas = images.new_zeros(count, channels, height + 2 * PADDING, 2 * width + 3 * PADDING)
    rows = canvas[:, :, PADDING : PADDING + height]
    rows[..., PADDING : PADDING + width] = images
    rows[..., 2 * PADDING + width : -PADDING] = images.flip(3)
    return canvas


def _starts(drawn: Drawn, channels: int, height: int, width: int) -> Tensor:
    """The positions in the flattened canvas at which the rows of the cropped images begin: int64 [N, C * H]."""
    device = drawn.top.device
    line, plane = 2 * width + 3 * PADDING, (height + 2 * PADDING) * (2 * width + 3 * PADDING)
    across = torch.where(drawn.flip, width + 3 * PADDING - drawn.left, drawn.left)
    first = torch.arange(len(drawn.top), device=device) * (channels * plane) + drawn.top * line + across
    within = torch.arange(channels, device=device)[:, None] * plane + torch.arange(height, device=device) * line
    return first[:, None] + within.view(-1)
