"""Sheets of training images as the net sees them: tiles side by side without gaps, one pixel a pixel, as PNG with JSON.

``pictures/train.png`` shows them after augmentation and permutation and before normalisation, as in epoch 1;
``pictures/original.png`` shows them as they are, where that differs. ``pictures/train.json`` has what lies in the tiles.
"""

from __future__ import annotations

import io
import math

import torch
from PIL import Image
from torch import Tensor

from trainer.config import RunConfig
from trainer.loader import Data, permute, training_epoch
from trainer.run_folder import RunFolder, write_bytes, write_json

NUM_IMAGES = 60
COLUMNS = 10


def save_training_images(folder: RunFolder, config: RunConfig, data: Data) -> None:
    """Write the sheets of the first training images, then their JSON."""
    rows = data.train_indices[:NUM_IMAGES]
    original = data.train_images.index_select(0, rows.to(data.train_images.device))
    sheets = {"train.png": as_seen(config, data, rows)}
    if config.permute_pixels or config.augmentation != "none":
        sheets["original.png"] = original
    folder.pictures.mkdir(exist_ok=True)
    for name, images in sheets.items():
        write_bytes(folder.pictures / name, png(sheet(images.cpu())))
    labels = data.train_labels.index_select(0, rows.to(data.train_images.device))
    write_json(
        folder.pictures / "train.json",
        {
            "sheets": [*sheets],
            "columns": COLUMNS,
            "tile": [*data.image_shape[1:]],
            "indices": rows.tolist(),
            "labels": labels.tolist(),
            "permuted": config.permute_pixels,
            "augmentation": config.augmentation,
        },
    )


def as_seen(config: RunConfig, data: Data, rows: Tensor) -> Tensor:
    """The images of these rows as epoch 1 shows them to the net, but not normalised: uint8 [N, C, H, W]."""
    epoch = training_epoch(config, data, 1)
    places = (epoch.order.cpu()[None, :] == rows[:, None]).int().argmax(1)
    images = torch.cat([epoch.pixels(place, place + 1) for place in places.tolist()])
    return permute(images, data.permutation)


def sheet(images: Tensor, columns: int = COLUMNS) -> Tensor:
    """Tiles row by row: uint8 [N, C, H, W] -> [C, rows * H, columns * W]; unused tiles are black."""
    count, channels, height, width = images.shape
    rows = math.ceil(count / columns)
    tiles = torch.zeros((rows * columns, channels, height, width), dtype=torch.uint8)
    tiles[:count] = images
    grid = tiles.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * height, columns * width)


def png(pixels: Tensor) -> bytes:
    """uint8 [C, H, W] with one or three channels as a PNG file."""
    array = pixels.squeeze(0).numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG", optimize=False)
    return buffer.getvalue()
