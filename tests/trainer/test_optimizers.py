"""Schedules as functions of the step, and the running mean of weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from trainer import optimizers
from trainer.config import RunConfig

MakeConfig = Callable[..., RunConfig]


def rates(config: RunConfig, steps: int) -> list[float]:
    rate_of = optimizers.learning_rates(config, steps)
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


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizer_takes_its_fields(make_config: MakeConfig, name: str) -> None:
    parameters = [nn.Parameter(torch.ones(2))]
    optimizer = optimizers.build(
        make_config(optimizer=name, learning_rate=0.2, weight_decay=0.1), parameters, torch.device("cpu")
    )
    assert type(optimizer).__name__.lower() == name
    assert optimizer.param_groups[0]["lr"] == 0.2
    assert optimizer.param_groups[0]["weight_decay"] == 0.1


def test_average_follows_its_formula() -> None:
    source, target = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    average = optimizers.WeightAverage(0.5, source, target)
    for step, value in enumerate((3.0, 5.0), start=1):
        nn.init.constant_(source.weight, value)
        assert source.num_batches_tracked is not None
        source.num_batches_tracked.fill_(step)
        average.update(step)
    mean = 1.0
    for decay, value in ((2 / 11, 3.0), (3 / 12, 5.0)):
        mean += (1 - decay) * (value - mean)
    assert target.weight.tolist() == pytest.approx([mean, mean])
    assert int(target.num_batches_tracked or 0) == 2
