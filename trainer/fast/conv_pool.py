"""Convolution 5 x 5, pooling and ReLU as one layer, for nets with few channels on one core of a CPU."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from trainer.fast import conv_pool_kernels as kernels

_MOST_IMAGES = 64


class _ConvPoolReLU(torch.autograd.Function):
    """(images [N, C, H, W], weight [K, C, 5, 5], bias [K]) -> [N, K, (H - 4) // 2, (W - 4) // 2], all float32.

    What comes out lies in memory as [K, P, Q, N], and so does what comes in from another such layer.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        count, _channels, height, width = images.shape
        pixels = _batch_last(images)
        shape = (len(weight), (height - 4) // 2, (width - 4) // 2, count)
        output, place = pixels.new_empty(shape), pixels.new_empty(shape)
        rows = pixels.new_empty(2, 2, 2 * shape[2] * count)
        kernels.forward(*(tensor.detach().numpy() for tensor in (pixels, weight, bias, output, place, rows)))
        ctx.save_for_backward(pixels, weight, place)
        return output.permute(3, 0, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        pixels, weight, place = ctx.saved_tensors
        wanted = ctx.needs_input_grad[0]
        of_images = torch.zeros_like(pixels) if wanted else pixels.new_empty(0, 0, 0, 0)
        of_weight, of_bias = torch.zeros_like(weight), weight.new_zeros(len(weight))
        rows = pixels.new_zeros(2, 2, (2 * place.shape[2] + 8) * pixels.shape[3])
        tensors = (pixels, weight, _batch_last(gradient), place, of_images, of_weight, of_bias, rows)
        kernels.backward(*(tensor.detach().numpy() for tensor in tensors))
        return of_images.permute(3, 0, 1, 2) if wanted else None, of_weight, of_bias


def _batch_last(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [C, H, W, N]; as a matrix, which PyTorch transposes four times as fast."""
    return images.flatten(1).t().contiguous().view(*images.shape[1:], len(images))


class ConvPoolReLU(nn.Conv2d):
    """``nn.Conv2d`` with kernel 5, with the pooling by 2 and the ReLU that follow it."""

    def forward(self, input: Tensor) -> Tensor:
        if len(input) <= _MOST_IMAGES:
            return self._convolved(input)
        return torch.cat([self._convolved(part) for part in torch.split(input, _MOST_IMAGES)])

    def _convolved(self, images: Tensor) -> Tensor:
        return _ConvPoolReLU.apply(images, self.weight, self.bias)  # type: ignore[no-any-return]


def fuse(model: nn.Sequential) -> nn.Sequential:
    """The same net with each 5 x 5 convolution and what follows it in one layer; parameters and their names stay.

    Each convolution of ``cnn`` and ``lenet`` has a ReLU and a pooling by 2 behind it, in either order.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    rest = iter(model.named_children())
    for name, layer in rest:
        if isinstance(layer, nn.Conv2d):
            with torch.device("meta"):
                faster = ConvPoolReLU(layer.in_channels, layer.out_channels, 5)
            faster.weight, faster.bias = layer.weight, layer.bias
            next(rest), next(rest)
            layers[name] = faster
        else:
            layers[name] = layer
    return nn.Sequential(layers)
