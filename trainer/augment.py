"""Augmentation as tensor code over a whole batch: random crop with padding and horizontal flip.

What is drawn and how it is applied are apart: an epoch's offsets are drawn at once, so batches of any size get the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.streaming import to_device

PADDING = 4  # pixels on each side, as in the usual CIFAR-10 recipe


@dataclass(frozen=True)
class CropFlip:
    """What is done to N images: ``top`` and ``left`` int64 [N] in 0..8 (4 leaves it in place), ``flip`` bool [N]."""

    top: Tensor
    left: Tensor
    flip: Tensor

    def part(self, begin: int, end: int) -> CropFlip:
        return CropFlip(self.top[begin:end], self.left[begin:end], self.flip[begin:end])

    def to(self, device: torch.device) -> CropFlip:
        return CropFlip(to_device(self.top, device), to_device(self.left, device), to_device(self.flip, device))


def draw(num_images: int, generator: torch.Generator) -> CropFlip:
    """Offsets and mirrorings for one epoch, each uniform and independent."""
    offsets = torch.randint(0, 2 * PADDING + 1, (2, num_images), generator=generator)
    return CropFlip(offsets[0], offsets[1], torch.rand(num_images, generator=generator) < 0.5)


def crop_flip(images: Tensor, drawn: CropFlip) -> Tensor:
    """Shift each of the images [N, C, H, W] within a black border of 4 pixels, and mirror those marked.

    The border is 0 before normalisation, as when torchvision pads a picture and normalises afterwards.
    """
    count, channels, height, width = images.shape
    starts = _starts(drawn, channels, height, width)
    canvas = _canvas(images).view(-1)
    windows = canvas.as_strided((canvas.numel() - width + 1, width), (1, 1))  # every run of ``width`` pixels, no copy
    return windows.index_select(0, starts.view(-1)).view(count, channels, height, width)


def _canvas(images: Tensor) -> Tensor:
    """Each image and its mirror image side by side, bordered: uint8 [N, C, H + 8, 4 + W + 4 + W + 4]."""
    count, channels, height, width = images.shape
    canvas = images.new_zeros(count, channels, height + 2 * PADDING, 2 * width + 3 * PADDING)
    rows = canvas[:, :, PADDING : PADDING + height]
    rows[..., PADDING : PADDING + width] = images
    rows[..., 2 * PADDING + width : -PADDING] = images.flip(3)
    return canvas


def _starts(drawn: CropFlip, channels: int, height: int, width: int) -> Tensor:
    """Where in the flat canvas the lines of the cropped images begin: int64 [N, C * H]."""
    device = drawn.top.device
    line, plane = 2 * width + 3 * PADDING, (height + 2 * PADDING) * (2 * width + 3 * PADDING)
    across = torch.where(drawn.flip, width + 3 * PADDING - drawn.left, drawn.left)
    first = torch.arange(len(drawn.top), device=device) * (channels * plane) + drawn.top * line + across
    within = torch.arange(channels, device=device)[:, None] * plane + torch.arange(height, device=device) * line
    return first[:, None] + within.view(-1)
