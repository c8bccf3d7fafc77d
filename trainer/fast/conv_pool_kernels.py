"""5 x 5 convolution, pooling by 2 and ReLU in one pass on one core, compiled by Numba for the CPU that it runs on.

PyTorch's convolution reaches a quarter of a core's rate where layers have 3 to 16 channels, as in ``cnn`` and ``lenet``:
too few for a vector of channels or for a matrix product. Here a vector holds the same pixel of several images: arrays are
[C, H, W, N], the batch last, so a row of pixels of all images is one piece of memory, its neighbour begins N numbers
later, and every loop runs along it for any number of channels. Two filters are done at a time, so that what is loaded is
used twice. Results don't depend on anything but the input.

All arrays are float32 and contiguous. Loops may be reordered and multiply-adds fused, but NaN and infinity keep their
meaning, so that a loss which is no number is still seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
_ZERO = np.float32(0)
_IMAGES, _MATRICES, _VECTOR = "float32[:, :, :, ::1]", "float32[:, :, ::1]", "float32[::1]"


def compiled(
    signature: str | list[str] | None = None, *, inline: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiled for the CPU at hand, and kept on disk for later processes where a folder for it can be written."""
    options: dict[str, Any] = {
        "fastmath": {"reassoc", "contract", "nsz"}, "nogil": True, "error_model": "numpy", "forceinline": inline,
    }  # fmt: skip

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            compiled: Callable[..., Any] = njit(signature, cache=True, **options)(function)
        except RuntimeError:  # neither this folder nor the user's cache can be written
            compiled = njit(signature, **options)(function)
        return compiled

    return decorate


@compiled(inline=True)
def _convolve(first: Floats, second: Floats, pixels: Floats, one: Floats, two: Floats, count: int) -> None:
    """Add a row of pixels, weighted by a row of each of two filters, to two rows of outputs."""
    length = len(first)
    a0, a1, a2, a3, a4 = one[0], one[1], one[2], one[3], one[4]
    b0, b1, b2, b3, b4 = two[0], two[1], two[2], two[3], two[4]
    x0, x1, x2 = pixels[:length], pixels[count : count + length], pixels[2 * count : 2 * count + length]
    x3, x4 = pixels[3 * count : 3 * count + length], pixels[4 * count : 4 * count + length]
    for i in range(length):
        first[i] += a0 * x0[i] + a1 * x1[i] + a2 * x2[i] + a3 * x3[i] + a4 * x4[i]
        second[i] += b0 * x0[i] + b1 * x1[i] + b2 * x2[i] + b3 * x3[i] + b4 * x4[i]


@compiled(inline=True)
def _products(first: Floats, second: Floats, pixels: Floats, count: int, length: int, sums: Floats) -> None:
    """Sums [2, 5] of two rows of gradients times the pixels that each of five weights met."""
    a0 = a1 = a2 = a3 = a4 = b0 = b1 = b2 = b3 = b4 = _ZERO
    x0, x1, x2 = pixels[:length], pixels[count : count + length], pixels[2 * count : 2 * count + length]
    x3, x4 = pixels[3 * count : 3 * count + length], pixels[4 * count : 4 * count + length]
    for i in range(length):
        a, b = first[i], second[i]
        a0 += a * x0[i]
        a1 += a * x1[i]
        a2 += a * x2[i]
        a3 += a * x3[i]
        a4 += a * x4[i]
        b0 += b * x0[i]
        b1 += b * x1[i]
        b2 += b * x2[i]
        b3 += b * x3[i]
        b4 += b * x4[i]
    sums[0, 0], sums[0, 1], sums[0, 2], sums[0, 3], sums[0, 4] = a0, a1, a2, a3, a4
    sums[1, 0], sums[1, 1], sums[1, 2], sums[1, 3], sums[1, 4] = b0, b1, b2, b3, b4


@compiled()
def _spread(pixels: Floats, first: Floats, second: Floats, one: Floats, two: Floats, count: int, length: int) -> None:
    """Add to the gradient of a row of pixels what two rows of gradients, with zeros at both ends, give it."""
    a0, a1, a2, a3, a4 = one[4], one[3], one[2], one[1], one[0]
    b0, b1, b2, b3, b4 = two[4], two[3], two[2], two[1], two[0]
    p0, p1, p2 = first[:length], first[count : count + length], first[2 * count : 2 * count + length]
    p3, p4 = first[3 * count : 3 * count + length], first[4 * count : 4 * count + length]
    q0, q1, q2 = second[:length], second[count : count + length], second[2 * count : 2 * count + length]
    q3, q4 = second[3 * count : 3 * count + length], second[4 * count : 4 * count + length]
    for i in range(length):
        pixels[i] += (
            a0 * p0[i] + a1 * p1[i] + a2 * p2[i] + a3 * p3[i] + a4 * p4[i]
            + b0 * q0[i] + b1 * q1[i] + b2 * q2[i] + b3 * q3[i] + b4 * q4[i]
        )  # fmt: skip


@compiled(inline=True)
def _pool(upper: Floats, lower: Floats, output: Floats, place: Floats) -> None:
    """The largest of four pixels and its place; ReLU. Places are float32 so that one vector does both."""
    count = len(output)
    x0, x1, x2, x3 = upper[:count], upper[count : 2 * count], lower[:count], lower[count : 2 * count]
    for i in range(count):
        largest = max(max(x0[i], x1[i]), max(x2[i], x3[i]))
        at = np.float32(4)
        at = np.float32(3) if x2[i] == largest else at
        at = np.float32(2) if x1[i] == largest else at
        at = np.float32(1) if x0[i] == largest else at
        place[i] = at if largest > _ZERO else _ZERO
        output[i] = _ZERO if largest <= _ZERO else largest  # a NaN stays one


@compiled(inline=True)
def _unpool(upper: Floats, lower: Floats, gradient: Floats, place: Floats) -> np.float32:
    """Bring gradients back to the pixels that they belong to, zeros elsewhere; their sum."""
    count = len(gradient)
    x0, x1, x2, x3 = upper[:count], upper[count : 2 * count], lower[:count], lower[count : 2 * count]
    total = _ZERO
    for i in range(count):
        at, value = place[i], gradient[i]
        x0[i] = value if at == np.float32(1) else _ZERO
        x1[i] = value if at == np.float32(2) else _ZERO
        x2[i] = value if at == np.float32(3) else _ZERO
        x3[i] = value if at == np.float32(4) else _ZERO
        total += value if at > _ZERO else _ZERO
    return total


@compiled(f"void({_IMAGES}, {_IMAGES}, {_VECTOR}, {_IMAGES}, {_IMAGES}, {_MATRICES})")
def forward(images: Floats, weight: Floats, bias: Floats, output: Floats, place: Floats, rows: Floats) -> None:
    """Fill ``output`` and ``place``, both [K, P, Q, N] with P = (H - 4) // 2 and Q = (W - 4) // 2.

    ``images`` [C, H, W, N], ``weight`` [K, C, 5, 5], ``bias`` [K]. ``place`` says which of its four pixels an output came
    from: 1 to 4 in reading order, the first of equal ones, 0 where ReLU stopped it. ``rows`` [2, 2, 2 Q N] is scratch.
    """
    channels, _height, _width, count = images.shape
    filters, height, width, _count = output.shape
    for row in range(height):
        for one in range(0, filters, 2):
            two = min(one + 1, filters - 1)
            for line in range(2):
                rows[line, 0] = bias[one]
                rows[line, 1] = bias[two]
                for channel in range(channels):
                    for y in range(5):
                        pixels = images[channel, 2 * row + line + y].reshape(-1)
                        _convolve(
                            rows[line, 0],
                            rows[line, 1],
                            pixels,
                            weight[one, channel, y],
                            weight[two, channel, y],
                            count,
                        )
            for k in range(one, two + 1):
                for column in range(width):
                    begin = 2 * column * count
                    upper, lower = rows[0, k - one, begin:], rows[1, k - one, begin:]
                    _pool(upper, lower, output[k, row, column], place[k, row, column])


@compiled(f"void({', '.join([_IMAGES] * 6)}, {_VECTOR}, {_MATRICES})")
def backward(
    images: Floats, weight: Floats, gradient: Floats, place: Floats, of_images: Floats, of_weight: Floats,
    of_bias: Floats, rows: Floats,
) -> None:  # fmt: skip
    """Add the gradients of a sum to ``of_images`` (not where it is empty), ``of_weight`` and ``of_bias``.

    ``gradient`` and ``place`` are [K, P, Q, N] as of ``forward``; ``rows`` [2, 2, (2 Q + 8) N] is scratch full of zeros.
    """
    channels, _height, _width, count = images.shape
    filters, height, width, _count = gradient.shape
    border, length = 4 * count, 2 * width * count
    sums = np.empty((2, 5), np.float32)
    for row in range(height):
        for one in range(0, filters, 2):
            two = min(one + 1, filters - 1)
            if two == one:
                rows[:, 1] = 0
            for k in range(one, two + 1):
                for column in range(width):
                    begin = border + 2 * column * count
                    upper, lower = rows[0, k - one, begin:], rows[1, k - one, begin:]
                    of_bias[k] += _unpool(upper, lower, gradient[k, row, column], place[k, row, column])
            for line in range(2):
                first, second = rows[line, 0], rows[line, 1]
                for channel in range(channels):
                    for y in range(5):
                        pixels = images[channel, 2 * row + line + y].reshape(-1)
                        _products(first[border:], second[border:], pixels, count, length, sums)
                        for k in range(one, two + 1):
                            for x in range(5):
                                of_weight[k, channel, y, x] += sums[k - one, x]
                        if of_images.size:
                            pixels = of_images[channel, 2 * row + line + y].reshape(-1)
                            _spread(
                                pixels,
                                first,
                                second,
                                weight[one, channel, y],
                                weight[two, channel, y],
                                count,
                                length + border,
                            )
