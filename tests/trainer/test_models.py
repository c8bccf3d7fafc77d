"""Parameter counts of the notebook, widths, padding, and weights from the seed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from trainer import models
from trainer.config import MODELS, RunConfig

MNIST, CIFAR10 = (1, 28, 28), (3, 32, 32)


@pytest.mark.parametrize(
    ("model", "shape", "count"),
    [
        ("fc", MNIST, 6_442),
        ("cnn", MNIST, 6_422),
        ("lenet", CIFAR10, 62_006),
        ("vgg", CIFAR10, 9_231_114),
        ("vgg16", CIFAR10, 33_646_666),
    ],
)
def test_parameters_at_the_notebooks_shapes(
    make_config: Callable[..., RunConfig], model: str, shape: tuple[int, int, int], count: int
) -> None:
    with torch.device("meta"):
        assert models.count_parameters(models.build(make_config(model=model), shape, 10)) == count


@pytest.mark.parametrize("model", [*MODELS])
@pytest.mark.parametrize("shape", [(1, 16, 17), (3, 40, 33)])
def test_any_size_channels_classes_and_width(
    make_config: Callable[..., RunConfig], model: str, shape: tuple[int, int, int]
) -> None:
    net = models.build(make_config(model=model, width=2), shape, 7)
    assert net(torch.zeros(2, *shape)).shape == (2, 7)


def test_padding_is_even_and_zero(make_config: Callable[..., RunConfig]) -> None:
    net = models.build(make_config(model="vgg", width=1), (1, 28, 27), 3)
    padded = net[0](torch.ones(1, 1, 28, 27))
    assert isinstance(net[0], nn.ZeroPad2d)
    assert padded.shape == (1, 1, 32, 32)
    assert padded[0, 0, 2:30, 2:29].min() == 1
    assert padded.sum() == 28 * 27


@pytest.mark.parametrize(("channels", "width", "default", "wanted"), [(16, 6, 6, 16), (16, 3, 6, 8), (6, 1, 64, 1)])
def test_width_scales_in_proportion(channels: int, width: int, default: int, wanted: int) -> None:
    assert models.scaled(channels, width, default) == wanted


def test_linear_layers_keep_their_size(make_config: Callable[..., RunConfig]) -> None:
    net = models.build(make_config(model="lenet", width=12), CIFAR10, 10)
    sizes = [layer.out_features for layer in net if isinstance(layer, nn.Linear)]
    channels = [layer.out_channels for layer in net if isinstance(layer, nn.Conv2d)]
    assert (channels, sizes) == ([12, 32], [120, 84, 10])


def test_weights_follow_from_the_seed_alone(make_config: Callable[..., RunConfig]) -> None:
    state = torch.get_rng_state()
    first, again, other = (
        models.build(make_config(model="cnn", seed=seed), MNIST, 10).state_dict()["conv1.weight"] for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("side", [16, 20, 24, 28])
def test_vgg_takes_smaller_images_where_its_poolings_halve_evenly(
    make_config: Callable[..., RunConfig], side: int
) -> None:
    config = make_config(model="vgg", width=4)
    assert models.build(config, (3, 32, 32), 10)(torch.zeros(2, 3, side, side)).shape == (2, 10)
