"""Operations of training, counted from the table of layers; the table itself is tested with the host's description."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trainer import layers
from trainer.config import RunConfig


def test_six_operations_for_each_multiply_add(make_config: Callable[..., RunConfig]) -> None:
    config = make_config(model="fc", width=8)
    assert layers.training_flops(config, (1, 28, 28), 10) == 6 * (784 * 8 + 8 * 8 + 8 * 10)


def test_smaller_images_pass_through_the_net_of_the_larger_ones(make_config: Callable[..., RunConfig]) -> None:
    config = make_config(model="vgg")
    whole, half = (layers.training_flops(config, (3, 32, 32), 10, size) for size in (None, (16, 16)))
    assert half / whole == pytest.approx(0.25, rel=1e-3)  # a net built for 16 x 16 would pad them to 32 x 32
