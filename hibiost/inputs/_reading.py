"""How the patches of a slide are read: from its image or its patch file, in which order, and each how often."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import DataError
from ..images import PatchFile, count_padded, iter_patches
from ..images.patches import top_left
from ..settings import logger
from ._stored import stored_rows

if TYPE_CHECKING:
    from ._slides import Slide


@dataclass(frozen=True, eq=False)
class PatchReader:
    """The patches around the spots of a slide.

    Attributes
    ----------
    slide
        The slide.
    window
        Side of the patches in full-resolution pixels.
    size
        Side in pixels at which they are delivered.
    batch_size
        Patches in a batch.
    stored
        Row of each spot in the slide's patch file; ``None`` where the image is read.
    """

    slide: Slide
    window: float
    size: int
    batch_size: int
    stored: np.ndarray | None

    @classmethod
    def of(
        cls, slide: Slide, *, size: int = 224, mpp: float | None = None, output: int | None = None, batch_size: int = 64
    ) -> PatchReader:
        """Check the arguments, and tell how many patches are padded; see :meth:`Slide.iter_patches`."""
        delivered = size if output is None else output
        if min(size, delivered, batch_size) < 1:
            raise DataError(
                f"size is {size}, output {delivered} and batch_size {batch_size}; expected whole numbers of 1 or more."
            )
        window = slide.window(size, mpp)
        reader = cls(slide, window, delivered, batch_size, stored_rows(slide, window=window, size=delivered))
        if reader.stored is None:
            with slide.open() as source:
                padded = count_padded((source.height, source.width), slide.xy * slide.scale, window=reader._side)
            logger.log(
                logging.INFO if padded else logging.DEBUG,
                "slide %r: %d of %d patches reach over the edge of the image and are padded with white.",
                slide.library_id,
                padded,
                len(slide.xy),
            )
        return reader

    def batches(self, spots: np.ndarray) -> Generator[np.ndarray, None, None]:
        """Patches of some of the slide's spots, in their order."""
        xy, options = self.slide.xy[spots], {"size": self.size, "batch_size": self.batch_size}
        if self.stored is not None:
            with PatchFile(str(self.slide.patches)) as file:
                yield from file.iter_patches(self.stored[spots], xy, window=self.window, **options)
        else:
            with self.slide.open() as source:
                yield from iter_patches(source, xy * self.slide.scale, window=self._side, **options)

    def ordered(self, spots: np.ndarray) -> np.ndarray:
        """Some of the slide's spots in the order in which their patches are read fastest."""
        if self.stored is not None:
            return spots[np.argsort(self.stored[spots], kind="stable")]
        with self.slide.open() as source:
            return spots[source.reading_order(self._corners[spots], self._side)]

    def windows(self) -> np.ndarray:
        """A number for each spot, int64: the same where the windows are of the same pixels; 0, 1, ... as they appear.

        A patch file holds a patch of its own for each spot.
        """
        if self.stored is not None:
            return np.arange(len(self.stored))
        return pd.factorize(np.ascontiguousarray(self._corners).view(np.complex128)[:, 0])[0]

    @property
    def _side(self) -> float:
        """Side of the patches in pixels of the image."""
        return round(self.window * self.slide.scale, 6)

    @property
    def _corners(self) -> np.ndarray:
        return top_left(self.slide.xy * self.slide.scale, self._side)


def numbered_patches(slides: Sequence[Slide], **options: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row positions and patches of each batch, slide by slide, of a tiled image in the order of its tiles.

    Arguments are those of :meth:`Slide.iter_patches` and are checked at the call, for all slides; a batch never spans
    two slides.
    """
    return _numbered([PatchReader.of(slide, **options) for slide in slides])


def _numbered(readers: list[PatchReader]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for reader in readers:
        rows = reader.slide.rows
        order, start = reader.ordered(np.arange(len(rows))), 0
        with closing(reader.batches(order)) as batches:
            for patches in batches:
                yield rows[order[start : start + len(patches)]], patches
                start += len(patches)


def distinct_patches(slides: Sequence[Slide], **options: Any) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Like :func:`numbered_patches`, but what several spots show is read once.

    Returns
    -------
    Iterator over triples: row positions (int64), for each the number of its patch in the batch (int64), and the patches
    (at most ``batch_size``): ``function(patches)[numbers]`` are values of ``rows``.
    """
    return _distinct([PatchReader.of(slide, **options) for slide in slides])


def _distinct(readers: list[PatchReader]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for reader in readers:
        windows = reader.windows()
        first = np.unique(windows, return_index=True)[1]
        order = reader.ordered(first)
        turn = np.empty_like(windows)
        turn[windows[order]] = np.arange(len(order))
        turn = turn[windows]
        spots = np.argsort(turn, kind="stable")
        turn, start = turn[spots], 0
        with closing(reader.batches(order)) as batches:
            for patches in batches:
                part = slice(*np.searchsorted(turn, [start, start + len(patches)]))
                yield reader.slide.rows[spots[part]], turn[part] - start, patches
                start += len(patches)
