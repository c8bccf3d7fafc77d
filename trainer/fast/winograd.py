"""3 x 3 convolution on a CPU in float32 with fewer multiplications: Winograd's minimal filtering.

The algorithm is F(m x m, 3 x 3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015. A tile of
(m + 2) x (m + 2) input pixels gives m x m outputs with (m + 2)^2 multiplications in place of 9 m^2: 4 times fewer for
m = 4, 3.24 times for m = 3, 2.25 times for m = 2. PyTorch's convolution already multiplies about as fast as the CPU can,
so it can only be beaten with fewer multiplications. Results differ from a direct convolution by rounding errors, about
1e-5 of the largest output for m = 4 and 1e-6 for m = 2 and 3. They are the same on every call.

With a tile d, a filter g and the outputs Y of the tile: Y = A' [sum over channels of (G g G') * (B' d B)] A, where * is
element by element and ' is the transpose. At each of the (m + 2)^2 positions in the bracket, the sum over channels is a
matrix product. The transforms are matrix products too: a flattened tile is multiplied by a Kronecker product.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# B', G and A' of F(m, 3). Those for m = 2 and 4 are from section 4 of the paper. Those for m = 3 follow by the same
# construction (Toom and Cook) from the points 0, 1, -1, 2 and infinity.
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
        [
            [4, 0, -5, 0, 1, 0],
            [0, -4, -4, 1, 1, 0],
            [0, 4, -4, -1, 1, 0],
            [0, -2, -1, 2, 1, 0],
            [0, 2, -1, -2, 1, 0],
            [0, 4, 0, -5, 0, 1],
        ],
        [
            [1 / 4, 0, 0],
            [-1 / 6, -1 / 6, -1 / 6],
            [-1 / 6, 1 / 6, -1 / 6],
            [1 / 24, 1 / 12, 1 / 6],
            [1 / 24, -1 / 12, 1 / 6],
            [0, 0, 1],
        ],
        [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    ),
}


def convolve(images: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve images [N, C, H, W] with weight [K, C, 3, 3], add bias [K], with padding 1; all are float32.

    The result is [N, K, H, W] in channels_last order.
    """
    height, width = images.shape[2:]
    m = min((4, 3, 2), key=lambda m: _multiplications(height, width, m))
    filled = F.pad(images, (0, -width % m, 0, -height % m)) if height % m or width % m else images
    output: Tensor = _Winograd.apply(filled, weight, bias, m)
    return output[:, :, :height, :width]


def _multiplications(height: int, width: int, m: int) -> int:
    """Multiplications for the tiles that cover an image, per pair of an input and an output channel."""
    return -(-height // m) * -(-width // m) * (m + 2) ** 2


@cache
def _transforms(m: int) -> tuple[Tensor, Tensor, Tensor]:
    """The transforms of flattened input tiles, filters and output tiles.

    With t = m + 2 their shapes are [t * t, t * t], [t * t, 9] and [m * m, t * t].
    """
    matrices = [torch.tensor(matrix, dtype=torch.float32) for matrix in _MATRICES[m]]
    input_transform, filter_transform, output_transform = (torch.kron(matrix, matrix) for matrix in matrices)
    return input_transform, filter_transform, output_transform


@cache
def _inner(m: int) -> Tensor:
    """The input transform [t * t, m * m] for images of m x m pixels, with t = m + 2.

    Such an image is a single tile with a border of zeros, so the columns for the border are left out.
    """
    t = m + 2
    return _transforms(m)[0].view(t * t, t, t)[:, 1:-1, 1:-1].reshape(t * t, m * m).contiguous()


class _Winograd(torch.autograd.Function):
    """``convolve`` with its gradients, for images whose height and width are multiples of m."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, m: int) -> Tensor:
        _input, filter_transform, output_transform = _transforms(m)
        channels, filters = weight.shape[1], weight.shape[0]
        tiles = _transformed_input(images.permute(0, 2, 3, 1), m)
        matrices = (filter_transform @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(-1, filters, channels)
        products = torch.bmm(tiles, matrices.transpose(1, 2))
        products[m + 3] += bias  # position (1, 1) of the tile has weight 1 in every output
        output = _untiled((output_transform @ products.flatten(1)).view(m, m, -1), images.shape, filters, m)
        ctx.save_for_backward(tiles, matrices)
        ctx.m, ctx.shape = m, images.shape
        return output.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        tiles, matrices = ctx.saved_tensors
        _input, filter_transform, output_transform = _transforms(ctx.m)
        filters, channels = matrices.shape[1:]
        rows = _tiled(gradient.permute(0, 2, 3, 1), ctx.m).flatten(2).flatten(0, 1)
        products = (output_transform.T @ rows).view(len(tiles), -1, filters)
        weights = filter_transform.T @ torch.bmm(products.transpose(1, 2), tiles).flatten(1)
        weight = weights.view(3, 3, filters, channels).permute(2, 3, 0, 1)
        images = None
        if ctx.needs_input_grad[0]:
            images = _input_gradient(torch.bmm(products, matrices), ctx.shape, ctx.m).permute(0, 3, 1, 2)
        return images, weight, products[ctx.m + 3].sum(0), None


def _tiled(pixels: Tensor, m: int) -> Tensor:
    """[N, H, W, C] -> [m, m, N, H / m, W / m, C]."""
    count, height, width, channels = pixels.shape
    return pixels.reshape(count, height // m, m, width // m, m, channels).permute(2, 4, 0, 1, 3, 5)


def _untiled(pixels: Tensor, shape: torch.Size, channels: int, m: int) -> Tensor:
    """[m, m, N, H / m, W / m, C] in any flattened shape -> [N, H, W, C]. ``shape`` is that of the images, [N, _, H, W]."""
    count, _channels, height, width = shape
    rows, columns = height // m, width // m
    tiles = pixels.view(m, m, count, rows, columns, channels)
    return tiles.permute(2, 3, 0, 4, 1, 5).reshape(count, height, width, channels)


def _transformed_input(pixels: Tensor, m: int) -> Tensor:
    """[N, H, W, C] -> [t * t, number of tiles, C]: transformed tiles of t x t pixels, with t = m + 2.

    Neighbouring tiles overlap by 2 pixels, and there are zeros around the image.
    """
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
    """[t * t, number of tiles, C] -> [N, H, W, C]: the transpose of ``_transformed_input``, so overlapping tiles add up.

    ``shape`` is that of the images, [N, C, H, W].
    """
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
