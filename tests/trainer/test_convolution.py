"""Convolutions as matrix products against PyTorch's, and the net with pooling before ReLU against the net as it was built."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer import models
from trainer.config import parse_config
from trainer.fast.convolution import Conv3x3, use_products


def _with_gradients(layer: nn.Conv2d, images: Tensor, *, direct: bool) -> list[Tensor]:
    """Output and the gradients of a fixed sum of it, by images, weight and bias, as float32."""
    assert layer.bias is not None
    images = images.detach().requires_grad_()
    output = (F.conv2d(images, layer.weight, layer.bias, padding=1) if direct else layer(images)).float()
    factors = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((output * factors).sum(), [images, layer.weight, layer.bias])
    return [output.detach(), *gradients]


@pytest.mark.parametrize("size", [(2, 2), (4, 4), (8, 8), (6, 10), (4, 12), (16, 16), (5, 8), (3, 3), (7, 6), (1, 1)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("kind", "tolerance"), [("winograd", 3e-5), ("columns", 2**-7)])
def test_output_and_gradients_are_those_of_a_convolution(
    kind: str, tolerance: float, size: tuple[int, int], order: torch.memory_format
) -> None:
    torch.manual_seed(0)
    layer = Conv3x3(nn.Conv2d(128, 24, 3, padding=1), kind).to(memory_format=order)
    images = torch.randn(3, 128, *size).contiguous(memory_format=order)
    for parameter in layer.parameters():
        parameter.data = _exact(parameter.data, kind)
    images = _exact(images, kind)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "columns"):
        found = _with_gradients(layer, images, direct=False)
    for one, other in zip(found, _with_gradients(layer, images, direct=True), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


def _exact(values: Tensor, kind: str) -> Tensor:
    """Values that the products take without rounding them."""
    return values.to(torch.bfloat16).float() if kind == "columns" else values


@pytest.mark.parametrize("size", [(4, 4), (1, 1), (32, 32)])
def test_columns_answer_in_bfloat16_as_autocast_does(size: tuple[int, int]) -> None:
    layer = Conv3x3(nn.Conv2d(128, 24, 3, padding=1), "columns")
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 128, *size)).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["winograd", "columns"])
def test_replaced_layers_keep_names_and_parameters(kind: str) -> None:
    config, _ = parse_config({"dataset": "cifar10", "model": "vgg", "width": 16})
    net = models.build(config, (3, 32, 32), 10)
    before = dict(net.named_parameters())
    use_products(net, kind)
    assert all(after is before[name] for name, after in net.named_parameters())
    assert sum(isinstance(layer, Conv3x3) for layer in net) == 8
    assert list(net.state_dict()) == list(models.build(config, (3, 32, 32), 10).state_dict())


@pytest.mark.parametrize("model", ["cnn", "lenet", "vgg"])
def test_pooling_before_relu_changes_no_bit(model: str) -> None:
    shape = (1, 28, 28) if model == "cnn" else (3, 32, 32)
    config, _ = parse_config({"dataset": "mnist", "model": model, "width": 6})
    built = models.build(config, shape, 10)
    reordered = models.pool_before_relu(copy.deepcopy(built))
    assert [name for name, _ in built.named_children()] != [name for name, _ in reordered.named_children()]
    images = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    images[:, :, :12] = 0  # equal pixels, so that windows have ties, as in the black border of a digit
    outputs = []
    for net in (built, reordered):
        output = net(images)
        output.square().sum().backward()
        outputs.append(output)
    assert torch.equal(*outputs)
    for (name, one), two in zip(built.named_parameters(), reordered.parameters(), strict=True):
        assert torch.equal(_grad(one), _grad(two)), name


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
