"""The layers of a configuration's net, and the devices of this machine.

Both run PyTorch code, which the host itself must not do, so only a child of the host calls them (see
``trainer.host.loop``).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from trainer import layers, nvml
from trainer.config import MODELS, RunConfig
from trainer.cores import num_cores
from trainer.environment import device_name
from trainer.i18n import ngettext
from trainer.models import Shape


def describe(config: RunConfig, image_shape: Shape, num_classes: int) -> dict[str, Any]:
    """Describe a configuration's net for images of ``image_shape`` (channels, height, width).

    ``padded_shape`` is the shape to which images below ``smallest_image`` pixels a side are padded, or None.
    ``layers`` is a list of ``trainer.layers.Layer`` as dictionaries; ``multiply_adds`` is for one image.
    """
    table = layers.table(config, image_shape, num_classes)
    smallest = MODELS[config.model].smallest_image
    height, width = (max(side, smallest) for side in image_shape[1:])
    padded = [image_shape[0], height, width]
    return {
        "input_shape": list(image_shape),
        "padded_shape": padded if padded != list(image_shape) else None,
        "smallest_image": smallest,
        "layers": [asdict(layer) for layer in table],
        "num_parameters": sum(layer.num_parameters for layer in table),
        "multiply_adds": sum(layer.multiply_adds for layer in table),
    }


# Devices -------------------------------------------------------------------------------------------------------------


def devices() -> list[dict[str, Any]]:
    """The devices that runs can use, the CPU first.

    Each has a ``name`` as in ``RunConfig.device``, a ``title`` to show, and ``memory_total`` and ``memory_free`` in bytes,
    which are None for the CPU and where they are not known.
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
