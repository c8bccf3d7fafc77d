"""5 x 5 convolution, max-pooling and ReLU as one layer, for nets with few channels on one core of a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.fast import conv_pool_kernels as kernels
from trainer.fast.sequence import Replacement, halves

_MOST_IMAGES = 64  # per call of a kernel; a larger batch is split


class ConvPoolReLU(nn.Conv2d):
    """``nn.Conv2d`` with kernel 5 and no padding, then max-pooling over 2 x 2 windows, then ReLU, all in float32."""

    def forward(self, input: Tensor) -> Tensor:
        if len(input) <= _MOST_IMAGES:
            return self._forward_part(input)
        return torch.cat([self._forward_part(part) for part in torch.split(input, _MOST_IMAGES)])

    def _forward_part(self, images: Tensor) -> Tensor:
        return _ConvPoolReLU.apply(images, self.weight, self.bias)  # type: ignore[no-any-return]


class _ConvPoolReLU(torch.autograd.Function):
    """(images [N, C, H, W], weight [K, C, 5, 5], bias [K]) -> [N, K, (H - 4) // 2, (W - 4) // 2], all float32.

    The memory of the output is in the order [K, height, width, N], which the next such layer needs.
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
        needs_images = ctx.needs_input_grad[0]
        image_gradient = torch.zeros_like(pixels) if needs_images else pixels.new_empty(0, 0, 0, 0)
        weight_gradient, bias_gradient = torch.zeros_like(weight), weight.new_zeros(len(weight))
        rows = pixels.new_zeros(2, 2, (2 * place.shape[2] + 8) * pixels.shape[3])
        gradients = (image_gradient, weight_gradient, bias_gradient)
        tensors = (pixels, weight, _batch_last(gradient), place, *gradients, rows)
        kernels.backward(*(tensor.detach().numpy() for tensor in tensors))
        return image_gradient.permute(3, 0, 1, 2) if needs_images else None, weight_gradient, bias_gradient


def _batch_last(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [C, H, W, N]. Transposed as a matrix, which is four times as fast in PyTorch as ``permute``."""
    return images.flatten(1).t().contiguous().view(*images.shape[1:], len(images))


def faster(layers: Sequence[nn.Module]) -> Replacement | None:
    """For ``sequence.replace``: replace a 5 x 5 convolution, 2 x 2 max-pooling and ReLU by a ``ConvPoolReLU``."""
    if len(layers) < 3:
        return None
    convolution, pool, relu = layers[:3]
    if not (isinstance(convolution, nn.Conv2d) and halves(pool) and isinstance(relu, nn.ReLU)):
        return None
    if (convolution.kernel_size, convolution.padding, convolution.stride) != ((5, 5), (0, 0), (1, 1)):
        return None
    with torch.device("meta"):
        fused = ConvPoolReLU(convolution.in_channels, convolution.out_channels, 5)
    fused.weight, fused.bias = convolution.weight, convolution.bias
    return fused, 3
