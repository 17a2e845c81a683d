"""What is read of an image before its pixels: a thumbnail, and the size of a pixel."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ..errors import DataError
from ..settings import logger
from . import wsi
from .source import BAND, PixelSource, check_file, is_tiff, open_image, reading

MPP_RANGE = (0.05, 100.0)
"""Micrometres per pixel that a microscope or scanner may have; anything else is taken for a default of some writer."""
PRINTING_DPI = (72, 96, 100, 150, 200, 300, 600)
"""Resolutions that programs write without knowing any."""
_UNIT_UM = {
    "nm": 1e-3,
    "um": 1.0,
    "µm": 1.0,
    "μm": 1.0,
    "micron": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "in": 25400.0,
    "inch": 25400.0,
}


def thumbnail(source: PixelSource, *, max_px: int = 1000) -> tuple[np.ndarray, float]:
    """The whole image, reduced.

    Pixels are averaged over the area of a thumbnail's pixel (Pillow's box filter). Of a pyramid, the smallest level
    that suffices is read; a JPEG is decoded at down to an eighth of its size. Anything else is read once, in bands:
    memory is what the source keeps, and 7 bytes for each of 16 million pixels. An image of at most ``max_px`` a side is
    given as it is.

    Parameters
    ----------
    source
        An open image.
    max_px
        Length of the longer side, in pixels.

    Returns
    -------
    The thumbnail, uint8, height x width x 3 (RGB), and its scale: pixels of the thumbnail per pixel of the image.

    Raises
    ------
    DataError
        ``max_px`` is below 1.
    ImageError
        The pixels cannot be decoded.

    Examples
    --------
    >>> import numpy as np
    >>> import hibiost as hb
    >>> with hb.images.open_image(np.zeros((300, 400, 3), np.uint8)) as image:
    ...     small, scale = hb.images.thumbnail(image, max_px=100)
    >>> small.shape, scale
    ((75, 100, 3), 0.25)
    """
    if max_px < 1:
        raise DataError(f"max_px is {max_px}; expected a whole number of 1 or more.")
    scale = min(1.0, max_px / max(source.height, source.width))
    width, height = (max(1, round(side * scale)) for side in (source.width, source.height))
    with source.reduced(width, height) as level:
        x_step, y_step = (extent / side for extent, side in zip(_extent(source, level), (width, height), strict=True))
        return _area_mean(level, width, height, x_step, y_step), scale


def _extent(source: PixelSource, level: PixelSource) -> tuple[float, float]:
    """Width and height of the image in pixels of a level: not whole where the level is 1/2, 1/4, ... rounded up."""
    factor = round(source.width / level.width)
    extent = source.width / factor, source.height / factor
    if abs(extent[0] - level.width) < 1 and abs(extent[1] - level.height) < 1:
        return min(extent[0], level.width), min(extent[1], level.height)
    return level.width, level.height


def _area_mean(level: PixelSource, width: int, height: int, x_step: float, y_step: float) -> np.ndarray:
    """Means over x_step x y_step pixels, a band of at most ``BAND`` pixels (or a row of the thumbnail) at a time."""
    small = np.empty((height, width, 3), np.uint8)
    rows = max(1, int(max(level.tile_rows, BAND // level.width) / y_step))
    columns = max(1, int(BAND / (rows * y_step * x_step)))
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            part = small[top : top + rows, left : left + columns]
            x, y = left * x_step, top * y_step
            right, bottom = x + part.shape[1] * x_step, y + part.shape[0] * y_step
            x0, y0 = int(x), int(y)
            x1, y1 = min(math.ceil(right), level.width), min(math.ceil(bottom), level.height)
            pixels = Image.fromarray(level.read(x0, y0, x1 - x0, y1 - y0))
            box = (x - x0, y - y0, min(right, x1) - x0, min(bottom, y1) - y0)
            part[:] = np.asarray(pixels.resize((part.shape[1], part.shape[0]), Image.Resampling.BOX, box=box))
    return small


def pixel_size(path: str | os.PathLike[str]) -> tuple[float, str] | None:
    """Micrometres per pixel, as the header of an image file tells it.

    In this order: OME ``PhysicalSizeX``, Aperio's ``MPP``, OpenSlide's ``openslide.mpp-x`` (where OpenSlide is
    installed and knows the format), TIFF ``XResolution`` (in ImageJ's unit, where ImageJ wrote the file). Sizes outside
    0.05 to 100 micrometres and resolutions that programs write by default (72, 96, 300 dpi and the like) are passed
    over, as are those of JPEG and PNG files, which tell of printing. Pixels that are not square (by more than 1 %) are
    told in the log and count as unknown.

    Parameters
    ----------
    path
        An image file.

    Returns
    -------
    Micrometres per pixel and where the number comes from, or ``None`` where the file does not tell.

    Raises
    ------
    ImageError
        The file is absent, or damaged.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.images.pixel_size("section.ome.tif")
    Traceback (most recent call last):
    ...
    hibiost.errors.ImageError: there is no image file section.ome.tif; check the path.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        open_image(path).close()
        return None
    check_file(path)
    for x, y, source in _sizes(path):
        low, high = MPP_RANGE
        if not (low <= x <= high and low <= y <= high):
            continue
        if abs(x - y) > 0.01 * max(x, y):
            logger.warning(
                "%s has pixels of %.4g x %.4g um (%s): not square, so its pixel size counts as unknown; resample the "
                "image, or pass mpp= where this is wrong.",
                path,
                x,
                y,
                source,
            )
            return None
        return (x + y) / 2, source
    return None


def _sizes(path: str) -> list[tuple[float, float, str]]:
    """Sizes of a pixel in x and y that the header tells, the most trustworthy first."""
    if not is_tiff(path):
        return [*_openslide(path)]
    import tifffile

    with reading(path), tifffile.TiffFile(path) as file:
        page = file.series[0].keyframe
        named = [*_ome(file.ome_metadata or "<OME/>")] if file.is_ome else []
        named += _aperio(page.description)
        unit, source = {2: "inch", 3: "cm"}.get(page.tags.valueof("ResolutionUnit", 2), ""), "TIFF XResolution"
        if file.is_imagej:
            unit, source = str((file.imagej_metadata or {}).get("unit", "")), "ImageJ unit"
        overview = file.is_scn or file.is_bif  # the first page, and not the scan
        return [*named, *_openslide(path), *([] if overview else _resolution(page, unit, source))]


def _ome(xml: str) -> Iterator[tuple[float, float, str]]:
    pixels = ElementTree.fromstring(xml).find(".//{*}Pixels")
    if pixels is not None and "PhysicalSizeX" in pixels.attrib:
        x = float(pixels.attrib["PhysicalSizeX"]) * _um(pixels.get("PhysicalSizeXUnit", "um"))
        y = float(pixels.get("PhysicalSizeY", "nan")) * _um(pixels.get("PhysicalSizeYUnit", "um"))
        yield x, x if np.isnan(y) else y, "OME PhysicalSizeX"


def _aperio(description: str) -> Iterator[tuple[float, float, str]]:
    if found := re.match(r"Aperio.*\|\s*MPP\s*=\s*(\d+(?:\.\d+)?)", description, flags=re.DOTALL):
        yield float(found[1]), float(found[1]), "Aperio MPP"


def _openslide(path: str) -> Iterator[tuple[float, float, str]]:
    """Of a plain TIFF, OpenSlide tells the resolution that is judged below."""
    told = wsi.properties(path)
    if told.get("openslide.vendor") != "generic-tiff" and {"openslide.mpp-x", "openslide.mpp-y"} <= set(told):
        yield float(told["openslide.mpp-x"]), float(told["openslide.mpp-y"]), "openslide.mpp-x"


def _resolution(page: Any, unit: str, source: str) -> Iterator[tuple[float, float, str]]:
    ratios = [page.tags.valueof(f"{axis}Resolution") for axis in "XY"]
    if all(ratio is not None and 0 not in ratio for ratio in ratios):
        x, y = (_um(unit) * per / dots for dots, per in ratios)
        if not any(abs(25400 / x - dpi) < 0.005 * dpi for dpi in PRINTING_DPI):
            yield x, y, source


def _um(unit: str) -> float:
    """Micrometres in a unit, NaN for one that is none of length."""
    return _UNIT_UM.get(unit.replace("\\u00B5", "µ"), np.nan)
