"""Whole-slide images, by OpenSlide: the optional extra ``wsi``."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import numpy as np

from ..errors import ImageError
from .source import PixelSource, reading, to_rgb
from .tiled import tile_order

CACHE = 2**28
"""Bytes of decoded tiles that OpenSlide keeps per open slide."""
_SIDES = ("height", "width")
_TILE = 256
"""Side of the tiles where a slide does not tell."""


def installed() -> bool:
    """Whether OpenSlide is there."""
    return find_spec("openslide") is not None


def vendor(path: str) -> str | None:
    """The format in which OpenSlide knows a file, ``None`` where it does not, or is absent."""
    if not installed():
        return None
    import openslide

    with reading(path):
        return openslide.OpenSlide.detect_format(path)


def properties(path: str) -> Mapping[str, str]:
    """What a slide tells of itself; empty where OpenSlide does not know it, or is absent."""
    if vendor(path) is None:
        return {}
    import openslide

    with reading(path), openslide.OpenSlide(path) as slide:
        return dict(slide.properties)


class OpenSlideSource(PixelSource):
    """A level of a slide."""

    def __init__(self, path: str, level: int = 0) -> None:
        if not installed():
            raise ImageError(f"{path} is a slide that OpenSlide reads, which is absent: pip install 'hibiost[wsi]'.")
        import openslide

        self._path, self._level = path, level
        with reading(path):
            self._slide = openslide.OpenSlide(path)
            self._slide.set_cache(openslide.OpenSlideCache(CACHE))
        self.width, self.height = self._slide.level_dimensions[level]

    def reduced(self, width: int, height: int) -> AbstractContextManager[PixelSource]:
        """A level of the pyramid."""
        sizes = self._slide.level_dimensions
        level = max(i for i, size in enumerate(sizes) if i == 0 or (size[0] >= width and size[1] >= height))
        return nullcontext(self) if level == 0 else OpenSlideSource(self._path, level)

    def reading_order(self, corners: np.ndarray, window: float) -> np.ndarray:
        """The order by OpenSlide's tiles; see :func:`~hibiost.images.tiled.tile_order`."""
        told = (self._slide.properties.get(f"openslide.level[{self._level}].tile-{side}") for side in _SIDES)
        height, width = (int(side or _TILE) for side in told)
        return tile_order(corners, window, (height, width), CACHE // (4 * height * width))

    def _fill(self, window: np.ndarray, x: int, y: int) -> None:
        step = self._slide.level_downsamples[self._level]
        corner = round(x * step), round(y * step)
        with reading(self._path):
            window[:] = to_rgb(np.asarray(self._slide.read_region(corner, self._level, window.shape[1::-1])))

    def close(self) -> None:
        """Close the slide."""
        self._slide.close()
