"""Patches of slides -> files, for the verb and for corpora."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from .._files import make_folder
from ..errors import DataError
from ..images import write_patches
from ..inputs import PatchReader, Slide
from ..settings import logger, settings


def save_patches(
    slides: Sequence[Slide],
    folder: str | os.PathLike[str],
    *,
    size: int,
    mpp: float | None,
    batch_size: int,
    overwrite: bool,
) -> dict[str, str]:
    """Write a patch file for each slide.

    Returns
    -------
    Path of the file of each slide.
    """
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder, which gets a patch file <slide>.h5 for each slide.")
    slides = [_as_read(slide, size=size, mpp=mpp, batch_size=batch_size) for slide in slides]
    make_folder(folder)
    paths = {slide.library_id: str(folder / f"{slide.library_id}.h5") for slide in slides}
    total = sum(len(slide.rows) for slide in slides)
    with tqdm(total=total, desc="extract patches", unit="spot", disable=not settings.progress) as bar:
        for slide in slides:

            def batches(start: int, slide: Slide = slide) -> Iterator[np.ndarray]:
                bar.update(start)
                rest = replace(slide, rows=slide.rows[start:], xy=slide.xy[start:])
                for batch in rest.iter_patches(size=size, mpp=mpp, batch_size=batch_size):
                    yield batch
                    bar.update(len(batch))

            window = slide.window(size, mpp)
            written = write_patches(
                paths[slide.library_id],
                batches,
                coords=np.floor(slide.xy - window / 2 + 0.5),
                barcodes=list(slide.barcodes),
                size=size,
                window=window,
                pixel_size=slide.mpp,
                name=slide.library_id,
                overwrite=overwrite,
            )
            if written < len(slide.rows):
                left = len(slide.rows) - written
                logger.info("slide %r: %d of %d patches were written already.", slide.library_id, left, len(slide.rows))
            if not written:
                bar.update(len(slide.rows))
    return paths


def _as_read(slide: Slide, **options: Any) -> Slide:
    """The slide from its image where there is one, with its spots in the order in which they are read fastest.

    What would be refused later is refused here.
    """
    check_file_name(slide.library_id)
    slide = slide if slide.image is None else replace(slide, patches=None)
    order = PatchReader.of(slide, **options).ordered(np.arange(len(slide.rows)))
    return replace(slide, rows=slide.rows[order], xy=slide.xy[order])


def check_file_name(library_id: str) -> None:
    """Refuse the name of a slide that is no name of a file."""
    if library_id in ("", ".", "..") or any(character in library_id for character in "/\\\0"):
        raise DataError(
            f"the slide is named {library_id!r}, which is no name for a file; rename it in obs and uns['spatial']."
        )
