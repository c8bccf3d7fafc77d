"""Presets: named starts, one for each experiment of the teaching notebook that Runoff grew out of."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from trainer.i18n import N_


class Preset(BaseModel):
    """A named start: ``base`` are fields of ``RunConfig``, ``grid`` the fields with several values."""

    name: str
    title: str
    summary: str
    base: dict[str, Any]
    grid: dict[str, list[Any]] = {}
    repeats: int = 1


_VGG_RECIPE: dict[str, Any] = {
    "dataset": "cifar10", "epochs": 10, "batch_size": 128, "optimizer": "adam", "learning_rate": 0.001,
    "augmentation": "crop_flip", "normalization": "cifar10",
}  # fmt: skip

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in [
        Preset(
            name="mnist-cnn", title=N_("CNN"), summary=N_("MNIST, 6,422 parameters"),
            base={"dataset": "mnist", "model": "cnn"},
        ),
        Preset(
            name="mnist-fc", title=N_("FC"), summary=N_("MNIST, 6,442 parameters"),
            base={"dataset": "mnist", "model": "fc"},
        ),
        Preset(
            name="mnist-fc-against-cnn", title=N_("FC against CNN"), summary=N_("MNIST, plain and permuted, 4 runs"),
            base={"dataset": "mnist", "model": "fc"},
            grid={"model": ["fc", "cnn"], "permute_pixels": [False, True]},
        ),
        Preset(
            name="mnist-permuted", title=N_("Permuted pixels"), summary=N_("MNIST, FC and CNN without neighbours, 2 runs"),
            base={"dataset": "mnist", "model": "fc", "permute_pixels": True},
            grid={"model": ["fc", "cnn"]},
        ),
        Preset(
            name="cifar10-lenet", title=N_("LeNet"), summary=N_("CIFAR-10, 62,006 parameters"),
            base={"dataset": "cifar10", "model": "lenet", "epochs": 10, "optimizer": "adam", "learning_rate": 0.001,
                  "normalization": "half"},
        ),
        Preset(
            name="cifar10-vgg", title=N_("VGG"), summary=N_("CIFAR-10, 9,231,114 parameters"),
            base={"model": "vgg", **_VGG_RECIPE},
        ),
        Preset(
            name="cifar10-vgg16", title=N_("VGG16"), summary=N_("CIFAR-10, 33,646,666 parameters"),
            base={"model": "vgg16", **_VGG_RECIPE},
        ),
    ]
}  # fmt: skip
