"""5 x 5 convolution, 2 x 2 max-pooling and ReLU in one pass on one core, compiled by Numba for the CPU of this machine.

PyTorch's convolution reaches only a quarter of a core's peak rate for layers with 3 to 16 channels, as in ``cnn`` and
``lenet``, which is too few to fill a vector with channels or to use a matrix product. Here a vector holds the same pixel of
several images. Arrays are [C, H, W, N], with the images of the batch (N) last. So a row of pixels of all images is
contiguous in memory, a pixel's right neighbour is N numbers later, and the innermost loops are long whatever the number of
channels. Two filters are computed at a time, so that each pixel is loaded once for both. Results depend on the input only.

All arrays are float32 and contiguous. Below, N is also called ``count``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainer.fast.kernels import ZERO, compiled, first_largest

Floats = NDArray[np.float32]
_IMAGES, _MATRICES, _VECTOR = "float32[:, :, :, ::1]", "float32[:, :, ::1]", "float32[::1]"


@compiled(inline=True)
def _convolve(out_a: Floats, out_b: Floats, pixels: Floats, filter_a: Floats, filter_b: Floats, count: int) -> None:
    """Convolve a row of pixels with a row of 5 weights of each of two filters, a and b, and add to a row of outputs each.

    Rows are flattened: ``out_a`` and ``out_b`` are [width * N], ``pixels`` is [at least (width + 4) * N].
    """
    a0, a1, a2, a3, a4 = filter_a[0], filter_a[1], filter_a[2], filter_a[3], filter_a[4]
    b0, b1, b2, b3, b4 = filter_b[0], filter_b[1], filter_b[2], filter_b[3], filter_b[4]
    length = len(out_a)
    x0, x1, x2 = pixels[:length], pixels[count : count + length], pixels[2 * count : 2 * count + length]
    x3, x4 = pixels[3 * count : 3 * count + length], pixels[4 * count : 4 * count + length]
    for i in range(length):
        out_a[i] += a0 * x0[i] + a1 * x1[i] + a2 * x2[i] + a3 * x3[i] + a4 * x4[i]
        out_b[i] += b0 * x0[i] + b1 * x1[i] + b2 * x2[i] + b3 * x3[i] + b4 * x4[i]


@compiled(inline=True)
def _products(grad_a: Floats, grad_b: Floats, pixels: Floats, count: int, length: int, sums: Floats) -> None:
    """Set ``sums`` [2, 5] to the gradients of a row of 5 weights of two filters, a and b, from one row of the image.

    ``grad_a`` and ``grad_b`` [length] are the gradients of the convolution's outputs, ``pixels`` its inputs.
    """
    a0 = a1 = a2 = a3 = a4 = b0 = b1 = b2 = b3 = b4 = ZERO
    x0, x1, x2 = pixels[:length], pixels[count : count + length], pixels[2 * count : 2 * count + length]
    x3, x4 = pixels[3 * count : 3 * count + length], pixels[4 * count : 4 * count + length]
    for i in range(length):
        a, b = grad_a[i], grad_b[i]
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
def _spread(
    pixels: Floats, grad_a: Floats, grad_b: Floats, filter_a: Floats, filter_b: Floats, count: int, length: int
) -> None:
    """Add to ``pixels`` [length], the gradient of a row of pixels, the part from a row of outputs of two filters, a and b.

    ``grad_a`` and ``grad_b`` are the gradients of the outputs, with a border of 4 zeros for each image at both ends.
    """
    a0, a1, a2, a3, a4 = filter_a[4], filter_a[3], filter_a[2], filter_a[1], filter_a[0]
    b0, b1, b2, b3, b4 = filter_b[4], filter_b[3], filter_b[2], filter_b[1], filter_b[0]
    p0, p1, p2 = grad_a[:length], grad_a[count : count + length], grad_a[2 * count : 2 * count + length]
    p3, p4 = grad_a[3 * count : 3 * count + length], grad_a[4 * count : 4 * count + length]
    q0, q1, q2 = grad_b[:length], grad_b[count : count + length], grad_b[2 * count : 2 * count + length]
    q3, q4 = grad_b[3 * count : 3 * count + length], grad_b[4 * count : 4 * count + length]
    for i in range(length):
        of_a = a0 * p0[i] + a1 * p1[i] + a2 * p2[i] + a3 * p3[i] + a4 * p4[i]
        pixels[i] += of_a + b0 * q0[i] + b1 * q1[i] + b2 * q2[i] + b3 * q3[i] + b4 * q4[i]


@compiled(inline=True)
def _pool(upper: Floats, lower: Floats, output: Floats, place: Floats) -> None:
    """Max-pooling over 2 x 2 windows, then ReLU: set ``output`` and ``place``, both [N].

    ``upper`` and ``lower`` are two rows from the window on. ``place`` is 1 to 4 for the largest pixel in reading order, or
    0 where ReLU gives 0. It is float32, so that it fits the same vectors as the pixels.
    """
    count = len(output)
    x0, x1, x2, x3 = upper[:count], upper[count : 2 * count], lower[:count], lower[count : 2 * count]
    p0, p1, p2, p3 = np.float32(1), np.float32(2), np.float32(3), np.float32(4)
    for i in range(count):
        largest, largest_place = first_largest(x0[i], x1[i], x2[i], x3[i], p0, p1, p2, p3)
        place[i] = largest_place if largest > ZERO else ZERO
        output[i] = ZERO if largest <= ZERO else largest  # NaN stays NaN


@compiled(inline=True)
def _unpool(upper: Floats, lower: Floats, gradient: Floats, place: Floats) -> np.float32:
    """The gradient of ``_pool``: write each of ``gradient`` [N] to the pixel at its ``place``, and 0 to the other three.

    Returns the sum of the gradients that pass ReLU.
    """
    count = len(gradient)
    x0, x1, x2, x3 = upper[:count], upper[count : 2 * count], lower[:count], lower[count : 2 * count]
    total = ZERO
    for i in range(count):
        p, value = place[i], gradient[i]
        x0[i] = value if p == np.float32(1) else ZERO
        x1[i] = value if p == np.float32(2) else ZERO
        x2[i] = value if p == np.float32(3) else ZERO
        x3[i] = value if p == np.float32(4) else ZERO
        total += value if p > ZERO else ZERO
    return total


@compiled(f"void({_IMAGES}, {_IMAGES}, {_VECTOR}, {_IMAGES}, {_IMAGES}, {_MATRICES})")
def forward(images: Floats, weight: Floats, bias: Floats, output: Floats, place: Floats, rows: Floats) -> None:
    """Set ``output`` and ``place``, both [K, P, Q, N] with P = (H - 4) // 2 and Q = (W - 4) // 2.

    ``images`` is [C, H, W, N], ``weight`` [K, C, 5, 5], ``bias`` [K]. ``place`` says which of the four pixels of its window
    an output comes from: 1 to 4 in reading order, the first of equal ones, or 0 where ReLU made it 0. ``rows``
    [2, 2, 2 Q N] is scratch memory: two rows of pixels for each of two filters.
    """
    channels, _height, _width, count = images.shape
    filters, height, width, _count = output.shape
    for row in range(height):
        for a in range(0, filters, 2):
            b = min(a + 1, filters - 1)
            for line in range(2):
                rows[line, 0] = bias[a]
                rows[line, 1] = bias[b]
                for channel in range(channels):
                    for y in range(5):
                        pixels = images[channel, 2 * row + line + y].reshape(-1)
                        filter_a, filter_b = weight[a, channel, y], weight[b, channel, y]
                        _convolve(rows[line, 0], rows[line, 1], pixels, filter_a, filter_b, count)
            for k in range(a, b + 1):
                for column in range(width):
                    begin = 2 * column * count
                    upper, lower = rows[0, k - a, begin:], rows[1, k - a, begin:]
                    _pool(upper, lower, output[k, row, column], place[k, row, column])


@compiled(f"void({', '.join([_IMAGES] * 6)}, {_VECTOR}, {_MATRICES})")
def backward(
    images: Floats,
    weight: Floats,
    gradient: Floats,
    place: Floats,
    image_gradient: Floats,
    weight_gradient: Floats,
    bias_gradient: Floats,
    rows: Floats,
) -> None:
    """Add gradients to ``image_gradient`` [C, H, W, N], ``weight_gradient`` [K, C, 5, 5] and ``bias_gradient`` [K].

    If ``image_gradient`` is empty, it is not computed. ``gradient`` [K, P, Q, N] is that of the output, and ``place`` is
    what ``forward`` set. ``rows`` [2, 2, (2 Q + 8) N] is scratch memory that must be 0.
    """
    channels, _height, _width, count = images.shape
    filters, height, width, _count = gradient.shape
    border, length = 4 * count, 2 * width * count
    sums = np.empty((2, 5), np.float32)
    for row in range(height):
        for a in range(0, filters, 2):
            b = min(a + 1, filters - 1)
            if b == a:
                rows[:, 1] = 0
            for k in range(a, b + 1):
                for column in range(width):
                    begin = border + 2 * column * count
                    upper, lower = rows[0, k - a, begin:], rows[1, k - a, begin:]
                    bias_gradient[k] += _unpool(upper, lower, gradient[k, row, column], place[k, row, column])
            for line in range(2):
                grad_a, grad_b = rows[line, 0], rows[line, 1]
                for channel in range(channels):
                    for y in range(5):
                        pixels = images[channel, 2 * row + line + y].reshape(-1)
                        _products(grad_a[border:], grad_b[border:], pixels, count, length, sums)
                        for k in range(a, b + 1):
                            for x in range(5):
                                weight_gradient[k, channel, y, x] += sums[k - a, x]
                        if image_gradient.size:
                            pixels = image_gradient[channel, 2 * row + line + y].reshape(-1)
                            filter_a, filter_b = weight[a, channel, y], weight[b, channel, y]
                            _spread(pixels, grad_a, grad_b, filter_a, filter_b, count, length + border)
