"""Pillow's bicubic filter, pixel for pixel, a column and then a row at a time."""

from __future__ import annotations

import numba
import numpy as np

_BITS = 22
"""Binary digits of the weights after the point."""
_HALF, _SHIFT, _WHITE = np.int32(1 << (_BITS - 1)), np.int32(_BITS), np.int32(255)


@numba.njit(cache=True, nogil=True)
def resize_into(out: np.ndarray, pixels: np.ndarray, box: tuple[float, float, float, float]) -> None:
    """Resize a part of an image as ``PIL.Image.resize(..., BICUBIC, box=box)`` does, the width first, then the height.

    Between the two, pixels are rounded to 8 bits; Pillow 13 takes the height first for some sizes. Memory: the pixels
    once more.

    Parameters
    ----------
    out
        uint8, height x width x 3; written.
    pixels
        uint8, rows x columns x 3.
    box
        Left, top, right and bottom of the part, inside the image; single precision counts.
    """
    height, width = out.shape[:2]
    x_from, x_to, x_weights = _mixing(pixels.shape[1], box[0], box[2], width)
    y_from, y_to, y_weights = _mixing(pixels.shape[0], box[1], box[3], height)
    top, bottom = y_from[0], y_to[-1]
    n = bottom - top
    columns = np.empty((pixels.shape[1], 3, n), dtype=np.uint8)
    for x in range(pixels.shape[1]):
        for channel in range(3):
            of_image, column = pixels[top:bottom, x, channel], columns[x, channel]
            for i in range(n):
                column[i] = of_image[i]
    flat, mixed = columns.reshape(pixels.shape[1], 3 * n), np.empty(3 * n, dtype=np.uint8)
    rows = np.empty((n, width, 3), dtype=np.uint8)
    total = np.empty(3 * n, dtype=np.int32)
    for x in range(width):
        _mix(flat[x_from[x] : x_to[x]], x_weights[x], total, mixed)
        for channel in range(3):
            of_rows, column = rows[:, x, channel], mixed[channel * n : (channel + 1) * n]
            for i in range(n):
                of_rows[i] = column[i]
    lines, total = rows.reshape(n, 3 * width), np.empty(3 * width, dtype=np.int32)
    for y in range(height):
        _mix(lines[y_from[y] - top : y_to[y] - top], y_weights[y], total, out[y].reshape(3 * width))


@numba.njit(cache=True)
def _mixing(n: int, low: float, high: float, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First, and one after the last, of the ``n`` pixels that each of ``size`` over ``low`` to ``high`` mixes; weights.

    The filter is as wide as two pixels of the larger grid to either side.
    """
    start = np.float32(low)
    scale = np.float64(np.float32(high) - start) / size
    wide = max(scale, 1.0)
    first, last = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    weights, real = np.empty((size, int(np.ceil(2 * wide)) * 2 + 1), dtype=np.int32), np.empty(n)
    for i in range(size):
        centre = np.float64(start) + (i + 0.5) * scale
        first[i] = max(int(centre - 2 * wide + 0.5), 0)
        last[i] = min(int(centre + 2 * wide + 0.5), n)
        total = 0.0
        for j in range(last[i] - first[i]):
            real[j] = _bicubic((j + first[i] - centre + 0.5) * (1.0 / wide))
            total += real[j]
        for j in range(last[i] - first[i]):
            weight = real[j] / total * (1 << _BITS)
            weights[i, j] = int(weight - 0.5) if weight < 0 else int(weight + 0.5)
    return first, last, weights


@numba.njit(cache=True)
def _bicubic(x: float) -> float:
    """Keys' cubic convolution with a = -1/2."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * -0.5 if x < 2 else 0.0


@numba.njit(cache=True)
def _mix(lines: np.ndarray, weights: np.ndarray, total: np.ndarray, mixed: np.ndarray) -> None:
    """Weighted sum of lines, rounded and clipped to 8 bits."""
    total[:] = _HALF
    for i in range(lines.shape[0]):
        line, weight = lines[i], weights[i]
        for j in range(line.size):
            total[j] += np.int32(line[j]) * weight
    for j in range(total.size):
        mixed[j] = min(max(total[j] >> _SHIFT, np.int32(0)), _WHITE)
