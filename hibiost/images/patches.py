from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from ..errors import DataError
from .source import PixelSource


def count_padded(shape: tuple[int, int], centres: np.ndarray, *, window: float) -> int:
    """How many windows reach over the edge of the image.

    Parameters
    ----------
    shape
        Height and width of the image in pixels.
    centres
        Centres (x, y) in pixels of the image, n x 2.
    window
        Side of the square windows in pixels of the image.

    Returns
    -------
    The number of windows.

    Examples
    --------
    >>> import numpy as np
    >>> import hibiost as hb
    >>> hb.images.count_padded((100, 200), np.array([[150, 50], [195, 50]]), window=20)
    1
    """
    corners = top_left(centres, window)
    over = (corners < 0) | (corners + window > np.array(shape[::-1]))
    return int(over.any(axis=1).sum())


def iter_patches(
    source: PixelSource, centres: np.ndarray, *, window: float, size: int, batch_size: int = 64
) -> Iterator[np.ndarray]:
    """Square patches around centres, in batches, in the order of the centres.

    A window of a whole number of pixels starts at the pixel nearest to centre - window / 2 (halves up); any other is
    cut at fractions of a pixel. Where window and size differ, the patch is resized by Pillow's bicubic filter, which
    widens with the reduction and so suppresses aliasing. What lies outside the image is white. Memory: what the source
    keeps, and one batch.

    Parameters
    ----------
    source
        Where the pixels are read.
    centres
        Centres (x, y) in pixels of the image, n x 2; pixel i covers i to i + 1.
    window
        Side of the windows in pixels of the image.
    size
        Side of the patches in pixels.
    batch_size
        Patches in a batch; the last one may hold fewer.

    Returns
    -------
    Iterator over new uint8 arrays, batch x size x size x 3 (RGB).

    Raises
    ------
    DataError
        The centres are no finite n x 2 array, or window, size or batch_size is not positive.
    ImageError
        The image cannot be decoded; raised when the first batch is asked for.

    Examples
    --------
    >>> import numpy as np
    >>> import hibiost as hb
    >>> image = hb.images.open_image(np.zeros((100, 200, 3), np.uint8))
    >>> batches = hb.images.iter_patches(image, np.array([[150, 50], [20, 50]]), window=64, size=32)
    >>> next(batches).shape
    (2, 32, 32, 3)
    """
    if size < 1 or batch_size < 1:
        raise DataError(f"size is {size} and batch_size is {batch_size}; expected whole numbers of 1 or more.")
    corners = top_left(centres, window)
    return _batches(source, corners, window, size, batch_size)


def top_left(centres: np.ndarray, window: float) -> np.ndarray:
    """Top left corners (x, y) of windows, float64: whole numbers where the window is a whole number of pixels."""
    centres = np.asarray(centres, dtype=np.float64)
    if centres.ndim != 2 or centres.shape[1] != 2 or not np.isfinite(centres).all():
        raise DataError(f"centres have shape {centres.shape}; expected n x 2 finite numbers (x, y).")
    if not 0 < window < np.inf:
        raise DataError(f"the window is {window} pixels wide; expected a positive number.")
    corners = centres - window / 2
    return np.floor(corners + 0.5) if float(window).is_integer() else corners


def _batches(
    source: PixelSource, corners: np.ndarray, window: float, size: int, batch_size: int
) -> Iterator[np.ndarray]:
    for start in range(0, len(corners), batch_size):
        some = corners[start : start + batch_size]
        batch = np.empty((len(some), size, size, 3), np.uint8)
        for patch, corner in zip(batch, some, strict=True):
            patch[:] = cut_patch(source, corner, window, size)
        yield batch


def cut_patch(source: PixelSource, corner: np.ndarray, window: float, size: int) -> np.ndarray:
    """One patch, by the top left corner of its window; whole where the window is a whole number of pixels."""
    x, y = (int(v) for v in np.floor(corner))
    right, bottom = (int(v) for v in np.ceil(corner + window))
    pixels = source.read(x, y, right - x, bottom - y)
    if window == size:
        return pixels
    left, top = corner - (x, y)
    box = (left, top, min(left + window, right - x), min(top + window, bottom - y))
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box=box))
