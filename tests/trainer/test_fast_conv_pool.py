"""Convolution, pooling and ReLU in one pass against PyTorch's three layers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer import models
from trainer.config import parse_config
from trainer.fast import conv_pool, sequence
from trainer.fast.conv_pool import ConvPoolReLU

pytestmark = pytest.mark.arithmetic


def _with_gradients(layer: nn.Conv2d, images: Tensor, *, fused: bool) -> list[Tensor]:
    """Output and the gradients of a fixed sum of it, by images, weight and bias."""
    assert layer.bias is not None
    images = images.detach().requires_grad_()
    output = layer(images) if fused else F.relu(F.max_pool2d(F.conv2d(images, layer.weight, layer.bias), 2))
    factors = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((output * factors).sum(), [images, layer.weight, layer.bias])
    return [output.detach(), *gradients]


@pytest.mark.parametrize(("channels", "filters"), [(1, 10), (3, 6), (6, 16), (2, 5), (4, 1)])
@pytest.mark.parametrize(
    ("count", "height", "width"), [(8, 28, 28), (64, 14, 14), (5, 6, 9), (70, 13, 12), (1, 11, 32)]
)
def test_output_and_gradients_are_those_of_three_layers(
    channels: int, filters: int, count: int, height: int, width: int
) -> None:
    torch.manual_seed(0)
    layer = ConvPoolReLU(channels, filters, 5)
    images = torch.randn(count, channels, height, width)
    pairs = zip(_with_gradients(layer, images, fused=True), _with_gradients(layer, images, fused=False), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max())))


def test_equal_pixels_give_the_gradient_to_the_first() -> None:
    layer = ConvPoolReLU(1, 2, 5)
    images = torch.zeros(3, 1, 8, 8)
    with torch.no_grad():
        assert layer.bias is not None
        layer.bias.fill_(1.0)
    pairs = zip(_with_gradients(layer, images, fused=True), _with_gradients(layer, images, fused=False), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_not_hidden(value: float) -> None:
    layer = ConvPoolReLU(1, 2, 5)
    with torch.no_grad():
        layer.weight.fill_(value)
        assert not layer(torch.randn(4, 1, 8, 8)).isfinite().all()


@pytest.mark.parametrize("model", ["cnn", "lenet"])
def test_a_fused_net_keeps_names_and_parameters_and_answers_alike(model: str) -> None:
    config, _ = parse_config({"dataset": "mnist", "model": model})
    built = sequence.pool_before_relu(models.build(config, (1, 28, 28), 10))
    net = sequence.replace(copy.deepcopy(built), conv_pool.faster)
    assert list(net.state_dict()) == list(models.build(config, (1, 28, 28), 10).state_dict())
    assert sum(isinstance(layer, ConvPoolReLU) for layer in net) == 2
    images = torch.randn(130, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for one in (net, built):
        one(images).square().sum().backward()
    torch.testing.assert_close(net(images), built(images), rtol=1e-4, atol=1e-5)
    for found, expected in zip(net.parameters(), built.parameters(), strict=True):
        assert found.grad is not None
        assert expected.grad is not None
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-3, atol=1e-4)


def test_the_same_input_gives_the_same_bits() -> None:
    torch.manual_seed(0)
    layer, images = ConvPoolReLU(3, 6, 5), torch.randn(64, 3, 32, 32)
    first, second = (_with_gradients(layer, images, fused=True) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
