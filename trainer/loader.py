"""Batches: the whole split stays on the device as one uint8 tensor, an epoch is one permutation of its rows.

On the CPU that tensor is the memory-mapped cache itself, shared by all runs; on a GPU it is transferred once. Here are
also the choices of which training images are used, held out or mislabelled. No Python runs per image.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainer import augment
from trainer.config import MODELS, RunConfig
from trainer.datasets import catalogue
from trainer.randomness import generator

_CIFAR10_MEAN, _CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # the teaching notebook's constants
Moments = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Data:
    """One run's images and labels on its device; images uint8 [N, C, H, W], labels int64 [N], indices int64."""

    train_images: Tensor
    train_labels: Tensor  # as trained: with label noise
    train_indices: Tensor  # rows of train_images that are trained on, ascending
    validation_images: Tensor  # held out; their labels are without noise
    validation_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    scale: Tensor  # float32 [1, C, 1, 1]: the net sees pixel * scale + shift, then permuted
    shift: Tensor
    permutation: Tensor | None  # int64 [H * W]
    class_names: list[str]
    train_fingerprint: str = ""
    test_fingerprint: str = ""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def device(self) -> torch.device:
        return self.scale.device


def load(home: Path, config: RunConfig, device: torch.device) -> Data:
    """The cached data set of ``config``. Raises ``FileNotFoundError`` where it is not cached."""
    dataset = catalogue.get_dataset(home, config.dataset)
    splits = [catalogue.open_split(home, config.dataset, split) for split in ("train", "test")]
    return from_arrays(
        config, device, (splits[0].images, splits[0].labels), (splits[1].images, splits[1].labels),
        class_names=dataset.class_names, moments=(tuple(dataset.mean), tuple(dataset.std)),
        fingerprints=(dataset.train_fingerprint or "", dataset.test_fingerprint or ""),
    )  # fmt: skip


def from_arrays(
    config: RunConfig,
    device: torch.device,
    train: tuple[NDArray[np.uint8], NDArray[Any]],
    test: tuple[NDArray[np.uint8], NDArray[Any]],
    *,
    class_names: list[str],
    moments: Moments,
    fingerprints: tuple[str, str] = ("", ""),
) -> Data:
    """The data of a run from (images uint8 [N, C, H, W], labels [N]) of both splits.

    ``moments`` are mean and standard deviation per channel of the train split, of pixels in 0..1.
    """
    images, clean = _tensor(train[0]), torch.from_numpy(train[1].astype(np.int64))
    chosen, held_out = choose_images(config, clean)
    labels = add_label_noise(config, clean, chosen, len(class_names))
    height, width = images.shape[2:]
    permutation = None
    if config.permute_pixels:
        permutation = torch.from_numpy(catalogue.pixel_permutation(height, width, config.permutation_seed or 0))
    scale, shift = _affine(config, moments, images.shape[1])
    return Data(
        train_images=images.to(device), train_labels=labels.to(device), train_indices=chosen,
        validation_images=images.index_select(0, held_out).to(device), validation_labels=clean[held_out].to(device),
        test_images=_tensor(test[0]).to(device), test_labels=torch.from_numpy(test[1].astype(np.int64)).to(device),
        scale=scale.to(device), shift=shift.to(device),
        permutation=None if permutation is None else permutation.to(device),
        class_names=class_names, train_fingerprint=fingerprints[0], test_fingerprint=fingerprints[1],
    )  # fmt: skip


def _tensor(images: NDArray[np.uint8]) -> Tensor:
    """The array as a tensor over the same memory; nothing here writes to it, so read-only pages are fine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(images)


def _affine(config: RunConfig, moments: Moments, num_channels: int) -> tuple[Tensor, Tensor]:
    """(pixel / 255 - mean) / std as one multiplication and one addition per pixel."""
    means, deviations = {
        "dataset": moments,
        "half": ((0.5,) * num_channels, (0.5,) * num_channels),
        "cifar10": (_CIFAR10_MEAN, _CIFAR10_STD),
        "none": ((0.0,) * num_channels, (1.0,) * num_channels),
    }[config.normalization]
    mean = torch.tensor(means, dtype=torch.float64).view(1, -1, 1, 1)
    std = torch.tensor([value or 1.0 for value in deviations], dtype=torch.float64).view(1, -1, 1, 1)
    return (1 / (255 * std)).float(), (-mean / std).float()


# Which images -------------------------------------------------------------------------------------------------------


def choose_images(config: RunConfig, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out for validation, ascending, disjoint, both stratified by label.

    Validation is drawn first, from all rows, so that it is the same for every ``train_fraction``.
    """
    rows = torch.arange(len(labels))
    held_out = rows[:0]
    if config.validation_fraction:
        held_out, rows = _stratified(rows, labels, config.validation_fraction, generator(config.seed, "validation"))
    if config.train_fraction < 1:
        rows, _ = _stratified(rows, labels, config.train_fraction, generator(config.seed, "train part"))
    return rows, held_out


def _stratified(rows: Tensor, labels: Tensor, fraction: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split rows into (fraction, rest), each class in proportion to within one image; at least one row is taken.

    Shuffled rows are sorted by class and taken at even distances (systematic sampling), which gives the exact total.
    """
    shuffled = rows[torch.randperm(len(rows), generator=random)]
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    count = max(1, round(len(rows) * fraction))
    position = torch.arange(len(rows))
    taken = (position + 1) * count // len(rows) > position * count // len(rows)
    return by_class[taken].sort().values, by_class[~taken].sort().values


def add_label_noise(config: RunConfig, labels: Tensor, chosen: Tensor, num_classes: int) -> Tensor:
    """A copy of labels with ``label_noise`` of the chosen rows replaced, uniformly over all classes.

    The true class is among them, so that at a noise of 1 the labels say nothing about the images.
    """
    labels = labels.clone()
    if config.label_noise:
        random = generator(config.seed, "label noise")
        count = round(len(chosen) * config.label_noise)
        changed = chosen[torch.randperm(len(chosen), generator=random)[:count]]
        labels[changed] = torch.randint(num_classes, (count,), generator=random)
    return labels


# What the net sees --------------------------------------------------------------------------------------------------


def net_input(images: Tensor, data: Data, *, size: tuple[int, int] | None = None) -> Tensor:
    """uint8 [N, C, H, W] -> float32, normalised, permuted where the run permutes, downsized to ``size`` if given."""
    pixels = permute(images.to(torch.float32).mul_(data.scale).add_(data.shift), data.permutation)
    if size is None or size == tuple(images.shape[2:]):
        return pixels
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)


def permute(pixels: Tensor, permutation: Tensor | None) -> Tensor:
    """Pixels [N, C, H, W] in the order of ``permutation``: the i-th of the result is the permutation[i]-th before."""
    if permutation is None:
        return pixels
    return pixels.flatten(2).index_select(2, permutation).view(pixels.shape)


def progressive_size(config: RunConfig, image_shape: tuple[int, int, int], epoch: int) -> tuple[int, int] | None:
    """(height, width) to train on in this epoch, or None for the images' own.

    The first half of the epochs goes evenly from half the side (at least the net's smallest image) to the full side,
    the second half trains on full images. The size depends on the epoch only.
    """
    half = config.epochs // 2
    if not config.progressive_size or epoch > half:
        return None
    height, width = image_shape[1:]
    side = min(height, width)
    start = max(MODELS[config.model].smallest_image, side // 2)
    shrink = (start + (side - start) * (epoch - 1) / half) / side
    return round(height * shrink), round(width * shrink)


@dataclass(frozen=True)
class TrainingEpoch:
    """The batches of one epoch: iterating yields (input float32 [B, C, H, W], labels int64 [B]); the last may be short."""

    data: Data
    order: Tensor  # int64 [n]: rows of the train split
    labels: Tensor  # int64 [n], in that order
    batch_size: int
    drawn: augment.CropFlip | None
    size: tuple[int, int] | None

    def pixels(self, begin: int, end: int) -> Tensor:
        """The images at these places of the order, augmented, uint8 [end - begin, C, H, W]."""
        images = self.data.train_images.index_select(0, self.order[begin:end])
        return images if self.drawn is None else augment.crop_flip(images, self.drawn.part(begin, end))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for begin in range(0, len(self.order), self.batch_size):
            end = min(begin + self.batch_size, len(self.order))
            yield net_input(self.pixels(begin, end), self.data, size=self.size), self.labels[begin:end]


def training_epoch(config: RunConfig, data: Data, epoch: int) -> TrainingEpoch:
    """Epoch number ``epoch``, from 1: its order and its augmentation follow from the seed and the number."""
    count, device = len(data.train_indices), data.device
    shuffled = torch.randperm(count, generator=generator(config.seed, "order", epoch))
    order = data.train_indices[shuffled].to(device)
    drawn = None
    if config.augmentation == "crop_flip":
        drawn = augment.draw(count, generator(config.seed, "augmentation", epoch)).to(device)
    return TrainingEpoch(
        data, order, data.train_labels.index_select(0, order), config.batch_size, drawn,
        progressive_size(config, data.image_shape, epoch),
    )  # fmt: skip


def steps_per_epoch(config: RunConfig, data: Data) -> int:
    """How many batches an epoch has, the short last one included."""
    return -(-len(data.train_indices) // config.batch_size)
