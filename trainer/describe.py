"""Answers to short questions that need torch: the layers of a config, and what this machine can compute on.

They compute, so only a child of the host may call them (see ``trainer.host.child``).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer import models, nvml
from trainer.config import MODELS, RunConfig
from trainer.cores import num_cores
from trainer.environment import device_name
from trainer.i18n import ngettext


@dataclass
class Layer:
    """One line of the table of layers: what people take for a layer, with what follows it directly."""

    name: str
    shape: list[int]  # of an image's output, without the batch: [channels, height, width] or [features]
    num_parameters: int = 0
    multiply_adds: int = 0  # of one image; multiplications by weights of convolutions and linear layers


def describe(
    config: RunConfig, image_shape: tuple[int, int, int], num_classes: int, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Layers, parameters and multiply-adds of a config's net for images of ``image_shape`` (channels, height, width).

    With ``size`` images of that height and width pass through the same net, as in the epochs of ``progressive_size``.
    Nothing is computed and no memory is taken: the net is built and passed through on torch's meta device.
    """
    with torch.device("meta"):
        net = models.build(config, image_shape, num_classes).eval()
        layers = _layers(net, torch.empty(1, image_shape[0], *(size or image_shape[1:])))
    smallest = MODELS[config.model].smallest_image
    height, width = (max(side, smallest) for side in image_shape[1:])
    padded = [image_shape[0], height, width]
    return {
        "input_shape": list(image_shape),
        "padded_shape": padded if padded != list(image_shape) else None,
        "smallest_image": smallest,
        "layers": [asdict(layer) for layer in layers],
        "num_parameters": sum(p.numel() for p in net.parameters()),
        "multiply_adds": sum(layer.multiply_adds for layer in layers),
    }


def _layers(net: nn.Module, images: Tensor) -> list[Layer]:
    """The lines of the table, in the order in which one batch of one image passes the modules."""
    layers: list[Layer] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        shape = list(output.shape[1:])
        name = _name(module, changed=inputs[0].shape != output.shape)
        if not name:
            return
        if not layers or _begins_line(module):
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


def _begins_line(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear | nn.MaxPool2d)


def _name(module: nn.Module, *, changed: bool) -> str:
    """What a person calls the module; "" for one that did nothing (``changed``: whether it gave another shape)."""
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
            return "AvgPool" if changed else ""
        case nn.Identity():
            return ""
        case nn.ZeroPad2d():
            return "ZeroPad" if changed else ""
    return type(module).__name__


def _multiply_adds(module: nn.Module, output: Tensor) -> int:
    """Multiplications of an output (of a batch of one) by the module's weights."""
    if isinstance(module, nn.Conv2d):
        return output.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    return 0


# Devices -------------------------------------------------------------------------------------------------------------


def devices() -> list[dict[str, Any]]:
    """What runs can compute on, the CPU first: ``name`` as in ``RunConfig.device``, ``title``, and what is known of it.

    ``memory_total`` and ``memory_free`` are bytes of a GPU, None where they are not known.
    """
    gpus = [_nvidia_gpu(index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        gpus.append({"name": "mps", "title": "Apple GPU", "memory_total": None, "memory_free": None})
    return [_cpu(), *gpus]


def _nvidia_gpu(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    memory = nvml.memory(str(properties.uuid))
    return {
        "name": f"cuda:{index}",
        "title": properties.name,
        "memory_bytes": properties.total_memory,
        "memory_total": memory.total if memory else properties.total_memory,
        "memory_free": memory.free if memory else None,
    }


def _cpu() -> dict[str, Any]:
    cores = num_cores()
    title = ngettext("CPU, {cores} core", "CPU, {cores} cores", cores).format(cores=f"{cores:,}")
    return {
        "name": "cpu",
        "title": title,
        "num_cores": cores,
        "model": device_name("cpu"),
        "memory_total": None,
        "memory_free": None,
    }
