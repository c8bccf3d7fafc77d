"""3 x 3 convolution on a CPU as matrix products over the channels: with fewer multiplications, or in bfloat16.

In float32, PyTorch's own convolution runs near the rate of the machine's matrix product here, so only an algorithm that
multiplies less is faster: Winograd's minimal filtering F(m x m, 3 x 3) (Lavin and Gray, "Fast Algorithms for Convolutional
Neural Networks", 2015). A tile of (m + 2) x (m + 2) input pixels gives m x m outputs with (m + 2)^2 multiplications in place of
9 m^2: 4 times fewer for m = 4, 3.24 for m = 3, 2.25 for m = 2. The result is that of a convolution up to rounding (1e-5
of the largest output for m = 4, 1e-6 for m = 2 and 3), and the same on every call.

With d a tile, g a filter and Y its outputs: Y = A' [sum over channels of (G g G') * (B' d B)] A. For each of the
(m + 2)^2 places the sum over channels is a matrix product, and so are the transforms themselves, written for flattened
tiles with Kronecker products.

In bfloat16 the product is the fast part where a CPU has instructions for it, and what would be saved is little; there each
pixel's 3 x 3 neighbours are written side by side, and the convolution is one product of these rows (Chellapilla, Puri and
Simard, "High Performance Convolutional Neural Networks for Document Processing", 2006). The gradient of the pixels is the
convolution of the outputs' gradient with the filters turned round, so the same rows serve it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# B', G and A' of F(m, 3): those of m = 2 and 4 from the paper, section 4; that of m = 3 by the same construction (Toom and
# Cook) with the points 0, 1, -1, 2 and infinity.
_MATRICES = {
    2: (
        [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
        [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
        [[1, 1, 1, 0], [0, 1, -1, -1]],
    ),
    3: (
        [[2, -1, -2, 1, 0], [0, -2, -1, 1, 0], [0, 2, -3, 1, 0], [0, -1, 0, 1, 0], [0, 2, -1, -2, 1]],
        [[1 / 2, 0, 0], [-1 / 2, -1 / 2, -1 / 2], [-1 / 6, 1 / 6, -1 / 6], [1 / 6, 1 / 3, 2 / 3], [0, 0, 1]],
        [[1, 1, 1, 1, 0], [0, 1, -1, 2, 0], [0, 1, 1, 4, 1]],
    ),
    4: (
        [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
         [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]],
        [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
         [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]],
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
}  # fmt: skip


_FEWEST_CHANNELS = 128  # below, the transforms cost what the products save (3 to 64 and 64 to 128 channels, here)


@cache
def _transforms(m: int) -> tuple[Tensor, Tensor, Tensor]:
    """(input, filter, output) transform of flattened tiles: [t * t, t * t], [t * t, 9], [m * m, t * t], t = m + 2."""
    one, two, three = (torch.tensor(matrix, dtype=torch.float32) for matrix in _MATRICES[m])
    return torch.kron(one, one), torch.kron(two, two), torch.kron(three, three)


@cache
def _inner(m: int) -> Tensor:
    """The input transform where one tile holds the whole image: the columns of its m x m pixels, without the border."""
    t = m + 2
    return _transforms(m)[0].view(t * t, t, t)[:, 1:-1, 1:-1].reshape(t * t, m * m).contiguous()


class _Winograd(torch.autograd.Function):
    """(images [N, C, H, W], weight [K, C, 3, 3], bias [K], m) -> [N, K, H, W] in channels_last order, padding 1."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, m: int) -> Tensor:
        _input, of_filter, of_output = _transforms(m)
        channels, filters = weight.shape[1], weight.shape[0]
        tiles = _transformed_input(images.permute(0, 2, 3, 1), m)
        matrices = (of_filter @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(-1, filters, channels)
        products = torch.bmm(tiles, matrices.transpose(1, 2))
        products[m + 3] += bias  # the place that enters each output of the tile with weight 1
        output = _untiled((of_output @ products.flatten(1)).view(m, m, -1), images.shape, filters, m)
        ctx.save_for_backward(tiles, matrices)
        ctx.m, ctx.shape = m, images.shape
        return output.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        tiles, matrices = ctx.saved_tensors
        _input, of_filter, of_output = _transforms(ctx.m)
        filters, channels = matrices.shape[1:]
        rows = _tiled(gradient.permute(0, 2, 3, 1), ctx.m).flatten(2).flatten(0, 1)
        products = (of_output.T @ rows).view(len(tiles), -1, filters)
        of_weight = of_filter.T @ torch.bmm(products.transpose(1, 2), tiles).flatten(1)
        weight = of_weight.view(3, 3, filters, channels).permute(2, 3, 0, 1)
        images = None
        if ctx.needs_input_grad[0]:
            images = _input_gradient(torch.bmm(products, matrices), ctx.shape, ctx.m).permute(0, 3, 1, 2)
        return images, weight, products[ctx.m + 3].sum(0), None


def _tiled(pixels: Tensor, m: int) -> Tensor:
    """[N, H, W, C] -> [m, m, N, H / m, W / m, C]."""
    count, height, width, channels = pixels.shape
    return pixels.reshape(count, height // m, m, width // m, m, channels).permute(2, 4, 0, 1, 3, 5)


def _untiled(pixels: Tensor, shape: torch.Size, channels: int, m: int) -> Tensor:
    """The reverse of ``_tiled``."""
    count, _channels, height, width = shape
    rows, columns = height // m, width // m
    tiles = pixels.view(m, m, count, rows, columns, channels)
    return tiles.permute(2, 3, 0, 4, 1, 5).reshape(count, height, width, channels)


def _transformed_input(pixels: Tensor, m: int) -> Tensor:
    """[N, H, W, C] -> [t * t, number of tiles, C], tiles overlapping by 2 pixels, with a border of zeros."""
    count, height, width, channels = pixels.shape
    if height == width == m:
        return (_inner(m) @ _tiled(pixels, m).reshape(m * m, -1)).view(-1, count, channels)
    t = m + 2
    padded = F.pad(pixels, (0, 0, 1, 1, 1, 1))
    image, row, column, _channel = padded.stride()
    tiles = padded.as_strided(
        (t, t, count, height // m, width // m, channels), (row, column, image, m * row, m * column, 1)
    )
    return (_transforms(m)[0] @ tiles.reshape(t * t, -1)).view(t * t, -1, channels)


def _input_gradient(tiles: Tensor, shape: torch.Size, m: int) -> Tensor:
    """The transpose of ``_transformed_input``: [t * t, number of tiles, C] -> [N, H, W, C], overlaps added."""
    count, channels, height, width = shape
    if height == width == m:
        return _untiled((_inner(m).T @ tiles.flatten(1)).view(m, m, -1), shape, channels, m)
    t, rows, columns = m + 2, height // m, width // m
    pixels = (_transforms(m)[0].T @ tiles.flatten(1)).view(t, t, count, rows, columns, channels)
    pixels = pixels.permute(2, 3, 0, 4, 1, 5)  # [N, rows, t, columns, t, C]
    sums = tiles.new_zeros(count, rows + 1, m, columns + 1, m, channels)
    sums[:, :-1, :, :-1] = pixels[:, :, :m, :, :m]
    sums[:, 1:, :2, :-1] += pixels[:, :, m:, :, :m]
    sums[:, :-1, :, 1:, :2] += pixels[:, :, :m, :, m:]
    sums[:, 1:, :2, 1:, :2] += pixels[:, :, m:, :, m:]
    return sums.view(count, m * (rows + 1), m * (columns + 1), channels)[:, 1 : height + 1, 1 : width + 1]


class _Columns(torch.autograd.Function):
    """(images [N, C, H, W], weight [K, C, 3, 3], bias [K]) -> [N, K, H, W] in channels_last order, padding 1, bfloat16.

    Products add up in float32; what is kept is rounded, as under PyTorch's autocast.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        rows, filters = _neighbours(images), weight.to(torch.bfloat16)
        matrix = filters.permute(0, 2, 3, 1).reshape(-1, 9 * channels)  # a view: as channels_last lies in memory
        output = torch.addmm(bias.to(torch.bfloat16), rows, matrix.t())
        ctx.save_for_backward(rows, filters)
        return output.view(count, height, width, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        rows, filters = ctx.saved_tensors
        count, channels = len(filters), filters.shape[1]
        of_outputs = gradient.permute(0, 2, 3, 1).reshape(-1, count)
        weight = torch.mm(of_outputs.t(), rows).view(count, 3, 3, channels).permute(0, 3, 1, 2)
        images = None
        if ctx.needs_input_grad[0]:
            turned = filters.permute(2, 3, 0, 1).flip(0, 1).reshape(9 * count, channels)
            pixels = torch.mm(_neighbours(gradient), turned)
            images = pixels.view(len(gradient), *gradient.shape[2:], channels).permute(0, 3, 1, 2)
        return images, weight.float(), of_outputs.sum(0, dtype=torch.float32)


def _neighbours(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [N * H * W, 9 * C] in bfloat16: each pixel's 3 x 3 neighbours in reading order, zeros outside."""
    padded = F.pad(images.to(torch.bfloat16).permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    image, row, column, _channel = padded.stride()
    count, channels, height, width = images.shape
    return padded.as_strided((count, height, width, 3, 3, channels), (image, row, column, row, column, 1)).reshape(
        -1, 9 * channels
    )


def _multiplications(height: int, width: int, m: int) -> int:
    """Those of all tiles that cover an image, for each pair of channels."""
    return -(-height // m) * -(-width // m) * (m + 2) ** 2


class Conv3x3(nn.Conv2d):
    """``nn.Conv2d`` with kernel 3 and padding 1, by the faster way for each shape; ``kind`` is winograd or columns."""

    def __init__(self, layer: nn.Conv2d, kind: str) -> None:
        with torch.device("meta"):
            super().__init__(layer.in_channels, layer.out_channels, 3, padding=1)
        self.weight, self.bias, self._kind = layer.weight, layer.bias, kind

    def forward(self, input: Tensor) -> Tensor:
        if self.bias is None or self.in_channels < _FEWEST_CHANNELS:
            return super().forward(input)
        height, width = input.shape[2:]
        if height == width == 1:  # the border's weights meet zeros only
            return F.linear(input.flatten(1), self.weight[:, :, 1, 1], self.bias)[:, :, None, None]
        if self._kind == "columns":
            return _Columns.apply(input, self.weight, self.bias)  # type: ignore[no-any-return]
        m = min((4, 3, 2), key=lambda m: _multiplications(height, width, m))
        filled = F.pad(input, (0, -width % m, 0, -height % m)) if height % m or width % m else input
        output: Tensor = _Winograd.apply(filled, self.weight, self.bias, m)
        return output[:, :, :height, :width]


def use_products(model: nn.Sequential, kind: str) -> None:
    """Replace the layers that can be faster; parameters and their names stay. ``kind`` is winograd or columns."""
    for name, layer in model.named_children():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.padding == (1, 1):
            setattr(model, name, Conv3x3(layer, kind))
