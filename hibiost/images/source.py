from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from ..errors import ImageError

if TYPE_CHECKING:
    from .lazy import LazyArray

T = TypeVar("T")
WHITE = 255
BAND = 2**24
"""Pixels converted at a time."""
_PILLOW: dict[bytes, type[JpegImageFile | PngImageFile]] = {b"\xff\xd8\xff": JpegImageFile, b"\x89PN": PngImageFile}
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_TIFF = (b"II*\0", b"II+\0", b"MM\0*", b"MM\0+")
_OPENSLIDE = (".czi", ".dcm", ".mrxs", ".vms", ".vmu")
"""Slides that are no TIFF files; that of MIRAX (``.mrxs``) is a small JPEG beside its folder."""
_NO_IMAGES = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "an XML text",
    b"version https://git-lfs": "a pointer of Git LFS (git lfs pull fetches the file)",
}
"""What is found in place of an image after a failed download."""
_8_BIT = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}
SIXTEEN_BITS = (
    "has 16-bit pixels; expected 8 bits. Which value is white is not told by the file (65535, 4095, ...): scale it "
    "yourself, as in tifffile.imwrite('8bit.tif', (tifffile.imread(path) * (255 / white)).astype('uint8'))."
)


class PixelSource(ABC):
    """An image from which windows of pixels are read, by several threads if need be; a context manager.

    Attributes
    ----------
    height, width
        Size in pixels.
    """

    height: int
    width: int
    tile_rows: int = 1024
    """Rows that are cheaply read together."""

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
        window = np.empty((height, width, 3), np.uint8)
        self.read_into(window, x, y)
        return window

    def read_into(self, window: np.ndarray, x: int, y: int) -> None:
        """Fill an array, height x width x 3, with the pixels from column ``x`` and row ``y`` on; see :meth:`read`."""
        height, width = window.shape[:2]
        left, top = max(x, 0), max(y, 0)
        right, bottom = min(x + width, self.width), min(y + height, self.height)
        if right - left < width or bottom - top < height:
            window[:] = WHITE
        if left < right and top < bottom:
            self._fill(window[top - y : bottom - y, left - x : right - x], left, top)

    def reading_order(self, corners: np.ndarray, window: float) -> np.ndarray:
        """The order in which windows are read fastest: that of their tiles, where the image has some.

        Parameters
        ----------
        corners
            Top left corners (x, y) of the windows in pixels, n x 2.
        window
            Side of the windows in pixels.

        Returns
        -------
        Positions among the corners, int64, n; of an image that is decoded whole, as they are.
        """
        return np.arange(len(corners))

    def reduced(self, width: int, height: int) -> AbstractContextManager[PixelSource]:
        """The smallest version of the image that the file gives cheaply, of at least some size; else the image itself.

        Parameters
        ----------
        width, height
            Size in pixels; at most that of the image.

        Returns
        -------
        A context manager that yields a source; leaving it closes that source, but never this one.
        """
        return nullcontext(self)

    @abstractmethod
    def _fill(self, window: np.ndarray, x: int, y: int) -> None:
        """Write the RGB pixels of a window that lies inside the image."""

    @abstractmethod
    def close(self) -> None:
        """Give back the memory and the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Once(Generic[T]):
    """A value that is computed when it is first asked for, by one thread while others wait."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute, self._lock = compute, Lock()
        self._found: list[T] = []

    def get(self) -> T:
        """The value; what its computation raises is raised, and it is tried again the next time."""
        with self._lock:
            if not self._found:
                self._found.append(self._compute())
            return self._found[0]


def open_image(source: str | os.PathLike[str] | np.ndarray | LazyArray) -> PixelSource:
    """Open an image for reading windows of pixels; only its header is read.

    A JPEG or PNG is decoded once, at the first window that is read, and kept until it is closed: 3 bytes a pixel (1 of
    a grey JPEG); while it is decoded, the file of a JPEG beside, of a PNG or CMYK about 7 bytes a pixel. A TIFF
    (OME-TIFF, BigTIFF, SVS, a pyramid or not) is read by tiles or strips, of which up to 256 MiB are kept decoded (or
    four, where that is more), or memory-mapped where it is not compressed. NDPI, MRXS, SCN, BIF and other slides are
    read by OpenSlide, which ``pip install 'hibiost[wsi]'`` installs. Of a pyramid, the largest level is read; of
    several series, the first.

    Transparency is laid over white, grey is repeated, palettes and 1-bit images are spread, CMYK becomes RGB without
    colour profile. 16-bit images and stacks of fluorescence channels are refused: which range is black to white, or
    which channels are red, green and blue, is for you to say. An orientation tag is not applied: pixels are those of
    the file, as are coordinates.

    Parameters
    ----------
    source
        Path of an image file or of the folder of a zarr array, or an array (height x width, or x 3 or 4 channels) of
        uint8, or of floats from 0 to 1. A zarr or dask array is read by its chunks and may have its channels first.

    Returns
    -------
    The open image.

    Raises
    ------
    ImageError
        The file is absent, empty, truncated, a folder or no image, needs OpenSlide, or its pixels are of a kind that
        is refused.

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
    from . import wsi
    from .lazy import LazySource, open_zarr

    if not isinstance(source, str | os.PathLike):
        return LazySource(source)
    path = os.fspath(source)
    if any(os.path.isfile(os.path.join(path, name)) for name in ("zarr.json", ".zarray", ".zgroup")):
        return open_zarr(path)
    head = check_file(path)
    if path.lower().endswith(_OPENSLIDE):
        return wsi.OpenSlideSource(path)
    if head[:4] in _TIFF:
        from .tiff import open_tiff

        return open_tiff(path)
    if head[:3] in _PILLOW:
        return _PillowSource(path, _PILLOW[head[:3]])
    if wsi.vendor(path) is not None:
        return wsi.OpenSlideSource(path)
    raise ImageError(
        f"{path} is neither a JPEG, a PNG nor a TIFF file, nor a slide known to OpenSlide (it starts with "
        f"{head[:4]!r}); convert it to one."
    )


def check_file(path: str) -> bytes:
    """The first bytes of a file, refused where it is absent, empty, a folder or the message of some server."""
    try:
        with open(path, "rb") as file:
            head = file.read(256)
    except FileNotFoundError as error:
        raise ImageError(f"there is no image file {path}; check the path.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path} is a folder; expected an image file: name the file in it.") from error
    except OSError as error:
        raise ImageError(f"{path} cannot be opened ({error.strerror}); expected a readable image file.") from error
    if not head:
        raise ImageError(f"{path} is empty (0 bytes); expected an image file: fetch it again.")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for start, kind in _NO_IMAGES.items():
        if text.startswith(start):
            raise ImageError(f"{path} is no image but {kind}: its download failed; fetch it again.")
    return head


def is_tiff(path: str) -> bool:
    """Whether a file starts as a TIFF file does."""
    return check_file(path)[:4] in _TIFF


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an error that names the file."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"{path} cannot be read ({type(error).__name__}: {error}); it is truncated, damaged or of an unsupported "
            "kind: fetch it again, or save it anew as an 8-bit RGB JPEG, PNG or TIFF."
        ) from error


def to_rgb(pixels: np.ndarray) -> np.ndarray:
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
        self._array = to_rgb(pixels)
        self.height, self.width = pixels.shape[:2]

    def _fill(self, window: np.ndarray, x: int, y: int) -> None:
        window[:] = self._array[y : y + window.shape[0], x : x + window.shape[1]]

    def close(self) -> None:
        pass


class _PillowSource(PixelSource):
    """A JPEG or PNG, opened by its plugin: ``PIL.Image.open`` refuses images of the size of a tissue section."""

    def __init__(self, path: str, plugin: type[JpegImageFile | PngImageFile]) -> None:
        self._path, self._plugin = path, plugin
        self._array = Once(partial(_decoded, path, plugin))
        with reading(path), plugin(path) as image:
            if image.mode.startswith("I"):
                raise ImageError(f"{path} {SIXTEEN_BITS}")
            if image.mode not in _8_BIT:
                raise ImageError(f"{path} has pixels of mode {image.mode!r}; expected 8 bits: convert it to 8-bit RGB.")
            self.width, self.height = image.size

    def reduced(self, width: int, height: int) -> AbstractContextManager[PixelSource]:
        """A JPEG decoded at 1/2, 1/4 or 1/8 of its size."""
        with reading(self._path), self._plugin(self._path) as image:
            if image.draft(image.mode, (width, height)) is None or image.size == (self.width, self.height):
                return nullcontext(self)
            return _ArraySource(_decode(image))

    def _fill(self, window: np.ndarray, x: int, y: int) -> None:
        window[:] = self._array.get()[y : y + window.shape[0], x : x + window.shape[1]]

    def close(self) -> None:
        self._array = Once(partial(_decoded, self._path, self._plugin))


def _decoded(path: str, plugin: type[JpegImageFile | PngImageFile]) -> np.ndarray:
    """RGB of all pixels of a file."""
    with reading(path), plugin(path) as image:
        if image.format == "JPEG" and image.mode in ("L", "RGB"):
            pixels = _decoded_jpeg(path)
            if pixels is not None:
                return pixels
        return _decode(image)


def _decoded_jpeg(path: str) -> np.ndarray | None:
    """RGB of all pixels by libjpeg-turbo; ``None`` of a file that is damaged or looks cut off, which Pillow judges.

    Where data end early, libjpeg makes up the rest.
    """
    import imagecodecs

    with open(path, "rb") as file:
        data = file.read()
    if data.rfind(_END_OF_IMAGE) < data.rfind(_START_OF_SCAN):
        return None
    try:
        return to_rgb(imagecodecs.jpeg8_decode(data))
    except imagecodecs.Jpeg8Error:
        return None


def _decode(image: Image.Image) -> np.ndarray:
    """RGB of all pixels, converted in bands: 3 bytes a pixel beside Pillow's 4."""
    array = np.empty((image.height, image.width, 3), np.uint8)
    band = max(1, BAND // image.width)
    mode = "RGBA" if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info else "RGB"
    for top in range(0, image.height, band):
        bottom = min(top + band, image.height)
        array[top:bottom] = to_rgb(np.asarray(image.crop((0, top, image.width, bottom)).convert(mode)))
    return array
