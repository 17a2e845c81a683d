"""Patch files in HEST-1k's layout: HDF5 with ``img``, ``coords`` and ``barcode``."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
import pandas as pd

from ..errors import DataError, HibiostError, ImageError
from .patches import cut_patch, in_batches, top_left
from .source import open_image

SAME_WINDOW = 0.01
"""Windows that differ by no more than this share are the same: files round them to whole pixels."""
_PENDING = np.iinfo(np.int64).min
"""Coordinates of a patch that is not written yet."""


class PatchFile:
    """An HDF5 file of patches around spots, in the layout of HEST-1k; a context manager.

    Patches are read one by one as they are asked for; barcodes and coordinates are read when the file is opened.

    Parameters
    ----------
    path
        The file: ``img`` (n x size x size x 3, uint8), ``coords`` (n x 2) and ``barcode`` (n, or n x 1), with the
        attributes ``downsample`` (or ``patch_size_src``) and ``pixel_size`` of ``img``.

    Attributes
    ----------
    path
        The file.
    size
        Side of the stored patches in pixels.
    window
        Side of the patches in full-resolution pixels, ``None`` where the file does not tell.
    pixel_size
        Micrometres per full-resolution pixel, ``None`` where the file does not tell.
    barcodes
        Name of the spot of each patch.
    coords
        Top left corner (x, y) of each patch in full-resolution pixels, int64, n x 2.

    Raises
    ------
    ImageError
        The file is absent, truncated, no HDF5 file or not of this layout.

    Examples
    --------
    >>> import numpy as np
    >>> import tempfile
    >>> import hibiost as hb
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     spots = {"coords": [[10, 20], [40, 20]], "barcodes": ["1x1", "2x1"]}
    ...     patches = np.zeros((2, 32, 32, 3), np.uint8)
    ...     hb.images.write_patches(f"{folder}/a.h5", lambda start: [patches[start:]], **spots, size=32, window=64)
    ...     with hb.images.PatchFile(f"{folder}/a.h5") as file:
    ...         print(file.rows(["2x1", "9x9"]), file.read([1]).shape, file.window)
    2
    [ 1 -1] (1, 32, 32, 3) 64.0
    """

    path: str
    size: int
    window: float | None
    pixel_size: float | None
    barcodes: pd.Index
    coords: np.ndarray

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        if not os.path.exists(self.path):
            raise ImageError(f"there is no patch file {self.path}; check the path, or write it: hb.pp.extract_patches.")
        if os.path.isdir(self.path):
            raise ImageError(f"{self.path} is a folder; expected a patch file (HDF5), such as {self.path}/<slide>.h5.")
        with _reading(self.path):
            self._file = h5py.File(self.path, "r")
        try:
            with _reading(self.path):
                self._read_header()
        except ImageError:
            self.close()
            raise

    def _read_header(self) -> None:
        absent = [name for name in ("img", "coords", "barcode") if name not in self._file]
        if absent:
            raise ImageError(
                f"{self.path} holds no {absent[0]!r} (it holds {list(self._file)}); expected a patch file in HEST's "
                "layout, as hb.pp.extract_patches writes it: img, coords, barcode."
            )
        self._img = self._file["img"]
        shape, dtype = self._img.shape, self._img.dtype
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or 0 in shape or dtype != np.uint8:
            raise ImageError(f"{self.path}: img is {dtype} of shape {shape}; expected uint8, n x size x size x 3.")
        self.barcodes = _names(self._file["barcode"])
        self.coords = np.asarray(self._file["coords"][:], dtype=np.int64)
        if len(self.barcodes) != len(self._img) or self.coords.shape != (len(self._img), 2):
            raise ImageError(
                f"{self.path} holds {len(self._img)} patches, {len(self.barcodes)} barcodes and coords of shape "
                f"{self.coords.shape}; expected one of each per spot: fetch or write the file again."
            )
        if not self.barcodes.is_unique:
            twice = self.barcodes[self.barcodes.duplicated()].unique()
            raise ImageError(f"{self.path}: {len(twice)} barcodes occur more than once, such as {twice[0]!r}.")
        self.size = int(shape[1])
        downsample = _number(self._img.attrs, "downsample")
        window = _number(self._img.attrs, "patch_size_src", "patch_size")
        self.window = window if downsample is None else round(downsample * self.size, 6)
        self.pixel_size = _number(self._img.attrs, "pixel_size")

    def __len__(self) -> int:
        return len(self.barcodes)

    def rows(self, barcodes: Sequence[str] | pd.Index) -> np.ndarray:
        """Row of each of these spots in the file, -1 where it has none."""
        return self.barcodes.get_indexer(pd.Index(barcodes, dtype=object))

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Stored patches of some rows, in that order, uint8, n x size x size x 3.

        Raises
        ------
        ImageError
            The patches cannot be read.
        """
        patches = np.empty((len(rows), *self._img.shape[1:]), np.uint8)
        with _reading(self.path):
            for place, row in enumerate(rows):
                self._img.read_direct(patches, np.s_[int(row)], np.s_[place])
        return patches

    def holds(self, window: float) -> bool:
        """Whether the stored patches are wide enough for a window in full-resolution pixels."""
        return self.window is not None and window <= self.window * (1 + SAME_WINDOW)

    def iter_patches(
        self, rows: np.ndarray, centres: np.ndarray, *, window: float, size: int, batch_size: int = 64
    ) -> Iterator[np.ndarray]:
        """Patches around centres, in batches, as :func:`hibiost.images.iter_patches` cuts them from the image.

        A window as wide as the stored one takes the patch whole, and as it is where the sizes are equal; a narrower one
        is cut out of it.

        Parameters
        ----------
        rows
            Rows of the file.
        centres
            Centres (x, y) in full-resolution pixels, one for each row.
        window
            Side of the windows in full-resolution pixels.
        size
            Side of the patches in pixels.
        batch_size
            Patches in a batch.

        Returns
        -------
        Iterator over new uint8 arrays, batch x size x size x 3 (RGB).

        Raises
        ------
        DataError
            The stored patches are narrower than the window.
        """
        if self.window is None or not self.holds(window):
            raise DataError(f"{self.path} holds patches of {self.window} pixels; expected at least {window}.")
        whole = window >= self.window * (1 - SAME_WINDOW)
        scale = self.size / self.window
        side = self.size if whole else round(window * scale, 6)
        corners = np.zeros((len(rows), 2)) if whole else self._corners(rows, centres, window, side)
        return in_batches(partial(self._fill, rows, corners, side), len(rows), size, batch_size)

    def _corners(self, rows: np.ndarray, centres: np.ndarray, window: float, side: float) -> np.ndarray:
        """Top left corners of narrower windows in the stored patches; in their middle where ``coords`` mean other."""
        margin = self.size - side
        found = (top_left(centres, window) - self.coords[rows]) * (self.size / (self.window or 1))
        middle = np.full_like(found, margin / 2)
        corners = np.where(np.abs(found - middle).max(initial=0) > 2, middle, np.clip(found, 0, margin))
        return np.floor(corners + 0.5) if float(side).is_integer() else corners

    def _fill(self, rows: np.ndarray, corners: np.ndarray, side: float, patches: np.ndarray, places: slice) -> None:
        stored = self.read(rows[places])
        if side == patches.shape[1] == self.size:
            patches[:] = stored
            return
        for patch, pixels, corner in zip(patches, stored, corners[places], strict=True):
            cut_patch(open_image(pixels), corner, side, patch)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except HibiostError:
        raise
    except BlockingIOError as error:
        raise ImageError(f"{path} is being written by another process; wait until it is done.") from error
    except Exception as error:
        raise ImageError(
            f"{path} cannot be read as a patch file ({type(error).__name__}: {error}); it is truncated, damaged or no "
            "HDF5 file: fetch it again, or write it again with hb.pp.extract_patches."
        ) from error


def _names(dataset: Any) -> pd.Index:
    values = dataset.asstr()[:] if h5py.check_string_dtype(dataset.dtype) is not None else dataset[:]
    return pd.Index([v.decode() if isinstance(v, bytes) else str(v) for v in np.ravel(values)], dtype=object)


def _number(attributes: Any, *names: str) -> float | None:
    """The first of these attributes that is a positive number."""
    for name in names:
        if name in attributes:
            value = float(np.ravel(attributes[name])[0])
            if 0 < value < np.inf:
                return value
    return None


@dataclass(frozen=True, eq=False)
class _Content:
    """What a file is to hold, beside the pixels."""

    coords: np.ndarray
    barcodes: np.ndarray
    size: int
    window: float
    pixel_size: float | None
    name: str | None

    def __post_init__(self) -> None:
        n = len(self.barcodes)
        if n == 0 or self.coords.shape != (n, 2):
            raise DataError(f"{n} barcodes and coords of shape {self.coords.shape}; expected one or more, and n x 2.")
        if len(set(self.barcodes)) != n:
            raise DataError(f"{n - len(set(self.barcodes))} of {n} barcodes occur more than once; expected each once.")
        if self.size < 1 or not 0 < self.window < np.inf:
            raise DataError(f"size is {self.size} and window {self.window}; expected positive numbers.")

    def written(self, path: str) -> int | None:
        """How many of the patches a file holds; ``None`` for an unreadable file, or one of other patches."""
        try:
            with PatchFile(path) as file:
                same = (
                    (file.size, file.window, file.pixel_size) == (self.size, round(self.window, 6), self.pixel_size)
                    and len(file) == len(self.barcodes)
                    and bool((file.barcodes == self.barcodes).all())
                )
                there = (file.coords == self.coords).all(axis=1) if same else np.zeros(0, bool)
                pending = (file.coords == _PENDING).all(axis=1)
        except ImageError as error:
            if isinstance(error.__cause__, BlockingIOError):
                raise
            return None
        n = int(there.sum())
        return n if same and there[:n].all() and pending[n:].all() else None

    def create(self, path: str) -> None:
        """A file with everything in its place but the pixels.

        The place of the pixels is allotted here and ``coords`` come last: writing patches changes nothing of the
        file's structure.
        """
        n, side = len(self.barcodes), self.size
        _check_space(path, 3 * n * side**2)
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        with h5py.File(path, "x") as file:
            file.create_dataset("img", (n, side, side, 3), np.uint8, chunks=(1, side, side, 3), dcpl=plan)
            attributes = {
                "patch_size_src": round(self.window),
                "patch_size_target": side,
                "downsample": self.window / side,
                "pixel_size": self.pixel_size,
                "name": self.name,
            }
            file["img"].attrs.update({key: value for key, value in attributes.items() if value is not None})
            file.create_dataset("barcode", data=self.barcodes[:, None], dtype=h5py.string_dtype())
            file.flush()
            file["coords"] = np.full((n, 2), _PENDING, dtype="<i8")


def write_patches(
    path: str | os.PathLike[str],
    batches: Callable[[int], Iterable[np.ndarray]],
    *,
    coords: np.ndarray | Sequence[Sequence[int]],
    barcodes: Sequence[str] | np.ndarray,
    size: int,
    window: float,
    pixel_size: float | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> int:
    """Write patches in the layout of HEST-1k, in a file that is complete or not there.

    Patches go to ``<path>.part``, which is renamed at the end. Where a call was interrupted, the next one continues
    with the first patch that is missing; where ``path`` holds these patches already, nothing is done. Memory: a batch.

    Parameters
    ----------
    path
        The file to write.
    batches
        Called with the number of the first patch wanted; gives the patches from there on (batch x size x size x 3,
        uint8).
    coords
        Top left corner (x, y) of each patch in full-resolution pixels, n x 2.
    barcodes
        Unique name of the spot of each patch.
    size
        Side of the patches in pixels.
    window
        Side of the patches in full-resolution pixels.
    pixel_size
        Micrometres per full-resolution pixel, where known.
    name
        Name of the slide.
    overwrite
        Replace a file, and begin an interrupted one anew.

    Returns
    -------
    The number of patches written by this call. The file holds ``img`` (n x size x size x 3, uint8, a chunk for each
    patch), ``coords`` (n x 2, int64) and ``barcode`` (n x 1, UTF-8); attributes of ``img`` are ``patch_size_src``
    (``window``, rounded), ``patch_size_target`` (``size``), ``downsample`` (their ratio), ``pixel_size`` and ``name``.

    Raises
    ------
    DataError
        ``path`` holds other patches, or the arguments do not fit each other.
    ImageError
        The file cannot be written (disk full, no right to), or another process is writing it; an ``OSError``.

    Examples
    --------
    >>> import numpy as np
    >>> import tempfile
    >>> import hibiost as hb
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     spots = {"coords": [[10, 20], [40, 20]], "barcodes": ["1x1", "2x1"]}
    ...     patches = np.zeros((2, 32, 32, 3), np.uint8)
    ...     hb.images.write_patches(f"{folder}/a.h5", lambda start: [patches[start:]], **spots, size=32, window=64)
    2
    """
    path = os.fspath(path)
    part = f"{path}.part"
    names = np.array([str(name) for name in barcodes], dtype=object)
    content = _Content(np.asarray(coords).astype("<i8"), names, size, float(window), pixel_size, name)
    if os.path.exists(path) and not overwrite:
        if content.written(path) != len(names):
            raise DataError(
                f"{path} is there already and holds other patches than the {len(names)} of {size} x {size} pixels and "
                f"a window of {window:.6g} asked for (or cannot be read); choose another path, or overwrite=True."
            )
        return 0
    with _writing(part):
        start = content.written(part) if os.path.exists(part) and not overwrite else None
        if start is None:
            if os.path.exists(part):
                os.unlink(part)
            content.create(part)
        _append(part, batches(start or 0), content, start or 0)
        os.replace(part, path)
    return len(names) - (start or 0)


def _append(part: str, batches: Iterable[np.ndarray], content: _Content, start: int) -> None:
    """Write patches to their places; the coordinates of a batch follow its pixels, and so tell how far the file is.

    This is not done by HDF5, which ends the process where the disk is full. It holds the file, against other writers.
    """
    total, shape = len(content.barcodes), (content.size, content.size, 3)
    with h5py.File(part, "r+") as held, open(part, "r+b") as file:
        places: dict[int, int] = {}
        held["img"].id.chunk_iter(lambda chunk: places.update({chunk.chunk_offset[0]: chunk.byte_offset}))
        coords_place = held["coords"].id.get_offset()
        for batch in batches:
            stop = start + len(batch)
            if batch.shape[1:] != shape or batch.dtype != np.uint8 or stop > total:
                raise DataError(
                    f"a batch of {batch.dtype} of shape {batch.shape} after {start} of {total} patches; expected "
                    f"uint8, n x {content.size} x {content.size} x 3."
                )
            for row, patch in enumerate(batch, start):
                file.seek(places[row])
                file.write(patch.tobytes())
            file.flush()
            file.seek(coords_place + content.coords[:start].nbytes)
            file.write(content.coords[start:stop].tobytes())
            file.flush()
            start = stop
        os.fsync(file.fileno())
    if start < total:
        raise DataError(f"{start} patches for {total} barcodes; expected one for each.")


def _check_space(part: str, size: int) -> None:
    """Refuse a file that the disk has no place for, before HDF5 finds out."""
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(part))).free
    if free < size:
        raise OSError(errno.ENOSPC, f"the patches take {size:,} bytes, {free:,} are free")
    with open(part, "xb") as file:
        file.truncate(size)
    os.unlink(part)


@contextmanager
def _writing(part: str) -> Iterator[None]:
    try:
        yield
    except HibiostError:
        raise
    except (OSError, RuntimeError) as error:
        raise ImageError(
            f"{part} cannot be written ({type(error).__name__}: {error}); free some space or choose another place, and "
            "call again: patches already in it are kept."
        ) from error
