from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
from joblib import cpu_count

from ..errors import DataError
from .resize import resize_into
from .source import PixelSource

AHEAD = 2
"""Batches that are prepared while one is used."""
PART = 16
"""Patches that a thread fills at a time."""
MAX_THREADS = 8


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
    cut at fractions of a pixel. Where window and size differ, the patch is resized as by Pillow's bicubic filter, which
    widens with the reduction and so suppresses aliasing. What lies outside the image is white. Up to 8 threads cut the
    patches and are two batches ahead. A tiled image is read fastest in its ``reading_order``. Memory: what the source
    keeps, and three batches.

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
    return in_batches(partial(_cut, source, corners, window), len(corners), size, batch_size)


def top_left(centres: np.ndarray, window: float) -> np.ndarray:
    """Top left corners (x, y) of windows, float64: whole numbers where the window is a whole number of pixels."""
    centres = np.asarray(centres, dtype=np.float64)
    if centres.ndim != 2 or centres.shape[1] != 2 or not np.isfinite(centres).all():
        raise DataError(f"centres have shape {centres.shape}; expected n x 2 finite numbers (x, y).")
    if not 0 < window < np.inf:
        raise DataError(f"the window is {window} pixels wide; expected a positive number.")
    corners = centres - window / 2
    return np.floor(corners + 0.5) if float(window).is_integer() else corners


def in_batches(fill: Callable[[np.ndarray, slice], None], n: int, size: int, batch_size: int) -> Iterator[np.ndarray]:
    """Batches of patches that threads fill part by part, up to ``AHEAD`` of them before they are asked for.

    Parameters
    ----------
    fill
        Writes the patches of some places into an array; called by several threads at once.
    n
        Number of patches.
    size
        Side of the patches in pixels.
    batch_size
        Patches in a batch.
    """
    pool = ThreadPoolExecutor(min(MAX_THREADS, cpu_count()), "hibiost-patches")
    pending: deque[tuple[np.ndarray, list[Future[None]]]] = deque()
    try:
        for start in range(0, n, batch_size):
            stop = min(start + batch_size, n)
            batch = np.empty((stop - start, size, size, 3), np.uint8)
            parts = [slice(i, min(i + PART, stop)) for i in range(start, stop, PART)]
            tasks = [pool.submit(fill, batch[part.start - start : part.stop - start], part) for part in parts]
            pending.append((batch, tasks))
            if len(pending) > AHEAD:
                yield _finished(*pending.popleft())
        while pending:
            yield _finished(*pending.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(batch: np.ndarray, tasks: list[Future[None]]) -> np.ndarray:
    for task in tasks:
        task.result()
    return batch


def _cut(source: PixelSource, corners: np.ndarray, window: float, patches: np.ndarray, places: slice) -> None:
    for patch, corner in zip(patches, corners[places], strict=True):
        cut_patch(source, corner, window, patch)


def cut_patch(source: PixelSource, corner: np.ndarray, window: float, patch: np.ndarray) -> None:
    """Write one patch, by the top left corner of its window; whole where the window is a whole number of pixels."""
    x, y = (int(v) for v in np.floor(corner))
    if window == len(patch):
        source.read_into(patch, x, y)
        return
    right, bottom = (int(v) for v in np.ceil(corner + window))
    width, height = right - x, bottom - y
    left, top = corner - (x, y)
    box = (left, top, min(left + window, float(width)), min(top + window, float(height)))
    resize_into(patch, source.read(x, y, width, height), box)
