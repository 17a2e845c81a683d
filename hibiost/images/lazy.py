"""Arrays that are read window by window: zarr, dask and their like."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from ..errors import ImageError
from .source import WHITE, PixelSource, reading, to_rgb

TILE_CACHE = 2**28
"""Bytes of tiles kept per open image."""
_CHANNELS = (1, 3, 4)


class LazyArray(Protocol):
    """An array of which slices are read: (height, width), or with channels before or after them."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each axis."""

    @property
    def dtype(self) -> Any:
        """uint8, or floats that hold 0 to 1."""

    def __getitem__(self, index: Any, /) -> Any: ...


class LazySource(PixelSource):
    """Windows of an array, read by its chunks, of which up to 256 MiB (or one, if that is larger) are kept."""

    def __init__(self, array: LazyArray, name: str = "the image array") -> None:
        self._name = name
        shape = array.shape
        self._channels_first = len(shape) == 3 and shape[-1] not in _CHANNELS and shape[0] in _CHANNELS
        coloured = len(shape) == 3 and (self._channels_first or shape[-1] in _CHANNELS)
        if not (len(shape) == 2 or coloured) or 0 in shape:
            raise ImageError(
                f"{name} has shape {tuple(shape)}; expected (height, width), or 1, 3 or 4 channels (grey, RGB, RGBA) "
                "before or after them: choose those that are red, green and blue."
            )
        if array.dtype != np.uint8 and np.dtype(array.dtype).kind != "f":
            raise ImageError(
                f"{name} has dtype {array.dtype}; expected uint8, or floats from 0 to 1: scale it yourself, since "
                "which value is white is not known."
            )
        self._array: Any = array
        self.height, self.width = shape[1:] if self._channels_first else shape[:2]
        chunks = getattr(array, "chunksize", None) or getattr(array, "chunks", None) or (1024,) * 3
        self._tile_shape: tuple[int, int] = chunks[1:] if self._channels_first else chunks[:2]
        self.tile_rows = self._tile_shape[0]
        self._tile = lru_cache(max(1, TILE_CACHE // (3 * self._tile_shape[0] * self._tile_shape[1])))(self._decode)

    def _pixels(self, rows: slice, columns: slice) -> np.ndarray:
        height, width = self._tile_shape
        window = np.empty((rows.stop - rows.start, columns.stop - columns.start, 3), np.uint8)
        for i in range(rows.start // height, (rows.stop - 1) // height + 1):
            top, bottom = max(rows.start, i * height), min(rows.stop, (i + 1) * height)
            for j in range(columns.start // width, (columns.stop - 1) // width + 1):
                left, right = max(columns.start, j * width), min(columns.stop, (j + 1) * width)
                window[top - rows.start : bottom - rows.start, left - columns.start : right - columns.start] = (
                    self._tile(i, j)[top - i * height : bottom - i * height, left - j * width : right - j * width]
                )
        return window

    def _decode(self, i: int, j: int) -> np.ndarray:
        height, width = self._tile_shape
        rows, columns = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
        with reading(self._name):
            if self._channels_first:
                pixels = np.moveaxis(np.asarray(self._array[:, rows, columns]), 0, -1)
            else:
                pixels = np.asarray(self._array[rows, columns])
        if pixels.dtype.kind == "f":
            if not (pixels.min() >= 0 and pixels.max() <= 1):
                raise ImageError(
                    f"{self._name} holds floats from {pixels.min():.4g} to {pixels.max():.4g}; expected 0 to 1: scale "
                    "it, or convert it to uint8."
                )
            pixels = np.rint(pixels * np.float32(WHITE)).astype(np.uint8)
        return to_rgb(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)

    def close(self) -> None:
        """Give back the memory."""
        self._array = None
        self._tile.cache_clear()


def open_zarr(path: str) -> PixelSource:
    """The zarr array in a folder.

    Raises
    ------
    ImageError
        The folder holds no zarr array, or one that is no image.
    """
    import zarr

    with reading(path):
        found = zarr.open(path, mode="r")
    if not isinstance(found, zarr.Array):
        raise ImageError(
            f"{path} is a zarr group of {sorted(found.keys())}; expected the array of an image: name the largest level "
            "in it, or read a SpatialData store with hb.io.from_spatialdata."
        )
    return LazySource(found, path)
