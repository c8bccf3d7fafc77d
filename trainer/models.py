"""The nets: ``fc cnn lenet vgg vgg16`` at any width, image size and number of classes. They return logits.

Layers are a flat ``nn.Sequential`` with names, so that a description can walk them and a checkpoint reads well.
Initial weights are PyTorch's own defaults, drawn from the run's seed. ``config.MODELS`` says what a width means.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import nn

from trainer.config import MODELS, RunConfig, resolved_width
from trainer.randomness import stream_seed

Shape = tuple[int, int, int]
Layers = OrderedDict[str, nn.Module]
_VGG = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")
_VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")


def build(config: RunConfig, image_shape: Shape, num_classes: int) -> nn.Sequential:
    """Build the net of ``config`` on the CPU, in training mode. It maps float32 [N, *image_shape] to [N, num_classes].

    The state of the global random generator is preserved.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(config.seed, "weights"))
        layers: Layers = OrderedDict()
        shape = _pad(layers, image_shape, MODELS[config.model].smallest_image)
        _BUILDERS[config.model](layers, shape, num_classes, resolved_width(config))
        return nn.Sequential(layers)


def count_parameters(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def scaled(channels: int, width: int, default: int) -> int:
    """Scale a number of channels by width / default, rounded, at least 1."""
    return max(1, round(channels * width / default))


def _pad(layers: Layers, shape: Shape, smallest: int) -> Shape:
    """Add even zero padding up to ``smallest`` where the images are smaller. Returns the padded shape."""
    channels, height, width = shape
    rows, columns = max(0, smallest - height), max(0, smallest - width)
    if rows or columns:
        layers["pad"] = nn.ZeroPad2d((columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
    return channels, height + rows, width + columns


def _fc(layers: Layers, shape: Shape, num_classes: int, width: int) -> None:
    channels, height, columns = shape
    layers["flatten"] = nn.Flatten()
    _add_linear(layers, [channels * height * columns, width, width, num_classes])


def _cnn(layers: Layers, shape: Shape, num_classes: int, width: int) -> None:
    _two_convolutions(layers, shape, (width, width), (50, num_classes))


def _lenet(layers: Layers, shape: Shape, num_classes: int, width: int) -> None:
    _two_convolutions(layers, shape, (scaled(6, width, 6), scaled(16, width, 6)), (120, 84, num_classes))


def _two_convolutions(layers: Layers, shape: Shape, channels: tuple[int, int], linear: tuple[int, ...]) -> None:
    """Two blocks of 5 x 5 convolution, ReLU and pooling by 2, then linear layers."""
    in_channels, height, width = shape
    for number, out_channels in enumerate(channels, start=1):
        layers[f"conv{number}"] = nn.Conv2d(in_channels, out_channels, 5)
        layers[f"conv{number}_relu"] = nn.ReLU()
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        in_channels, height, width = out_channels, (height - 4) // 2, (width - 4) // 2
    layers["flatten"] = nn.Flatten()
    _add_linear(layers, [in_channels * height * width, *linear])


def _add_linear(layers: Layers, sizes: list[int], dropout: float = 0.0) -> None:
    """Linear layers through ``sizes``, with ReLU (and dropout) between them."""
    for number, (num_inputs, num_outputs) in enumerate(pairwise(sizes), start=1):
        layers[f"linear{number}"] = nn.Linear(num_inputs, num_outputs)
        if number < len(sizes) - 1:
            layers[f"linear{number}_relu"] = nn.ReLU()
            if dropout:
                layers[f"dropout{number}"] = nn.Dropout(dropout)


def _vgg(layers: Layers, shape: Shape, num_classes: int, width: int) -> None:
    features = _add_convolutions(layers, shape, _VGG, width)
    _add_linear(layers, [features, num_classes])


def _vgg16(layers: Layers, shape: Shape, num_classes: int, width: int) -> None:
    features = _add_convolutions(layers, shape, _VGG16, width)
    _add_linear(layers, [features, 4096, 4096, num_classes], dropout=0.5)


def _add_convolutions(layers: Layers, shape: Shape, table: tuple[int | str, ...], width: int) -> int:
    """3 x 3 convolutions with BatchNorm and ReLU as the table says, averaged to 1 x 1. Returns the number of features.

    If each pooling of this image size halves evenly, ``ceil_mode`` changes nothing at this size. It lets the same net take
    smaller images, as ``progressive_size`` trains on.
    """
    channels, *sides = shape
    even = all(side % 2 ** table.count("pool") == 0 for side in sides)
    conv, pool = 0, 0
    for entry in table:
        if isinstance(entry, str):
            pool += 1
            layers[f"pool{pool}"] = nn.MaxPool2d(2, ceil_mode=even)
            continue
        conv += 1
        out_channels = scaled(entry, width, 64)
        layers[f"conv{conv}"] = nn.Conv2d(channels, out_channels, 3, padding=1)
        layers[f"conv{conv}_norm"] = nn.BatchNorm2d(out_channels)
        layers[f"conv{conv}_relu"] = nn.ReLU(inplace=True)
        channels = out_channels
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    return channels


_BUILDERS = {"fc": _fc, "cnn": _cnn, "lenet": _lenet, "vgg": _vgg, "vgg16": _vgg16}
