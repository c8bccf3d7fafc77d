"""3 x 3 convolution on a CPU in bfloat16, as one matrix product (im2col).

Each pixel's 3 x 3 neighbours are copied into a row of a matrix, and the convolution is the product of this matrix with the
filters (Chellapilla, Puri and Simard, "High Performance Convolutional Neural Networks for Document Processing", 2006). A
CPU with bfloat16 instructions multiplies so fast that an algorithm with fewer multiplications, such as Winograd's, would
save little.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def convolve(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve images [N, C, H, W] with weight [K, C, 3, 3], add bias [K], with padding 1.

    The result is bfloat16 [N, K, H, W] in channels_last order.
    """
    return _Columns.apply(images, weight, bias)  # type: ignore[no-any-return]


class _Columns(torch.autograd.Function):
    """``convolve`` with its gradients. Sums are float32 and rounded to bfloat16 at the end, as in PyTorch's autocast.

    The gradient of the images is a convolution too: of the gradient of the output with the filters rotated by 180 degrees.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        rows, filters = _neighbours(images), weight.to(torch.bfloat16)
        matrix = filters.permute(0, 2, 3, 1).reshape(-1, 9 * channels)  # no copy: the weights are channels last
        output = torch.addmm(bias.to(torch.bfloat16), rows, matrix.t())
        ctx.save_for_backward(rows, filters)
        return output.view(count, height, width, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        rows, filters = ctx.saved_tensors
        num_filters, channels = filters.shape[:2]
        output_gradient = gradient.permute(0, 2, 3, 1).reshape(-1, num_filters)
        weight = torch.mm(output_gradient.t(), rows).view(num_filters, 3, 3, channels).permute(0, 3, 1, 2)
        images = None
        if ctx.needs_input_grad[0]:
            rotated = filters.permute(2, 3, 0, 1).flip(0, 1).reshape(9 * num_filters, channels)
            pixels = torch.mm(_neighbours(gradient), rotated)
            images = pixels.view(len(gradient), *gradient.shape[2:], channels).permute(0, 3, 1, 2)
        return images, weight.float(), output_gradient.sum(0, dtype=torch.float32)


def _neighbours(images: Tensor) -> Tensor:
    """[N, C, H, W] -> bfloat16 [N * H * W, 9 * C]: each pixel's 3 x 3 neighbours in reading order, 0 outside the image."""
    padded = F.pad(images.to(torch.bfloat16).permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    image, row, column, _channel = padded.stride()
    count, channels, height, width = images.shape
    windows = padded.as_strided((count, height, width, 3, 3, channels), (image, row, column, row, column, 1))
    return windows.reshape(-1, 9 * channels)
