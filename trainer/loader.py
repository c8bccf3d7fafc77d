"""Batches of images and labels. A split is one uint8 tensor on the device, and an epoch is a permutation of its rows.

On the CPU the tensor is the memory-mapped cache itself, which all runs share. On a GPU it is copied once. Data sets
that do not fit in memory are read from the map in the background (``streaming``) and give the same batches. This module
also chooses which training images are used, held out or mislabelled. No Python code runs per image.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainer import augment, streaming
from trainer.config import RunConfig
from trainer.datasets import catalogue
from trainer.image_rules import first_side
from trainer.randomness import generator
from trainer.schedule import num_batches, rounded_part

_CIFAR10_MEAN, _CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # the teaching notebook's constants
# Bytes of float32 input that are prepared at once, as several batches. On a CPU they should fit its caches (2 to 4 MiB
# were fastest of 0.1 to 16 MiB). A GPU gets more work per call; its value was not measured.
_PREPARED, _PREPARED_ON_CUDA = 2 << 20, 16 << 20
Moments = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Rows:
    """A part of a split, not gathered yet: the rows ``indices`` int64 [n] of ``images`` uint8 [N, C, H, W]."""

    images: Tensor
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Data:
    """The images and labels of a run, on its device.

    Images are uint8 [N, C, H, W], labels int64 [N], and indices int64 on the CPU. If ``streamed`` is set, the images
    stay on the CPU in their mapped file.
    """

    train_images: Tensor
    train_labels: Tensor  # as trained: with label noise
    train_indices: Tensor  # rows of train_images that are trained on, ascending
    validation_indices: Tensor  # rows of train_images held out, ascending
    validation_labels: Tensor  # without noise
    test_images: Tensor
    test_labels: Tensor
    scale: Tensor  # float32 [1, C, 1, 1]: the net sees pixel * scale + shift, then permuted
    shift: Tensor
    permutation: Tensor | None  # int64 [H * W]
    class_names: list[str]
    train_fingerprint: str = ""
    test_fingerprint: str = ""
    streamed: bool = False

    @property
    def validation_images(self) -> Rows:
        return Rows(self.train_images, self.validation_indices)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @cached_property
    def mean_pixel(self) -> Tensor:
        """The pixel value that normalization maps closest to 0, uint8 [1, C, 1, 1]."""
        return (-self.shift / self.scale).round().clamp(0, 255).to(torch.uint8)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def device(self) -> torch.device:
        return self.scale.device


def load(home: Path, config: RunConfig, device: torch.device) -> Data:
    """Load the data set of ``config`` from the cache. Raises ``FileNotFoundError`` if it is not cached."""
    dataset = catalogue.get_dataset(home, config.dataset)
    splits = [catalogue.open_split(home, config.dataset, split) for split in ("train", "test")]
    return from_arrays(
        config,
        device,
        (splits[0].images, splits[0].labels),
        (splits[1].images, splits[1].labels),
        class_names=dataset.class_names,
        moments=(tuple(dataset.mean), tuple(dataset.std)),
        fingerprints=(dataset.train_fingerprint or "", dataset.test_fingerprint or ""),
    )


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
    """The data of a run, made from (images uint8 [N, C, H, W], labels [N]) of both splits.

    ``moments`` are the mean and standard deviation of each channel over the train split, for pixels scaled to 0..1.
    """
    images, test_images = _tensor(train[0]), _tensor(test[0])
    clean = torch.from_numpy(train[1].astype(np.int64))
    streamed = streaming.is_too_large(images.nbytes + test_images.nbytes, streaming.available_bytes(device))
    place = torch.device("cpu") if streamed else device
    chosen, held_out = choose_images(config, clean)
    labels = add_label_noise(config, clean, chosen, len(class_names))
    height, width = images.shape[2:]
    permutation = None
    if config.permute_pixels:
        permutation = torch.from_numpy(catalogue.pixel_permutation(height, width, config.permutation_seed or 0))
    scale, shift = _affine(config, moments, images.shape[1])
    return Data(
        train_images=images.to(place),
        train_labels=labels.to(device),
        train_indices=chosen,
        validation_indices=held_out,
        validation_labels=clean[held_out].to(device),
        test_images=test_images.to(place),
        test_labels=torch.from_numpy(test[1].astype(np.int64)).to(device),
        scale=scale.to(device),
        shift=shift.to(device),
        permutation=None if permutation is None else permutation.to(device),
        class_names=class_names,
        train_fingerprint=fingerprints[0],
        test_fingerprint=fingerprints[1],
        streamed=streamed,
    )


def _tensor(images: NDArray[np.uint8]) -> Tensor:
    """A tensor that shares the memory of the array. Nothing writes to it, so read-only memory is fine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return torch.from_numpy(images)


def _affine(config: RunConfig, moments: Moments, num_channels: int) -> tuple[Tensor, Tensor]:
    """Scale and shift, float32 [1, C, 1, 1], such that pixel * scale + shift equals (pixel / 255 - mean) / std."""
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
    """The rows to train on and the rows held out for validation, both int64, ascending and stratified by label.

    The two are disjoint. Validation rows are drawn first, from all rows, so they are the same for every
    ``train_fraction``.
    """
    rows = torch.arange(len(labels))
    held_out = rows[:0]
    if config.validation_fraction:
        held_out, rows = _stratified(rows, labels, config.validation_fraction, generator(config.seed, "validation"))
    if config.train_fraction < 1:
        rows, _ = _stratified(rows, labels, config.train_fraction, generator(config.seed, "train part"))
    return rows, held_out


def _stratified(rows: Tensor, labels: Tensor, fraction: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split rows into (``fraction`` of them, the rest), with each class in proportion to within one image.

    At least one row is taken. The shuffled rows are sorted by class and taken at even distances (systematic sampling),
    which gives the exact total.
    """
    shuffled = rows[torch.randperm(len(rows), generator=random)]
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    count = rounded_part(len(rows), fraction)
    position = torch.arange(len(rows))
    taken = (position + 1) * count // len(rows) > position * count // len(rows)
    return by_class[taken].sort().values, by_class[~taken].sort().values


def add_label_noise(config: RunConfig, labels: Tensor, chosen: Tensor, num_classes: int) -> Tensor:
    """A copy of ``labels`` in which the fraction ``label_noise`` of the chosen rows has random labels.

    Labels are drawn uniformly from all classes, the true one included, so with a noise of 1 they carry no information.
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
    """Convert images uint8 [N, C, H, W] to the input of the net, float32.

    Pixels are normalized, permuted if the run permutes them, and resized to ``size`` (height, width) if it is given.
    """
    pixels = permute(images.to(torch.float32).mul_(data.scale).add_(data.shift), data.permutation)
    if size is None or size == tuple(images.shape[2:]):
        return pixels
    return F.interpolate(pixels, size=size, mode="bilinear", antialias=True, align_corners=False)


def permute(pixels: Tensor, permutation: Tensor | None) -> Tensor:
    """Reorder pixels [N, C, H, W]: pixel i of the result is pixel ``permutation[i]`` of the input."""
    if permutation is None:
        return pixels
    lines = pixels.reshape(-1, len(permutation))  # on a CPU 2 to 10 times faster in 2 dimensions than in 3
    return lines.index_select(1, permutation).view(pixels.shape)


def progressive_size(config: RunConfig, image_shape: tuple[int, int, int], epoch: int) -> tuple[int, int] | None:
    """The (height, width) to train on in this epoch, or None for the original size.

    In the first half of the epochs the size grows from ``image_rules.first_side`` towards the full side in steps of 4
    pixels. The second half trains on full images. The size depends on the epoch only.
    """
    half = config.epochs // 2
    if not config.progressive_size or epoch > half:
        return None
    height, width = image_shape[1:]
    side = min(height, width)
    start = first_side(config, (height, width))
    shrink = (start + (side - start) * (epoch - 1) / half) / side / 4
    return 4 * round(height * shrink), 4 * round(width * shrink)


# Batches ------------------------------------------------------------------------------------------------------------


def gather(data: Data, images: Tensor, batches: Sequence[Tensor]) -> Generator[Tensor, None, None]:
    """Yield the rows of ``images`` for each of ``batches``, uint8 [B, C, H, W] on the run's device.

    The indices in ``batches`` are on the same device as ``images``.
    """
    if data.streamed:
        yield from streaming.read_ahead(images, batches, data.device)
    else:
        for rows in batches:
            yield images.index_select(0, rows)


def in_order(data: Data, images: Tensor | Rows, batch_size: int) -> Generator[Tensor, None, None]:
    """Yield all images in order, in batches uint8 [B, C, H, W] on the run's device; the last batch may be smaller."""
    if isinstance(images, Tensor) and not data.streamed:
        yield from torch.split(images, batch_size)
        return
    rows = Rows(images, torch.arange(len(images))) if isinstance(images, Tensor) else images
    indices = streaming.to_device(rows.indices, rows.images.device)
    yield from gather(data, rows.images, torch.split(indices, batch_size))


@dataclass(frozen=True)
class TrainingEpoch:
    """The batches of one epoch. Iterating yields (input float32 [B, C, H, W], labels int64 [B]).

    The last batch may be smaller. Several batches are prepared at once, and each is a view of their memory.
    """

    data: Data
    order: Tensor  # int64 [n]: rows of the train split, on the images' device
    labels: Tensor  # int64 [n], in that order
    batch_size: int
    drawn: augment.Drawn | None
    size: tuple[int, int] | None

    def pixels(self, begin: int, end: int) -> Tensor:
        """The images at positions ``begin`` to ``end`` of the epoch, augmented, uint8 [end - begin, C, H, W]."""
        images = self.data.train_images.index_select(0, self.order[begin:end]).to(self.data.device)
        return self._augmented(images, begin)

    def _augmented(self, images: Tensor, begin: int) -> Tensor:
        if self.drawn is None:
            return images
        return augment.apply(images, self.drawn.part(begin, begin + len(images)), self.data.mean_pixel)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count, begin = self.batch_size * batches_at_once(self.batch_size, self.data), 0
        with contextlib.closing(gather(self.data, self.data.train_images, torch.split(self.order, count))) as gathered:
            for images in gathered:
                inputs = net_input(self._augmented(images, begin), self.data, size=self.size)
                labels = self.labels[begin : begin + len(images)]
                yield from zip(*(torch.split(part, self.batch_size) for part in (inputs, labels)), strict=True)
                begin += len(images)


def batches_at_once(batch_size: int, data: Data) -> int:
    """How many batches are prepared together: enough to save calls, but few enough to stay in the CPU's caches."""
    batch_bytes = batch_size * data.train_images[0].numel() * 4
    return max(1, (_PREPARED_ON_CUDA if data.device.type == "cuda" else _PREPARED) // batch_bytes)


def training_epoch(config: RunConfig, data: Data, epoch: int) -> TrainingEpoch:
    """The batches of epoch ``epoch`` (from 1). Order and augmentation depend only on the seed and the epoch number."""
    count, device = len(data.train_indices), data.device
    rows = data.train_indices[torch.randperm(count, generator=generator(config.seed, "order", epoch))]
    order = streaming.to_device(rows, data.train_images.device)
    drawn = None
    if config.augmentation != "none":
        random = generator(config.seed, "augmentation", epoch)
        drawn = augment.draw(count, random, cutout=config.augmentation == "crop_flip_cutout").to(device)
    labels = data.train_labels.index_select(0, streaming.to_device(rows, device) if data.streamed else order)
    return TrainingEpoch(
        data, order, labels, config.batch_size, drawn, progressive_size(config, data.image_shape, epoch)
    )


def steps_per_epoch(config: RunConfig, data: Data) -> int:
    """Number of batches in one epoch of ``data``, including a smaller last one."""
    return num_batches(len(data.train_indices), config.batch_size)
