"""TIFF files, by tifffile and zarr."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile
import zarr
from PIL import Image
from tifffile import COMPRESSION, EXTRASAMPLE, PHOTOMETRIC, PLANARCONFIG

from ..errors import ImageError
from . import wsi
from .source import SIXTEEN_BITS, WHITE, PixelSource, reading, to_rgb
from .tiled import TiledSource

_MAPPED_TILE = (1024, 1024)
_ROWS = 256
"""Rows of strips that are decoded together."""
_CONVERT = "convert it to 8-bit RGB."
_RGB_NAMES = ("r", "g", "b", "red", "green", "blue", "a", "alpha")


def open_tiff(path: str) -> PixelSource:
    """A TIFF file; by OpenSlide where its parts are to be composed, or where tifffile does not know its colours."""
    with reading(path), tifffile.TiffFile(path) as file:
        composed = file.is_ndpi or file.is_scn or file.is_bif
        refused = _refusal(file, file.series[0].levels[0])
        foreign = not _known_colours(file.series[0].keyframe)
    if (composed or (foreign and refused is None)) and (not wsi.installed() or wsi.vendor(path) is not None):
        return wsi.OpenSlideSource(path)
    return TiffSource(path)


class TiffSource(TiledSource):
    """A level of the first series of a TIFF, memory-mapped or read by tiles: where it is one page, without zarr."""

    def __init__(self, path: str, level: int = 0) -> None:
        self._path = path
        with reading(path), ExitStack() as stack:
            file = stack.enter_context(tifffile.TiffFile(path))
            series = file.series[0].levels[level]
            _check(path, file, series)
            self._shapes = [_size(part) for part in file.series[0].levels]
            self._channels_first = series.axes[0] in "CS"
            self._to_rgb = _converter(series.keyframe)
            self.height, self.width = _size(series)
            self._array: Any
            self._mapped = series.dataoffset is not None
            if self._mapped:
                self._array, tile = tifffile.memmap(path, series=0, level=level, mode="r"), _MAPPED_TILE
            elif len(series.pages) == 1 and series.keyframe.planarconfig == PLANARCONFIG.CONTIG:
                self._array = _Page(series.pages[0], series.keyframe, file.filehandle)
                tile = self._array.chunks
            else:
                self._array = zarr.open_array(stack.enter_context(series.aszarr(level=0, fillvalue=WHITE)), mode="r")
                tile = self._array.chunks[1:] if self._channels_first else self._array.chunks[:2]
            self._set_tiles(tile)
            self._stack = stack.pop_all()

    def reduced(self, width: int, height: int) -> AbstractContextManager[PixelSource]:
        """A level of the pyramid."""
        sizes = self._shapes
        level = max(i for i, size in enumerate(sizes) if i == 0 or (size[0] >= height and size[1] >= width))
        return nullcontext(self) if level == 0 else TiffSource(self._path, level)

    def _decode(self, rows: slice, columns: slice) -> np.ndarray:
        with reading(self._path):
            if self._channels_first:
                return self._to_rgb(np.moveaxis(np.asarray(self._array[:, rows, columns]), 0, -1))
            return self._to_rgb(np.asarray(self._array[rows, columns]))

    def _fill(self, window: np.ndarray, x: int, y: int) -> None:
        if self._mapped:
            window[:] = self._decode(slice(y, y + window.shape[0]), slice(x, x + window.shape[1]))
        else:
            super()._fill(window, x, y)

    def close(self) -> None:
        """Give back the tiles and the file."""
        super().close()
        self._array = None
        self._stack.close()


class _Page:
    """A page with all channels side by side, of which one chunk is read at a time: a tile, or strips of ``_ROWS`` rows.

    zarr takes twice as long as the decoder of a JPEG tile.
    """

    def __init__(self, page: Any, keyframe: Any, file: tifffile.FileHandle) -> None:
        file.set_lock(True)
        self._page, self._keyframe, self._file = page, keyframe, file
        height, width = keyframe.chunks[:2]
        self._n_rows, self._n_columns = keyframe.chunked[:2]
        self._strips = 1 if keyframe.is_tiled else max(1, _ROWS // height)
        self.chunks = height * self._strips, width

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        height, width = self.chunks
        first, column = index[0].start // height * self._strips, index[1].start // width
        rows = range(first, min(first + self._strips, self._n_rows))
        parts = [self._segment(row * self._n_columns + column) for row in rows]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _segment(self, number: int) -> np.ndarray:
        """Pixels of a tile or strip, height x width, or x channels; white where the file holds none."""
        with self._file.lock:
            self._file.seek(self._page.dataoffsets[number])
            data = self._file.read(self._page.databytecounts[number]) or None
        tables = {"jpegtables": self._page.jpegtables, "jpegheader": self._page.jpegheader}
        pixels, _, shape = self._keyframe.decode(data, number, **tables)
        if pixels is None:
            pixels = np.full(shape, WHITE, self._keyframe.dtype)
        return pixels[0, ..., 0] if pixels.shape[-1] == 1 else pixels[0]


def _size(series: Any) -> tuple[int, int]:
    """Height and width."""
    height, width = (series.shape[series.axes.index(axis)] for axis in "YX")
    return height, width


def _known_colours(page: Any) -> bool:
    """Whether tifffile decodes a page to colours that are read here."""
    if page.compression == COMPRESSION.APERIO_JP2000_YCBC or page.compression not in tifffile.TIFF.DECOMPRESSORS:
        return False
    if page.photometric == PHOTOMETRIC.YCBCR:
        return page.compression == COMPRESSION.JPEG
    return page.photometric in (
        PHOTOMETRIC.MINISBLACK,
        PHOTOMETRIC.MINISWHITE,
        PHOTOMETRIC.PALETTE,
        PHOTOMETRIC.RGB,
        PHOTOMETRIC.SEPARATED,
    )


def _converter(page: Any) -> Callable[[np.ndarray], np.ndarray]:
    """From the pixels of a page to RGB."""
    if page.photometric == PHOTOMETRIC.PALETTE:
        return _table(page.colormap).__getitem__
    if page.photometric == PHOTOMETRIC.SEPARATED:
        return _from_cmyk
    if page.bitspersample < 8 or page.photometric == PHOTOMETRIC.MINISWHITE:
        ramp = np.linspace(0, WHITE, 2**page.bitspersample).astype(np.uint8)[:, None].repeat(3, axis=1)
        return partial(_looked_up, ramp[::-1] if page.photometric == PHOTOMETRIC.MINISWHITE else ramp)
    if page.extrasamples and page.extrasamples[0] == EXTRASAMPLE.UNSPECIFIED:
        return lambda pixels: to_rgb(pixels[..., :3])
    if page.extrasamples and page.extrasamples[0] == EXTRASAMPLE.ASSOCALPHA:
        return _from_premultiplied
    return to_rgb


def _looked_up(table: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    return table[pixels.astype(np.uint8)]


def _table(colormap: np.ndarray) -> np.ndarray:
    """Colours of a palette, n x 3; 16-bit by the standard, 8-bit by some writers."""
    return (colormap.T if colormap.max() <= WHITE else colormap.T >> 8).astype(np.uint8)


def _from_cmyk(pixels: np.ndarray) -> np.ndarray:
    size = pixels.shape[1], pixels.shape[0]
    return np.asarray(Image.frombytes("CMYK", size, np.ascontiguousarray(pixels).tobytes()).convert("RGB"))


def _from_premultiplied(pixels: np.ndarray) -> np.ndarray:
    return np.minimum(pixels[..., :3].astype(np.uint16) + (WHITE - pixels[..., 3:]), WHITE).astype(np.uint8)


def _check(path: str, file: tifffile.TiffFile, series: Any) -> None:
    """Refuse by the header what is truncated or no single 8-bit image."""
    refused = _refusal(file, series)
    if refused is None and not _known_colours(series.keyframe):
        page = series.keyframe
        refused = f"holds colours that are not read ({page.photometric!r}, {page.compression!r}): {_CONVERT}"
    if refused is not None:
        raise ImageError(f"{path} {refused}")
    pages = [page for page in series.pages if page is not None]
    end = max(offset + n for page in pages for offset, n in zip(page.dataoffsets, page.databytecounts, strict=True))
    if end > file.filehandle.size:
        raise ImageError(
            f"{path} is truncated: it has {file.filehandle.size} bytes, its header tells of {end}; fetch it again."
        )


def _refusal(file: tifffile.TiffFile, series: Any) -> str | None:
    """Why a series is no single 8-bit image, in words that follow the path."""
    channels = dict(zip(series.axes, series.shape, strict=True))
    names = _channel_names(file)
    if series.axes in ("CYX", "YXC") or (channels.get("C", 1) > 1 and names):
        coloured = all(name.casefold() in _RGB_NAMES for name in names)
        if series.axes != "CYX" or channels["C"] not in (3, 4) or not coloured or file.is_imagej:
            told = f" ({', '.join(names)})" if names else ""
            return (
                f"holds {channels['C']} channels{told}, as of fluorescence; expected one brightfield image (H&E) in "
                "RGB: choose another image, or compose one of 8-bit RGB."
            )
    else:
        samples = {PHOTOMETRIC.SEPARATED: (4,)}.get(series.keyframe.photometric, (3, 4))
        if series.axes != "YX" and (series.axes not in ("YXS", "SYX") or channels["S"] not in samples):
            found = f"pixels of shape {series.shape} (axes {series.axes})"
            return f"holds {found}; expected one image in grey or RGB: {_CONVERT}"
    if series.dtype == np.uint16:
        return SIXTEEN_BITS
    if series.dtype not in (np.uint8, np.bool_):
        return f"holds {series.dtype} pixels; expected 8 bits: {_CONVERT}"
    return None


def _channel_names(file: tifffile.TiffFile) -> list[str]:
    """Names of the channels of an OME-TIFF's first image, empty where it tells none."""
    if not file.is_ome:
        return []
    pixels = ElementTree.fromstring(file.ome_metadata or "<OME/>").find(".//{*}Pixels")
    return [] if pixels is None else [name for channel in pixels.findall("{*}Channel") if (name := channel.get("Name"))]
