"""Images that are decoded by tiles."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import lru_cache, partial
from threading import Lock

import numpy as np

from .source import Once, PixelSource

TILE_CACHE = 2**28
"""Bytes of decoded tiles kept per open image."""


class TiledSource(PixelSource):
    """An image that is decoded by tiles, of which ``TILE_CACHE`` bytes (or four, if that is more) are kept.

    Four hold every window that is smaller than a tile.
    """

    def _set_tiles(self, shape: tuple[int, int]) -> None:
        """Height and width of the tiles; to be called when the image is opened."""
        self._tile_shape = shape
        self.tile_rows = shape[0]
        self._n_kept = max(4, TILE_CACHE // (3 * shape[0] * shape[1]))
        self._tiles = lru_cache(self._n_kept)(lambda i, j: Once(partial(self._decode_tile, i, j)))
        self._lock = Lock()

    def reading_order(self, corners: np.ndarray, window: float) -> np.ndarray:
        """The order by tiles; see :func:`tile_order`."""
        return tile_order(corners, window, self._tile_shape, self._n_kept)

    @abstractmethod
    def _decode(self, rows: slice, columns: slice) -> np.ndarray:
        """RGB pixels of a tile; one at the far edges may reach beyond the image and may come back smaller."""

    def _decode_tile(self, i: int, j: int) -> np.ndarray:
        height, width = self._tile_shape
        return self._decode(slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width))

    def _tile(self, i: int, j: int) -> np.ndarray:
        with self._lock:
            tile = self._tiles(i, j)
        return tile.get()

    def _fill(self, window: np.ndarray, x: int, y: int) -> None:
        height, width = self._tile_shape
        y_end, x_end = y + window.shape[0], x + window.shape[1]
        for i in range(y // height, (y_end - 1) // height + 1):
            top, bottom = max(y, i * height), min(y_end, (i + 1) * height)
            for j in range(x // width, (x_end - 1) // width + 1):
                left, right = max(x, j * width), min(x_end, (j + 1) * width)
                window[top - y : bottom - y, left - x : right - x] = self._tile(i, j)[
                    top - i * height : bottom - i * height, left - j * width : right - j * width
                ]

    def close(self) -> None:
        """Give back the tiles."""
        self._tiles.cache_clear()


def tile_order(corners: np.ndarray, window: float, tile: tuple[int, int], n_kept: int) -> np.ndarray:
    """Order of windows in which each tile is decoded once where the tiles used last are kept.

    Row of tiles by row of tiles, from left to right; windows that begin in one tile keep their order. Between two uses
    of a tile lie at most the tiles that the windows of a row touch, and one more row: where an image is too wide to
    keep as many, it is read in blocks of columns, and only tiles at their borders are decoded twice.

    Parameters
    ----------
    corners
        Top left corners (x, y) of the windows, n x 2; what lies above and left of the image counts as its edge.
    window
        Side of the windows.
    tile
        Height and width of the tiles.
    n_kept
        Tiles that are kept.

    Returns
    -------
    Positions among the corners, int64, n.
    """
    rows, columns = (math.ceil(window / side) for side in tile)
    block = max(1, n_kept // (rows + 2) - columns)
    x, y = np.maximum(corners, 0).T
    column = x // tile[1]
    return np.lexsort((column, y // tile[0], column // block))
