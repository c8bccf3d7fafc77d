"""3 x 3 convolutions as matrix products against PyTorch's convolution in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.fast import columns, winograd
from trainer.fast.conv3x3 import Conv3x3

pytestmark = pytest.mark.arithmetic
CONVOLVE = {"winograd": winograd.convolve, "columns": columns.convolve}
# Parts of the largest value. Winograd's tiles of 4 x 4 outputs lose two digits of float32's seven (module docstring).
# In bfloat16 a result is rounded by 2^-9, and so is the gradient of the outputs from which the others are computed.
TOLERANCE = {"winograd": 3e-5, "columns": 2**-7}


def _with_gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The output, and the gradients of a fixed sum of it by the inputs, in float64."""
    factors = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    gradients = torch.autograd.grad((output * factors).sum(), inputs)
    return [tensor.detach().double() for tensor in (output, *gradients)]


def _layer(kind: str) -> Conv3x3:
    torch.manual_seed(0)
    layer = Conv3x3(nn.Conv2d(128, 24, 3, padding=1), CONVOLVE[kind])
    for parameter in layer.parameters():
        parameter.data = parameter.data.bfloat16().float()  # numbers that both kinds take without rounding them
    return layer


@pytest.mark.parametrize("size", [(2, 2), (4, 4), (8, 8), (6, 10), (4, 12), (16, 16), (5, 8), (3, 3), (7, 6), (1, 1)])
@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", CONVOLVE)
def test_output_and_gradients_are_those_of_a_convolution(
    kind: str, size: tuple[int, int], order: torch.memory_format
) -> None:
    layer = _layer(kind).to(memory_format=order)
    assert layer.bias is not None
    images = torch.randn(3, 128, *size).bfloat16().float().contiguous(memory_format=order).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "columns"):
        output = layer(images)
    found = _with_gradients(output, [images, layer.weight, layer.bias])
    exact = [tensor.detach().double().requires_grad_() for tensor in (images, layer.weight, layer.bias)]
    expected = _with_gradients(F.conv2d(exact[0], exact[1], exact[2], padding=1), exact)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=TOLERANCE[kind] * float(theirs.abs().max()))


@pytest.mark.parametrize("size", [(4, 4), (1, 1), (32, 32)])
def test_columns_compute_in_bfloat16_as_autocast_does(size: tuple[int, int]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert _layer("columns")(torch.randn(2, 128, *size)).dtype == torch.bfloat16


def test_few_channels_take_pytorchs_own_convolution() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(64, 24, 3, padding=1)
    images = torch.randn(3, 64, 8, 8)
    assert torch.equal(Conv3x3(plain, winograd.convolve)(images), plain(images))
