"""Presets are valid, and named as promised."""

from __future__ import annotations

import itertools

import pytest

from trainer.config import parse_config
from trainer.presets import PRESETS, Preset


def test_the_promised_names_are_there() -> None:
    promised = (
        "mnist-fc mnist-cnn mnist-fc-against-cnn mnist-permuted cifar10-lenet cifar10-vgg cifar10-vgg16 "
        "mnist-cnn-fast cifar10-lenet-fast cifar10-vgg-fast"
    )
    assert set(promised.split()) <= set(PRESETS)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=lambda preset: preset.name)
def test_every_combination_is_valid_without_a_warning(preset: Preset) -> None:
    for values in itertools.product(*preset.grid.values()):
        _config, warnings = parse_config({**preset.base, **dict(zip(preset.grid, values, strict=True))})
        assert warnings == []
