"""Images and steps per epoch, and learning rates as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from trainer import loader, schedule
from trainer.config import RunConfig

MakeConfig = Callable[..., RunConfig]


@pytest.mark.parametrize("num_images", [1, 2, 7, 100, 1437])
@pytest.mark.parametrize("validation", [0.0, 0.05, 0.1, 0.5])
@pytest.mark.parametrize("part", [0.001, 0.37, 0.5, 1.0])
def test_an_epoch_has_the_images_that_the_loader_chooses(
    make_config: MakeConfig, num_images: int, validation: float, part: float
) -> None:
    config = make_config(validation_fraction=validation, train_fraction=part)
    chosen, _held_out = loader.choose_images(config, torch.arange(num_images) % 4)
    count = schedule.images_per_epoch(num_images, config)
    assert count == len(chosen)
    assert schedule.steps_per_epoch(num_images, config) == math.ceil(count / config.batch_size)


def rates(config: RunConfig, steps: int) -> list[float]:
    rate_of = schedule.learning_rates(config, steps)
    return [rate_of(step) for step in range(1, steps + 1)]


def test_constant(make_config: MakeConfig) -> None:
    assert rates(make_config(learning_rate=0.1), 3) == [0.1] * 3


def test_cosine_falls_from_the_rate_to_nearly_zero(make_config: MakeConfig) -> None:
    values = rates(make_config(learning_rate=0.1, schedule="cosine"), 100)
    assert values == sorted(values, reverse=True)
    assert values[0] == pytest.approx(0.1, rel=1e-3)
    assert 0 < values[-1] < 1e-5
    assert values[49] + values[50] == pytest.approx(0.1)


def test_one_cycle_peaks_where_it_should(make_config: MakeConfig) -> None:
    values = rates(make_config(learning_rate=0.1, schedule="one_cycle", peak_at=0.25), 200)
    assert values.index(max(values)) in (49, 50)
    assert max(values) == pytest.approx(0.1, rel=0.01)
    assert values[0] == pytest.approx(0.001)
    assert 0 < values[-1] < 1e-3
