"""The layers of a net as a table, and the operations to train it. Computed without the net's memory or arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer import models
from trainer.config import RunConfig
from trainer.models import Shape


@dataclass
class Layer:
    """A row of the table: a layer as layers are usually counted, with the modules that directly follow it."""

    name: str
    shape: list[int]  # of the output for one image: [channels, height, width] or [features]
    num_parameters: int = 0
    multiply_adds: int = 0  # for one image: multiplications by weights of convolutions and linear layers


def table(config: RunConfig, image_shape: Shape, num_classes: int, size: tuple[int, int] | None = None) -> list[Layer]:
    """The layers of the net that is built for images of ``image_shape``, (channels, height, width), in their order.

    With ``size`` the images that pass through it have that height and width, as in the epochs of ``progressive_size``.
    The net is built and run on PyTorch's meta device, which has shapes and no numbers.
    """
    with torch.device("meta"):
        net = models.build(config, image_shape, num_classes).eval()
        return _table(net, torch.empty(1, image_shape[0], *(size or image_shape[1:])))


def training_flops(
    config: RunConfig, image_shape: Shape, num_classes: int, size: tuple[int, int] | None = None
) -> float:
    """Nominal floating-point operations to train on one image; arguments as for ``table``.

    6 for each multiply-add of the forward pass: 2 forward, and 4 for the two gradients of the backward pass (Kaplan et
    al., "Scaling Laws for Neural Language Models", 2020, section 2.1). ``trainer.fast`` may need fewer.
    """
    return 6.0 * sum(layer.multiply_adds for layer in table(config, image_shape, num_classes, size))


def _table(net: nn.Module, images: Tensor) -> list[Layer]:
    layers: list[Layer] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shape = list(output.shape[1:])
        name = _name(module, is_reshaped=inputs[0].shape != output.shape)
        if not name:
            return
        if not layers or isinstance(module, nn.Conv2d | nn.Linear | nn.MaxPool2d):
            layers.append(Layer(name, shape))
        else:
            layers[-1].name += ", " + ("flatten" if name == "Flatten" else name)
            layers[-1].shape = shape
        layers[-1].num_parameters += sum(p.numel() for p in module.parameters(recurse=False))
        layers[-1].multiply_adds += _multiply_adds(module, output)

    hooks = [module.register_forward_hook(note) for module in net.modules() if not [*module.children()]]
    net(images)
    for hook in hooks:
        hook.remove()
    return layers


def _name(module: nn.Module, *, is_reshaped: bool) -> str:
    """The usual name of the module, or "" if it does nothing. ``is_reshaped``: whether its output has another shape."""
    match module:
        case nn.Conv2d():
            return "Conv {} × {}".format(*module.kernel_size)
        case nn.MaxPool2d():
            return f"MaxPool {module.kernel_size}"
        case nn.BatchNorm2d() | nn.BatchNorm1d():
            return "BatchNorm"
        case nn.Dropout():
            return f"Dropout {module.p:g}"
        case nn.AdaptiveAvgPool2d() | nn.AvgPool2d():
            return "AvgPool" if is_reshaped else ""
        case nn.Identity():
            return ""
        case nn.ZeroPad2d():
            return "ZeroPad" if is_reshaped else ""
    return type(module).__name__


def _multiply_adds(module: nn.Module, output: Tensor) -> int:
    """Multiplications by the module's weights that give ``output``, which has a batch of one image."""
    if isinstance(module, nn.Conv2d):
        return output.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    return 0
