"""BatchNorm, max-pooling by 2 and ReLU in as few passes over memory as they need, compiled by Numba.

PyTorch does the three one after the other. Each reads and writes all pixels and keeps its input for the backward pass, and
pooling keeps the place of every largest pixel as an int64. Here one pass forward reads the pixels and writes a quarter of
them. The passes backward read the same pixels and find the largest ones again. Nothing else is kept.

Pixels are [N, H, W, C], channels last, in float32 or as the bits of bfloat16 in uint16; the arithmetic is float32. Windows
are 2 x 2 pixels. Where a side is odd and the output rounds up, the missing pixel is its neighbour once more, which does not
change the largest one. Where it rounds down, the last row or column is in no window. A kernel takes some of a batch's
images, so that several threads share the work. Its sums are float64 and those of its images only, so they do not depend on
the number of threads.
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
_HALF = np.uint32(16)  # bits
_ROWS_AT_ONCE = 64  # whose sums are float32


def _value(pixel: Any) -> np.float32:
    """A pixel as float32. The bits of a bfloat16 are the first 16 of the same number as float32; the others are 0."""
    raise NotImplementedError("compiled only")


@overload(_value, strict=False)
def _value_of(pixel: Any) -> Callable[[Any], Any]:
    if pixel == types.float32:
        return lambda pixel: pixel
    return lambda pixel: np.uint32(np.uint32(pixel) << _HALF).view(np.float32)


def _pixel(value: np.float32, like: Any) -> Any:
    """A float32 as a pixel of the type of ``like``: rounded to the nearest bfloat16, of two to the one with an even last bit.

    NaN stays NaN unless all of its 16 last bits are set, which arithmetic does not produce.
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
    """The signature for float32 and for bfloat16. P is pixels [N, H, W, C], R rows [n, C], F floats [C], S sums [2, C]."""
    signatures = []
    for dtype in ("float32", "uint16"):
        kinds = {"P": f"{dtype}[:, :, :, ::1]", "R": f"{dtype}[:, ::1]", "F": "float32[::1]", "S": "float64[:, ::1]"}
        signatures.append(f"void({', '.join(kinds[kind] for kind in signature)})")
    return signatures


@compiled(_for_both("RFS"))
def moments(rows: Pixels, origin: Floats, sums: Sums) -> None:
    """Add to ``sums`` [2, C]: for each channel the sum of rows - origin, and the sum of its square; rows [n, C].

    An origin near the mean keeps the digits of the variance where the mean is much larger than the deviation.
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
    """BatchNorm and ReLU: output = max(rows * scale + shift, 0); rows and output [n, C]."""
    for row in range(len(rows)):
        pixels, out = rows[row], output[row]
        for c in range(len(scale)):
            value = _value(pixels[c]) * scale[c] + shift[c]
            out[c] = _pixel(ZERO if value <= ZERO else value, out[c])


@compiled(_for_both("RRFFFS"))
def sums(rows: Pixels, gradient: Pixels, scale: Floats, shift: Floats, mean: Floats, result: Sums) -> None:
    """Add to ``result`` [2, C]: for each channel the sum of the gradient that passes ReLU, and of it times (rows - mean).

    ``gradient`` is that of the output; rows and gradient [n, C]. Loads do not depend on conditions, or the compiler would
    use no vectors for bfloat16.
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
    """The gradient of rows: result = factor * (gradient that passes ReLU) + slope * (rows - mean) + offset; all [n, C]."""
    for row in range(len(rows)):
        pixels, g, out = rows[row], gradient[row], result[row]
        for c in range(len(scale)):
            x, passed = _value(pixels[c]), _value(g[c])
            passed = ZERO if x * scale[c] + shift[c] <= ZERO else passed
            out[c] = _pixel(factor[c] * passed + slope[c] * (x - mean[c]) + offset[c], out[c])


@compiled(inline=True)
def _larger(a: np.float32, b: np.float32) -> np.float32:
    """The larger of two numbers; NaN where one of them is NaN, which ``max`` may drop."""
    return b if b > a or b != b else a


@compiled(inline=True)
def _window(images: Any, n: int, p: int, q: int) -> Any:
    """The four pixels [C] of a window in reading order; for a missing one, its neighbour."""
    y0, y1 = 2 * p, min(2 * p + 1, images.shape[1] - 1)
    x0, x1 = 2 * q, min(2 * q + 1, images.shape[2] - 1)
    return images[n, y0, x0], images[n, y0, x1], images[n, y1, x0], images[n, y1, x1]


@compiled(_for_both("PFFP"))
def pool_forward(images: Pixels, scale: Floats, shift: Floats, output: Pixels) -> None:
    """BatchNorm, pooling and ReLU: the largest images * scale + shift of each window, not below 0; output [N, P, Q, C]."""
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
    """Like ``sums``, for images with pooling: a gradient [N, P, Q, C] belongs to the first largest pixel of its window."""
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
    """The gradient of one pixel [C]: that of its window where the pixel's place is the largest one's, and BatchNorm's part."""
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
    """Like ``backward``, for images with pooling: a gradient [N, P, Q, C] belongs to the first largest pixel of its window.

    Each loop over channels writes to one array. With four, too many arrays might overlap for the compiler to use vectors.
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
                # From the last to the first: a missing pixel is its neighbour, whose own result must be written last.
                r0, r1, r2, r3 = _window(result, n, p, q)
                _spread(d, g, place, p3, *terms, r3)
                _spread(c, g, place, p2, *terms, r2)
                _spread(b, g, place, p1, *terms, r1)
                _spread(a, g, place, p0, *terms, r0)
        for y in range(height):
            for x in range(0 if y >= 2 * rows else 2 * columns, width):  # pixels in no window
                pixels = images[n, y, x]
                _spread(pixels, pixels, nowhere, p0, mean, factor, slope, offset, result[n, y, x])
