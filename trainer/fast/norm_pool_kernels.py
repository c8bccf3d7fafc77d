"""BatchNorm, 2 x 2 max-pooling and ReLU in as few passes over memory as possible, compiled by Numba.

PyTorch computes the three one after the other. Each reads and writes all pixels and keeps its input for the backward pass,
and pooling also keeps an int64 index for each output. Here, after the pass that computes mean and variance, one forward
pass reads the pixels and writes the output, which is a quarter as large. The backward passes read the pixels again and
recompute which one is the largest in each window, so nothing else is kept.

Pixels are [N, H, W, C], channels last, in float32, or in bfloat16 with its bits stored as uint16. The arithmetic is
float32. If a side is odd and the output is rounded up, a missing pixel of a window is replaced by its neighbour, which does
not change the maximum. If the output is rounded down, the last row or column is in no window. A kernel is called with some
of the images of a batch, so that several threads can share the work. Its sums are float64 and are over these images only,
so they do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from trainer.fast.kernels import ZERO, compiled, first_largest

Pixels = NDArray[np.float32] | NDArray[np.uint16]
Floats = NDArray[np.float32]
Sums = NDArray[np.float64]
_HALF = np.uint32(16)  # bits of a bfloat16, which is the upper half of a float32
_ROWS_AT_ONCE = 64  # rows that are summed in float32 before their sum is added in float64


def _value(pixel: Any) -> np.float32:
    """A pixel as float32. A bfloat16 has the same upper 16 bits as the equal float32, whose lower 16 bits are 0."""
    raise NotImplementedError("compiled only")


@overload(_value, strict=False)
def _value_of(pixel: Any) -> Callable[[Any], Any]:
    if pixel == types.float32:
        return lambda pixel: pixel
    return lambda pixel: np.uint32(np.uint32(pixel) << _HALF).view(np.float32)


def _pixel(value: np.float32, like: Any) -> Any:
    """A float32 as a pixel of the type of ``like``. For bfloat16 it is rounded to the nearest, ties to even.

    NaN stays NaN, except for those whose lower 16 bits are all set, which arithmetic does not produce.
    """
    raise NotImplementedError("compiled only")


@overload(_pixel, strict=False)
def _pixel_of(value: Any, like: Any) -> Callable[[Any, Any], Any]:
    if like == types.float32:
        return lambda value, like: value

    def rounded(value: Any, like: Any) -> Any:
        bits = np.float32(value).view(np.uint32)
        is_odd = (bits >> _HALF) & np.uint32(1)
        return np.uint16(np.uint32(bits + np.uint32(0x7FFF) + is_odd) >> _HALF)

    return rounded


def _for_both(signature: str) -> list[str]:
    """Numba's signatures for float32 and bfloat16. One letter per argument, for its shape.

    P is pixels [N, H, W, C], R is pixels as rows [n, C], F is float32 [C], S is float64 [2, C].
    """
    signatures = []
    for dtype in ("float32", "uint16"):
        kinds = {"P": f"{dtype}[:, :, :, ::1]", "R": f"{dtype}[:, ::1]", "F": "float32[::1]", "S": "float64[:, ::1]"}
        signatures.append(f"void({', '.join(kinds[kind] for kind in signature)})")
    return signatures


@compiled(_for_both("RFS"))
def moments(rows: Pixels, origin: Floats, sums: Sums) -> None:
    """Add to ``sums`` [2, C], for each channel, the sum of rows - origin and the sum of its square.

    ``rows`` is [n, C], ``origin`` [C]. An origin near the mean avoids the loss of digits of the variance where the mean is
    much larger than the standard deviation.
    """
    count, channels = rows.shape
    part = np.empty((2, channels), np.float32)
    first, second = part[0], part[1]
    for begin in range(0, count, _ROWS_AT_ONCE):
        part[:] = ZERO
        end = min(begin + _ROWS_AT_ONCE, count)
        for row in range(begin, end - 1, 2):
            even, odd = rows[row], rows[row + 1]
            for c in range(channels):
                a, b = _value(even[c]) - origin[c], _value(odd[c]) - origin[c]
                first[c] += a + b
                second[c] += a * a + b * b
        if (end - begin) % 2:
            last = rows[end - 1]
            for c in range(channels):
                a = _value(last[c]) - origin[c]
                first[c] += a
                second[c] += a * a
        for c in range(channels):
            sums[0, c] += first[c]
            sums[1, c] += second[c]


@compiled(_for_both("RFFR"))
def forward(rows: Pixels, scale: Floats, shift: Floats, output: Pixels) -> None:
    """BatchNorm and ReLU: output = max(rows * scale + shift, 0). ``rows`` and ``output`` are [n, C]."""
    for row in range(len(rows)):
        pixels, out = rows[row], output[row]
        for c in range(len(scale)):
            value = _value(pixels[c]) * scale[c] + shift[c]
            out[c] = _pixel(ZERO if value <= ZERO else value, out[c])


@compiled(_for_both("RRFFFS"))
def sums(rows: Pixels, gradient: Pixels, scale: Floats, shift: Floats, mean: Floats, result: Sums) -> None:
    """Add to ``result`` [2, C], for each channel, the sum of g and the sum of g * (rows - mean).

    Here g is the part of ``gradient``, the gradient of the output, that passes ReLU. ``rows`` and ``gradient`` are [n, C].
    All values are loaded unconditionally, because the compiler would otherwise not vectorize the loop for bfloat16.
    """
    channels = len(scale)
    part = np.empty((2, channels), np.float32)
    first, second = part[0], part[1]
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        part[:] = ZERO
        for row in range(begin, min(begin + _ROWS_AT_ONCE, len(rows))):
            pixels, slope = rows[row], gradient[row]
            for c in range(channels):
                x, g = _value(pixels[c]), _value(slope[c])
                g = ZERO if x * scale[c] + shift[c] <= ZERO else g
                first[c] += g
                second[c] += g * (x - mean[c])
        for c in range(channels):
            result[0, c] += first[c]
            result[1, c] += second[c]


@compiled(_for_both("RRFFFFFFR"))
def backward(
    rows: Pixels,
    gradient: Pixels,
    scale: Floats,
    shift: Floats,
    mean: Floats,
    factor: Floats,
    slope: Floats,
    offset: Floats,
    result: Pixels,
) -> None:
    """The gradient of the pixels: result = factor * g + slope * (rows - mean) + offset.

    Here g is the part of ``gradient``, the gradient of the output, that passes ReLU. ``rows``, ``gradient`` and ``result``
    are [n, C], the others [C].
    """
    for row in range(len(rows)):
        pixels, g, out = rows[row], gradient[row], result[row]
        for c in range(len(scale)):
            x, passed = _value(pixels[c]), _value(g[c])
            passed = ZERO if x * scale[c] + shift[c] <= ZERO else passed
            out[c] = _pixel(factor[c] * passed + slope[c] * (x - mean[c]) + offset[c], out[c])


@compiled(inline=True)
def _larger(a: np.float32, b: np.float32) -> np.float32:
    """The larger of two numbers, or NaN if one of them is NaN. ``max`` may return the other number instead."""
    return b if b > a or b != b else a


@compiled(inline=True)
def _window(images: Any, n: int, p: int, q: int) -> Any:
    """The four pixels of a window, [C] each, in reading order. A missing pixel is replaced by its neighbour."""
    y0, y1 = 2 * p, min(2 * p + 1, images.shape[1] - 1)
    x0, x1 = 2 * q, min(2 * q + 1, images.shape[2] - 1)
    return images[n, y0, x0], images[n, y0, x1], images[n, y1, x0], images[n, y1, x1]


@compiled(_for_both("PFFP"))
def pool_forward(images: Pixels, scale: Floats, shift: Floats, output: Pixels) -> None:
    """BatchNorm, pooling and ReLU: output = the maximum of images * scale + shift over each window, and at least 0.

    ``images`` is [N, H, W, C], ``output`` [N, P, Q, C].
    """
    count, _height, _width, channels = images.shape
    for n in range(count):
        for p in range(output.shape[1]):
            for q in range(output.shape[2]):
                a, b, c, d = _window(images, n, p, q)
                out = output[n, p, q]
                for i in range(channels):
                    s, t = scale[i], shift[i]
                    z0, z1 = _value(a[i]) * s + t, _value(b[i]) * s + t
                    z2, z3 = _value(c[i]) * s + t, _value(d[i]) * s + t
                    largest = _larger(_larger(z0, z1), _larger(z2, z3))
                    out[i] = _pixel(ZERO if largest <= ZERO else largest, out[i])


@compiled(_for_both("PPFFFS"))
def pool_sums(images: Pixels, gradient: Pixels, scale: Floats, shift: Floats, mean: Floats, result: Sums) -> None:
    """Add to ``result`` [2, C] what ``sums`` adds, for a layer with pooling.

    ``images`` is [N, H, W, C]. Each value of ``gradient`` [N, P, Q, C] belongs to the largest pixel of its window, the
    first of equal ones.
    """
    count, _height, _width, channels = images.shape
    part = np.empty((2, channels), np.float32)
    first, second = part[0], part[1]
    for n in range(count):
        for p in range(gradient.shape[1]):
            part[:] = ZERO
            for q in range(gradient.shape[2]):
                a, b, c, d = _window(images, n, p, q)
                slope = gradient[n, p, q]
                for i in range(channels):
                    s, t = scale[i], shift[i]
                    v0, v1, v2, v3, g = _value(a[i]), _value(b[i]), _value(c[i]), _value(d[i]), _value(slope[i])
                    z0, z1, z2, z3 = v0 * s + t, v1 * s + t, v2 * s + t, v3 * s + t
                    largest, pixel = first_largest(z0, z1, z2, z3, v0, v1, v2, v3)
                    g = ZERO if largest <= ZERO else g
                    first[i] += g
                    second[i] += g * (pixel - mean[i])
            for i in range(channels):
                result[0, i] += first[i]
                result[1, i] += second[i]


@compiled(inline=True)
def _spread(
    pixels: Any,
    gradient: Any,
    place: Floats,
    own_place: np.float32,
    mean: Floats,
    factor: Floats,
    slope: Floats,
    offset: Floats,
    result: Any,
) -> None:
    """Set ``result`` [C] to the gradient of one pixel of a window.

    ``gradient`` [C] is that of the window's output. It passes to the pixel where ``place`` [C], the position of the largest
    pixel, is ``own_place``. The terms with ``slope`` and ``offset`` come from the batch's mean and variance.
    """
    for c in range(len(mean)):
        passed = factor[c] * _value(gradient[c])
        passed = passed if place[c] == own_place else ZERO
        result[c] = _pixel(passed + slope[c] * (_value(pixels[c]) - mean[c]) + offset[c], result[c])


@compiled(_for_both("PPFFFFFFP"))
def pool_backward(
    images: Pixels,
    gradient: Pixels,
    scale: Floats,
    shift: Floats,
    mean: Floats,
    factor: Floats,
    slope: Floats,
    offset: Floats,
    result: Pixels,
) -> None:
    """Set ``result`` [N, H, W, C] to what ``backward`` computes, for a layer with pooling.

    Each value of ``gradient`` [N, P, Q, C] belongs to the largest pixel of its window, the first of equal ones. Each loop
    over channels writes to a single array, because with four the compiler would not vectorize: too many might overlap.
    """
    count, height, width, channels = images.shape
    rows, columns = gradient.shape[1], gradient.shape[2]
    place, nowhere = np.empty(channels, np.float32), np.zeros(channels, np.float32)
    p0, p1, p2, p3 = np.float32(1), np.float32(2), np.float32(3), np.float32(4)
    for n in range(count):
        for p in range(rows):
            for q in range(columns):
                a, b, c, d = _window(images, n, p, q)
                for i in range(channels):
                    s, t = scale[i], shift[i]
                    z0, z1 = _value(a[i]) * s + t, _value(b[i]) * s + t
                    z2, z3 = _value(c[i]) * s + t, _value(d[i]) * s + t
                    largest, largest_place = first_largest(z0, z1, z2, z3, p0, p1, p2, p3)
                    place[i] = ZERO if largest <= ZERO else largest_place
                g, terms = gradient[n, p, q], (mean, factor, slope, offset)
                # In reverse order: a missing pixel shares the memory of its neighbour, whose result must be written last.
                r0, r1, r2, r3 = _window(result, n, p, q)
                _spread(d, g, place, p3, *terms, r3)
                _spread(c, g, place, p2, *terms, r2)
                _spread(b, g, place, p1, *terms, r1)
                _spread(a, g, place, p0, *terms, r0)
        for y in range(height):
            for x in range(0 if y >= 2 * rows else 2 * columns, width):  # pixels in no window
                pixels = images[n, y, x]
                _spread(pixels, pixels, nowhere, p0, mean, factor, slope, offset, result[n, y, x])
