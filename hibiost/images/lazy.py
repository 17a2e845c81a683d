"""Arrays that are read window by window: zarr, dask and their like."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ..errors import ImageError
from .source import WHITE, PixelSource, reading, to_rgb
from .tiled import TiledSource

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


class LazySource(TiledSource):
    """Windows of an array, read by its chunks."""

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
        self._set_tiles(chunks[1:] if self._channels_first else chunks[:2])

    def _decode(self, rows: slice, columns: slice) -> np.ndarray:
        with reading(self._name):
            if self._channels_first:
                pixels = np.ascontiguousarray(np.moveaxis(np.asarray(self._array[:, rows, columns]), 0, -1))
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
        super().close()
        self._array = None


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
