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
    "dataset": "cifar10",
    "epochs": 10,
    "batch_size": 128,
    "optimizer": "adam",
    "learning_rate": 0.001,
    "augmentation": "crop_flip",
    "normalization": "cifar10",
}

# Nesterov's momentum and a rate that rises and falls (one cycle: Smith and Topin 2018) as in the fast CIFAR-10 recipes
# (Page's DAWNBench entries, hlb-CIFAR10, airbench); docs/speed.md has what each part does and its sources.
_FAST: dict[str, Any] = {
    "batch_size": 128,
    "optimizer": "sgd",
    "momentum": 0.9,
    "nesterov": True,
    "schedule": "one_cycle",
    "peak_at": 0.25,
}

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in [
        Preset(
            name="mnist-cnn",
            title=N_("CNN"),
            summary=N_("MNIST, 6,422 parameters"),
            base={"dataset": "mnist", "model": "cnn"},
        ),
        Preset(
            name="mnist-fc",
            title=N_("FC"),
            summary=N_("MNIST, 6,442 parameters"),
            base={"dataset": "mnist", "model": "fc"},
        ),
        Preset(
            name="mnist-fc-against-cnn",
            title=N_("FC against CNN"),
            summary=N_("MNIST, plain and permuted, 4 runs"),
            base={"dataset": "mnist", "model": "fc"},
            grid={"model": ["fc", "cnn"], "permute_pixels": [False, True]},
        ),
        Preset(
            name="mnist-permuted",
            title=N_("Permuted pixels"),
            summary=N_("MNIST, FC and CNN without neighbours, 2 runs"),
            base={"dataset": "mnist", "model": "fc", "permute_pixels": True},
            grid={"model": ["fc", "cnn"]},
        ),
        Preset(
            name="cifar10-lenet",
            title=N_("LeNet"),
            summary=N_("CIFAR-10, 62,006 parameters"),
            base={
                "dataset": "cifar10",
                "model": "lenet",
                "epochs": 10,
                "optimizer": "adam",
                "learning_rate": 0.001,
                "normalization": "half",
            },
        ),
        Preset(
            name="cifar10-vgg",
            title=N_("VGG"),
            summary=N_("CIFAR-10, 9,231,114 parameters"),
            base={"model": "vgg", **_VGG_RECIPE},
        ),
        Preset(
            name="mnist-cnn-fast",
            title=N_("CNN, fast"),
            summary=N_("MNIST, better in the same epoch"),
            base={"dataset": "mnist", "model": "cnn", **_FAST, "learning_rate": 0.05},
        ),
        Preset(
            name="cifar10-lenet-fast",
            title=N_("LeNet, fast"),
            summary=N_("CIFAR-10, as good in 5 epochs"),
            base={
                "dataset": "cifar10",
                "model": "lenet",
                "normalization": "half",
                **_FAST,
                "epochs": 5,
                "learning_rate": 0.05,
            },
        ),
        Preset(
            name="cifar10-vgg-fast",
            title=N_("VGG, fast"),
            summary=N_("CIFAR-10, as good in 3 epochs"),
            base={
                "dataset": "cifar10",
                "model": "vgg",
                "normalization": "cifar10",
                "epochs": 3,
                "batch_size": 512,
                "optimizer": "muon",
                "momentum": 0.6,
                "nesterov": True,
                "learning_rate": 0.12,
                "schedule": "one_cycle",
                "peak_at": 0.15,
                "label_smoothing": 0.1,
                "progressive_size": True,
            },
        ),
        Preset(
            name="cifar10-vgg16",
            title=N_("VGG16"),
            summary=N_("CIFAR-10, 33,646,666 parameters"),
            base={"model": "vgg16", **_VGG_RECIPE},
        ),
    ]
}
