"""The sheets of training images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainer import loader, pictures
from trainer.config import RunConfig
from trainer.loader import Data
from trainer.run_folder import RunFolder

MakeConfig = Callable[..., RunConfig]
MakeData = Callable[..., Data]


def test_sheet_lays_tiles_row_by_row() -> None:
    images = torch.arange(3, dtype=torch.uint8).view(3, 1, 1, 1).expand(3, 1, 2, 2) + 1
    assert pictures.sheet(images, columns=2).tolist() == [[[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 0, 0], [3, 3, 0, 0]]]


def test_plain_images_are_shown_as_they_are(tmp_path: Path, make_config: MakeConfig, make_data: MakeData) -> None:
    config = make_config()
    data = make_data(config)
    pictures.save_training_images(RunFolder(tmp_path), config, data)
    with Image.open(tmp_path / "pictures" / "train.png") as file:
        picture = np.asarray(file)
    assert picture.shape == (6 * 16, 10 * 16)
    assert (picture[16:32, 48:64] == data.train_images[13, 0].numpy()).all()
    facts = json.loads((tmp_path / "pictures" / "train.json").read_text())
    assert facts["sheets"] == ["train.png"]
    assert facts["labels"] == data.train_labels[:60].tolist()
    assert not (tmp_path / "pictures" / "original.png").exists()


def test_permuted_and_augmented_as_the_net_sees_them(
    tmp_path: Path, make_config: MakeConfig, make_data: MakeData
) -> None:
    config = make_config(permute_pixels=True, augmentation="crop_flip", normalization="none")
    data = make_data(config, shape=(3, 16, 16))
    rows = data.train_indices[:60]
    seen = {}
    epoch = loader.training_epoch(config, data, 1)
    inputs = torch.cat([images for images, _labels in epoch])
    for row, image in zip(epoch.order.tolist(), inputs, strict=True):
        seen[row] = (image * 255).round().to(torch.uint8)
    assert torch.equal(pictures.as_seen(config, data, rows), torch.stack([seen[row] for row in rows.tolist()]))
    pictures.save_training_images(RunFolder(tmp_path), config, data)
    with Image.open(tmp_path / "pictures" / "original.png") as file:
        assert (file.mode, file.size) == ("RGB", (160, 96))
