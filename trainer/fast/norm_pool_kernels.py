"""BatchNorm, max-pooling by 2 and ReLU in as few passes over memory as they need, compiled by Numba.

PyTorch does the three one after the other, each reading and writing all pixels, and keeps the input of each, and the place
of every largest pixel as an int64, for the backward pass. Here a pass forward reads the pixels and writes a quarter of
them; the passes backward read the same pixels again and find the places anew. Nothing else is kept.

Pixels are [N, H, W, C], channels last, in float32 or as bfloat16 in uint16; the arithmetic is float32. Windows are 2 x 2
pixels. Where a side is odd and the output rounds up, the missing pixel is its neighbour once more, which changes no
largest one; where it rounds down, the last row or column is in no window. A kernel takes some of a batch's images, so that
several threads can share the work; sums are float64 and those of a piece, so they depend on no number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from trainer.fast.conv_pool_kernels import compiled

Pixels = NDArray[np.float32] | NDArray[np.uint16]
Floats = NDArray[np.float32]
Sums = NDArray[np.float64]
_ZERO = np.float32(0)
_WORD = ir.IntType(32)
_ROWS_AT_ONCE = 64  # whose sums are float32


def _to_value(_typing: Any, pixel: Any) -> Any:
    """A pixel as float32; of a bfloat16, its bits and then zeros."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        if pixel == types.float32:
            return arguments[0]
        bits = builder.shl(builder.zext(arguments[0], _WORD), _WORD(16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(pixel), generate


_value: Any = intrinsic(_to_value)


def _to_pixel(_typing: Any, value: Any, like: Any) -> Any:
    """A float32 as a pixel of the kind of ``like``; as bfloat16 the nearest one, of two the even one. A usual NaN stays one."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        if like == types.float32:
            return arguments[0]
        bits = builder.bitcast(arguments[0], _WORD)
        odd = builder.and_(builder.lshr(bits, _WORD(16)), _WORD(1))
        rounded = builder.add(bits, builder.add(odd, _WORD(0x7FFF)))
        return builder.trunc(builder.lshr(rounded, _WORD(16)), ir.IntType(16))

    return like(types.float32, like), generate


_pixel: Any = intrinsic(_to_pixel)


def _for_both(signature: str) -> list[str]:
    """A signature for float32 and for bfloat16, with P for pixels [N, H, W, C], R for rows of them, F [C] and S [2, C]."""
    found = []
    for dtype in ("float32", "uint16"):
        kinds = {"P": f"{dtype}[:, :, :, ::1]", "R": f"{dtype}[:, ::1]", "F": "float32[::1]", "S": "float64[:, ::1]"}
        found.append(f"void({', '.join(kinds[kind] for kind in signature)})")
    return found


@compiled(_for_both("RFS"))
def moments(rows: Pixels, origin: Floats, sums: Sums) -> None:
    """Add to ``sums`` [2, C] those of rows - origin and of its square over ``rows`` [n, C].

    With an origin near the mean, digits are not lost where the mean is much larger than the deviation.
    """
    count, channels = rows.shape
    part = np.empty((2, channels), np.float32)
    first, second = part[0], part[1]
    for begin in range(0, count, _ROWS_AT_ONCE):
        part[:] = _ZERO
        end = min(begin + _ROWS_AT_ONCE, count)
        for row in range(begin, end - 1, 2):
            one, two = rows[row], rows[row + 1]
            for c in range(channels):
                a, b = _value(one[c]) - origin[c], _value(two[c]) - origin[c]
                first[c] += a + b
                second[c] += a * a + b * b
        if (end - begin) % 2:
            one = rows[end - 1]
            for c in range(channels):
                a = _value(one[c]) - origin[c]
                first[c] += a
                second[c] += a * a
        for c in range(channels):
            sums[0, c] += first[c]
            sums[1, c] += second[c]


@compiled(_for_both("RFFR"))
def forward(rows: Pixels, scale: Floats, shift: Floats, output: Pixels) -> None:
    """output = max(rows scale + shift, 0); rows and output [n, C]."""
    for row in range(len(rows)):
        pixels, out = rows[row], output[row]
        for c in range(len(scale)):
            value = _value(pixels[c]) * scale[c] + shift[c]
            out[c] = _pixel(_ZERO if value <= _ZERO else value, out[c])


@compiled(_for_both("RRFFFS"))
def sums(rows: Pixels, gradient: Pixels, scale: Floats, shift: Floats, mean: Floats, result: Sums) -> None:
    """Add to ``result`` [2, C] the sums of the gradient behind ReLU's, and of it times (rows - mean)."""
    channels = len(scale)
    part = np.empty((2, channels), np.float32)
    first, second = part[0], part[1]
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        part[:] = _ZERO
        for row in range(begin, min(begin + _ROWS_AT_ONCE, len(rows))):
            pixels, slope = rows[row], gradient[row]
            for c in range(channels):
                x = _value(pixels[c])
                g = _ZERO if x * scale[c] + shift[c] <= _ZERO else _value(slope[c])
                first[c] += g
                second[c] += g * (x - mean[c])
        for c in range(channels):
            result[0, c] += first[c]
            result[1, c] += second[c]


@compiled(_for_both("RRFFFFFFR"))
def backward(
    rows: Pixels, gradient: Pixels, scale: Floats, shift: Floats, mean: Floats, factor: Floats, slope: Floats,
    offset: Floats, result: Pixels,
) -> None:  # fmt: skip
    """result = factor (gradient behind ReLU's) + slope (rows - mean) + offset; rows and result [n, C]."""
    for row in range(len(rows)):
        pixels, g, out = rows[row], gradient[row], result[row]
        for c in range(len(scale)):
            x = _value(pixels[c])
            passed = _ZERO if x * scale[c] + shift[c] <= _ZERO else _value(g[c])
            out[c] = _pixel(factor[c] * passed + slope[c] * (x - mean[c]) + offset[c], out[c])


@compiled(inline=True)
def _larger(one: np.float32, other: np.float32) -> np.float32:
    """The larger of two; NaN where either is, which ``max`` would drop."""
    return other if other > one or other != other else one


@compiled(inline=True)
def _window(images: Any, n: int, p: int, q: int) -> Any:
    """The four pixels of a window in reading order, a missing one being its neighbour."""
    y0, y1 = 2 * p, min(2 * p + 1, images.shape[1] - 1)
    x0, x1 = 2 * q, min(2 * q + 1, images.shape[2] - 1)
    return images[n, y0, x0], images[n, y0, x1], images[n, y1, x0], images[n, y1, x1]


@compiled(_for_both("PFFP"))
def pool_forward(images: Pixels, scale: Floats, shift: Floats, output: Pixels) -> None:
    """The largest of ``images`` scale + shift in each window, and ReLU; output [N, P, Q, C]."""
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
                    out[i] = _pixel(_ZERO if largest <= _ZERO else largest, out[i])


@compiled(_for_both("PPFFFS"))
def pool_sums(images: Pixels, gradient: Pixels, scale: Floats, shift: Floats, mean: Floats, result: Sums) -> None:
    """As ``sums``, with the gradient [N, P, Q, C] at the first largest pixel of each window."""
    count, _height, _width, channels = images.shape
    part = np.empty((2, channels), np.float32)
    first, second = part[0], part[1]
    for n in range(count):
        for p in range(gradient.shape[1]):
            part[:] = _ZERO
            for q in range(gradient.shape[2]):
                a, b, c, d = _window(images, n, p, q)
                g = gradient[n, p, q]
                for i in range(channels):
                    s, t = scale[i], shift[i]
                    v0, v1, v2, v3 = _value(a[i]), _value(b[i]), _value(c[i]), _value(d[i])
                    z0, z1, z2, z3 = v0 * s + t, v1 * s + t, v2 * s + t, v3 * s + t
                    largest = max(max(z0, z1), max(z2, z3))
                    at = v2 if z2 == largest else v3
                    at = v1 if z1 == largest else at
                    at = v0 if z0 == largest else at
                    passed = _ZERO if largest <= _ZERO else _value(g[i])
                    first[i] += passed
                    second[i] += passed * (at - mean[i])
            for i in range(channels):
                result[0, i] += first[i]
                result[1, i] += second[i]


@compiled(inline=True)
def _spread(
    pixels: Any, gradient: Any, place: Floats, own: np.float32, mean: Floats, factor: Floats, slope: Floats,
    offset: Floats, result: Any,
) -> None:  # fmt: skip
    """One pixel's gradients: its window's gradient where it is the one that counts, and BatchNorm's part."""
    for c in range(len(mean)):
        passed = factor[c] * _value(gradient[c]) if place[c] == own else _ZERO
        result[c] = _pixel(passed + slope[c] * (_value(pixels[c]) - mean[c]) + offset[c], result[c])


@compiled(_for_both("PPFFFFFFP"))
def pool_backward(
    images: Pixels, gradient: Pixels, scale: Floats, shift: Floats, mean: Floats, factor: Floats, slope: Floats,
    offset: Floats, result: Pixels,
) -> None:  # fmt: skip
    """As ``backward``, with the gradient [N, P, Q, C] at the first largest pixel of each window.

    It is written in loops with one output each: with four, too many arrays might overlap for the compiler to use vectors.
    """
    count, height, width, channels = images.shape
    rows, columns = gradient.shape[1], gradient.shape[2]
    place, nowhere = np.empty(channels, np.float32), np.zeros(channels, np.float32)
    for n in range(count):
        for p in range(rows):
            for q in range(columns):
                a, b, c, d = _window(images, n, p, q)
                for i in range(channels):
                    s, t = scale[i], shift[i]
                    z0, z1 = _value(a[i]) * s + t, _value(b[i]) * s + t
                    z2, z3 = _value(c[i]) * s + t, _value(d[i]) * s + t
                    largest = max(max(z0, z1), max(z2, z3))
                    at = np.float32(3) if z2 == largest else np.float32(4)
                    at = np.float32(2) if z1 == largest else at
                    at = np.float32(1) if z0 == largest else at
                    place[i] = _ZERO if largest <= _ZERO else at
                g, stats = gradient[n, p, q], (mean, factor, slope, offset)
                # the last first: a missing pixel is its neighbour, whose own number must stand
                r0, r1, r2, r3 = _window(result, n, p, q)
                _spread(d, g, place, np.float32(4), *stats, r3)
                _spread(c, g, place, np.float32(3), *stats, r2)
                _spread(b, g, place, np.float32(2), *stats, r1)
                _spread(a, g, place, np.float32(1), *stats, r0)
        for y in range(height):
            for x in range(0 if y >= 2 * rows else 2 * columns, width):  # in no window
                pixels = images[n, y, x]
                _spread(pixels, pixels, nowhere, np.float32(1), mean, factor, slope, offset, result[n, y, x])
