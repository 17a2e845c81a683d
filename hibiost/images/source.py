from __future__ import annotations

import os
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from ..errors import ImageError

WHITE = 255
_TILE_CACHE = 2**28  # bytes of decoded TIFF tiles kept per open image
_BAND = 2**24  # pixels converted at a time
_MAPPED_TILE = (1024, 1024)
_PILLOW: dict[bytes, type[JpegImageFile | PngImageFile]] = {b"\xff\xd8\xff": JpegImageFile, b"\x89PN": PngImageFile}
_TIFF = (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+")
_8_BIT = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
_UNREADABLE = (
    EOFError,
    IndexError,
    KeyError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


class PixelSource(ABC):
    """An image from which windows of pixels are read; a context manager.

    Attributes
    ----------
    height, width
        Size in pixels.
    """

    height: int
    width: int

    def read(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of a window; what lies outside the image is white.

        Parameters
        ----------
        x, y
            Column and row of the window's top left pixel; may be negative.
        width, height
            Size of the window in pixels.

        Returns
        -------
        A new uint8 array, height x width x 3 (RGB).

        Raises
        ------
        ImageError
            The pixels cannot be decoded, as in a truncated file.
        """
        window = np.full((height, width, 3), WHITE, np.uint8)
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, self.width), min(y + height, self.height)
        if left < right and top < bottom:
            pixels = self._pixels(slice(top, bottom), slice(left, right))
            window[top - y : bottom - y, left - x : right - x] = pixels
        return window

    @abstractmethod
    def _pixels(self, rows: slice, columns: slice) -> np.ndarray:
        """RGB pixels of a window that lies inside the image."""

    @abstractmethod
    def close(self) -> None:
        """Give back the memory and the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_image(source: str | os.PathLike[str] | np.ndarray) -> PixelSource:
    """Open an image for reading windows of pixels; only its header is read.

    A JPEG or PNG is decoded once, at the first window that is read, and kept until it is closed: 3 bytes a pixel, and
    about 7 while decoding. A TIFF is read by tiles or strips, of which up to 256 MiB are kept decoded (a strip that is
    larger, whole), or memory-mapped where it is not compressed; of a pyramid, the largest level is read. Transparency
    is laid over white, grey is repeated. An orientation tag is not applied: pixels are those of the file, as are
    coordinates.

    Parameters
    ----------
    source
        Path of a JPEG, PNG or TIFF file, or an array (height x width, or x 3 or 4 channels) of uint8, or of floats
        from 0 to 1.

    Returns
    -------
    The open image.

    Raises
    ------
    ImageError
        The file is absent, truncated or no such image, or the pixels are not 8-bit grey, RGB or RGBA.

    Examples
    --------
    >>> import numpy as np
    >>> import hibiost as hb
    >>> with hb.images.open_image(np.zeros((20, 30, 3), np.uint8)) as image:
    ...     window = image.read(-1, 0, 4, 2)
    >>> window[0, :, 0]
    array([255,   0,   0,   0], dtype=uint8)
    """
    if isinstance(source, np.ndarray):
        return _ArraySource(source)
    path = os.fspath(source)
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except FileNotFoundError as error:
        raise ImageError(f"there is no image file {path}; check the path.") from error
    except OSError as error:
        raise ImageError(f"{path} cannot be opened ({error.strerror}); expected a readable image file.") from error
    if magic in _TIFF:
        return _TiffSource(path)
    if magic[:3] in _PILLOW:
        return _PillowSource(path, _PILLOW[magic[:3]])
    raise ImageError(f"{path} is neither a JPEG, a PNG nor a TIFF file (it starts with {magic!r}); convert it to one.")


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an error that names the file."""
    try:
        yield
    except ImageError:
        raise
    except _UNREADABLE as error:
        raise ImageError(
            f"{path} cannot be read ({type(error).__name__}: {error}); it is truncated, damaged or of an unsupported "
            "kind: fetch it again, or save it anew as an 8-bit RGB JPEG, PNG or TIFF."
        ) from error


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """RGB of uint8 grey, RGB or RGBA pixels, transparency laid over white."""
    if pixels.ndim == 2:
        return np.broadcast_to(pixels[..., None], (*pixels.shape, 3))
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[..., 3:].astype(np.uint16)
    return ((pixels[..., :3] * alpha + WHITE * (WHITE - alpha) + WHITE // 2) // WHITE).astype(np.uint8)


class _ArraySource(PixelSource):
    def __init__(self, pixels: np.ndarray) -> None:
        if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or pixels.size == 0:
            raise ImageError(
                f"the image array has shape {pixels.shape}; expected (height, width), (height, width, 3) or (..., 4)."
            )
        if pixels.dtype.kind == "f":
            low, high = float(pixels.min()), float(pixels.max())
            if not (low >= 0 and high <= 1):
                raise ImageError(
                    f"the image array holds floats from {low:.4g} to {high:.4g}; expected 0 to 1: scale it, "
                    "or convert it to uint8."
                )
            pixels = np.rint(pixels * np.float32(WHITE)).astype(np.uint8)
        if pixels.dtype != np.uint8:
            raise ImageError(
                f"the image array has dtype {pixels.dtype}; expected uint8, or floats from 0 to 1: convert it to uint8."
            )
        self._array = _rgb(pixels)
        self.height, self.width = pixels.shape[:2]

    def _pixels(self, rows: slice, columns: slice) -> np.ndarray:
        return self._array[rows, columns]

    def close(self) -> None:
        pass


class _PillowSource(PixelSource):
    """A JPEG or PNG, opened by its plugin: ``PIL.Image.open`` refuses images of the size of a tissue section."""

    def __init__(self, path: str, plugin: type[JpegImageFile | PngImageFile]) -> None:
        self._path, self._plugin = path, plugin
        self._array: np.ndarray | None = None
        with _reading(path), plugin(path) as image:
            if image.mode not in _8_BIT:
                raise ImageError(f"{path} has pixels of mode {image.mode!r}; expected 8 bits: convert it to 8-bit RGB.")
            self.width, self.height = image.size

    def _pixels(self, rows: slice, columns: slice) -> np.ndarray:
        if self._array is None:
            self._array = self._decode()
        return self._array[rows, columns]

    def _decode(self) -> np.ndarray:
        array = np.empty((self.height, self.width, 3), np.uint8)
        band = max(1, _BAND // self.width)
        with _reading(self._path), self._plugin(self._path) as image:
            mode = "RGBA" if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info else "RGB"
            for top in range(0, self.height, band):
                bottom = min(top + band, self.height)
                array[top:bottom] = _rgb(np.asarray(image.crop((0, top, self.width, bottom)).convert(mode)))
        return array

    def close(self) -> None:
        self._array = None


class _TiffSource(PixelSource):
    """Level 0 of the first series of a TIFF, memory-mapped or read by tiles through zarr."""

    def __init__(self, path: str) -> None:
        import tifffile
        import zarr

        self._path = path
        with _reading(path), ExitStack() as stack:
            file = stack.enter_context(tifffile.TiffFile(path))
            level = file.series[0].levels[0]
            _check_tiff(path, level, file.filehandle.size)
            self._channels_first = level.axes[0] in "CS"
            self.height, self.width = level.shape[1:] if self._channels_first else level.shape[:2]
            self._array: Any
            if level.dataoffset is not None:
                self._array, tile = tifffile.memmap(path, mode="r"), _MAPPED_TILE
            else:
                self._array = zarr.open_array(stack.enter_context(level.aszarr(level=0, fillvalue=WHITE)), mode="r")
                tile = self._array.chunks[1:] if self._channels_first else self._array.chunks[:2]
            self._tile_shape: tuple[int, int] = tile
            self._tile = lru_cache(max(1, _TILE_CACHE // (3 * tile[0] * tile[1])))(self._decode)
            self._stack = stack.pop_all()

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
        with _reading(self._path):
            if self._channels_first:
                return _rgb(np.moveaxis(np.asarray(self._array[:, rows, columns]), 0, -1))
            return _rgb(np.asarray(self._array[rows, columns]))

    def close(self) -> None:
        self._array = None
        self._tile.cache_clear()
        self._stack.close()


def _check_tiff(path: str, level: Any, size: int) -> None:
    """Refuse by the header what is truncated or no 8-bit grey, RGB or RGBA image."""
    from tifffile import COMPRESSION, PHOTOMETRIC

    channels = dict(zip(level.axes, level.shape, strict=True))
    shaped = level.axes == "YX" or (
        level.axes in ("YXS", "SYX", "CYX") and channels.get("S", channels.get("C")) in (3, 4)
    )
    colour = level.keyframe.photometric
    known = colour in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB) or (
        colour == PHOTOMETRIC.YCBCR and level.keyframe.compression == COMPRESSION.JPEG
    )
    if not shaped or level.dtype != np.uint8 or not known:
        raise ImageError(
            f"{path} holds {level.dtype} pixels of shape {level.shape} (axes {level.axes}, {colour!r}); expected one "
            "8-bit grey, RGB or RGBA image: convert it to 8-bit RGB."
        )
    pages = [page for page in level.pages if page is not None]
    end = max(offset + n for page in pages for offset, n in zip(page.dataoffsets, page.databytecounts, strict=True))
    if end > size:
        raise ImageError(f"{path} is truncated: it has {size} bytes, its header tells of {end}; fetch it again.")
