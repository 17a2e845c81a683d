"""Patches of a slide that lie in a patch file: whether they are those asked for, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import keys
from ..errors import DataError, ImageError
from ..images import PatchFile
from ..settings import logger

if TYPE_CHECKING:
    from ._slides import Slide


def stored_rows(slide: Slide, *, window: float, size: int) -> np.ndarray | None:
    """Rows of the slide's patch file with the patches of its spots; ``None`` where its image is to be read instead.

    Parameters
    ----------
    slide
        A slide with a patch file.
    window
        Side of the patches asked for in full-resolution pixels.
    size
        Side in pixels at which they are delivered.

    Raises
    ------
    DataError
        There is no image, and the file does not hold these patches.
    ImageError
        There is no image, and the file cannot be read.
    """
    if slide.patches is None:
        return None
    try:
        with PatchFile(slide.patches) as file:
            rows = file.rows(slide.barcodes)
            problem = _misfit(file, slide, rows, window)
            exact = file.window is not None and (
                file.window == file.size or (abs(window - file.window) < 1e-3 and size == file.size)
            )
    except ImageError as error:
        problem, exact = str(error), False
        if slide.image is None:
            raise
    if slide.image is None and problem is not None:
        raise DataError(f"slide {slide.library_id!r}: {problem}")
    if slide.image is not None and not exact:
        problem = problem or f"{slide.patches} holds them at another resolution only."
    if problem is not None:
        logger.info("slide %r: its patches are read from the image. %s", slide.library_id, problem)
        return None
    return rows


def _misfit(file: PatchFile, slide: Slide, rows: np.ndarray, window: float) -> str | None:
    if file.window is None:
        return (
            f"{file.path} does not tell how wide its patches are; expected the attribute downsample (full-resolution "
            "pixels per pixel) or patch_size_src of img: set it with h5py."
        )
    if not file.holds(window):
        mpp = "" if slide.mpp is None else f", mpp={slide.mpp * file.window / file.size:.6g}"
        return (
            f"patches {_width(window, slide)} wide were asked for, {file.path} holds patches "
            f"{_width(file.window, slide)} wide, of {file.size} x {file.size} pixels; ask for those (size={file.size}"
            f"{mpp}), or extract wider ones with hb.pp.extract_patches. Training asks for a margin to shift patches in;"
            " recipe={'shift': 0} for none."
        )
    absent = rows < 0
    if absent.any():
        names = list(slide.barcodes[absent][:3])
        return (
            f"{int(absent.sum())} of {len(rows)} spots have no patch in {file.path}, such as {names} (it holds "
            f"{list(file.barcodes[:3])}, ...; patches off the tissue are left out); keep those that have: "
            "adata[adata.obs_names.isin(hb.images.PatchFile(path).barcodes)]. If spots were renamed, put the names of "
            f"the file in adata.obs[{keys.BARCODE!r}]."
        )
    centres = (file.coords[rows] + file.window / 2, file.coords[rows][:, ::-1])  # older files hold (y, x) of centres
    apart = min(float(np.median(np.linalg.norm(xy - slide.xy, axis=1))) for xy in centres)
    if apart > file.window / 2:
        return (
            f"the patches of {file.path} lie {apart:.0f} pixels from their spots (median); expected patches around "
            f"adata.obsm[{keys.SPATIAL!r}]: name the patch file of this section, or extract the patches again."
        )
    return None


def _width(window: float, slide: Slide) -> str:
    pixels = f"{window:.6g} full-resolution pixels"
    return pixels if slide.mpp is None else f"{pixels} ({window * slide.mpp:.4g} micrometres)"
