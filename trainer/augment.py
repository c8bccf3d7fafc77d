"""Augmentation as tensor code over a whole batch: random crop with padding and horizontal flip.

What is drawn and how it is applied are apart: an epoch's offsets are drawn at once, so batches of any size get the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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
        return CropFlip(self.top.to(device), self.left.to(device), self.flip.to(device))


def draw(num_images: int, generator: torch.Generator) -> CropFlip:
    """Offsets and mirrorings for one epoch, each uniform and independent."""
    offsets = torch.randint(0, 2 * PADDING + 1, (2, num_images), generator=generator)
    return CropFlip(offsets[0], offsets[1], torch.rand(num_images, generator=generator) < 0.5)


def crop_flip(images: Tensor, drawn: CropFlip) -> Tensor:
    """Shift each of the images [N, C, H, W] within a black border of 4 pixels, and mirror those marked.

    The border is 0 before normalisation, as when torchvision pads a picture and normalises afterwards.
    """
    height, width = images.shape[2:]
    windows = F.pad(images, (PADDING,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view [N, C, 9, 9, H, W]
    rows = torch.arange(len(images), device=images.device)
    cropped = windows[rows, :, drawn.top, drawn.left]
    return torch.where(drawn.flip[:, None, None, None], cropped.flip(3), cropped)
