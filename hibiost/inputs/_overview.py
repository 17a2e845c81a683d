from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .. import keys
from ..errors import ImageError
from ..images import open_image, thumbnail
from ._slides import _positive, _slot

if TYPE_CHECKING:
    from anndata import AnnData

_HIRES = "tissue_hires_scalef"
USUAL_PX = 1000
FINE_UM = 15.0
"""Micrometres per pixel at which a slide of more than ``USUAL_PX`` is looked at."""
COARSE_UM = 30.0
"""A thumbnail with larger pixels gives way to the image itself."""


class Overview(NamedTuple):
    """The whole of a slide, reduced."""

    pixels: np.ndarray
    """uint8, height x width x 3 (RGB)."""
    scale: float
    """Pixels of ``pixels`` per full-resolution pixel."""
    mpp: float | None
    """Micrometres per full-resolution pixel, where known."""


def overview(adata: AnnData, library_id: str) -> Overview:
    """The whole of a slide, which needs no spots.

    ``images["hires"]`` is taken, or the full-resolution image where there is none or its pixels are above 30
    micrometres; either is reduced to pixels of 15 micrometres, or 1000 a side where that is more.

    Raises
    ------
    ImageError
        The slide has no image, or one that cannot be read.
    DataError
        Its pixel size or scale factor is not a positive number.
    """
    entry = adata.uns[keys.SPATIAL][library_id]
    mpp = entry.get("metadata", {}).get("mpp")
    mpp = None if mpp is None else _positive(mpp, _slot(library_id, "metadata", "mpp"))
    image, scale = _picture(entry, library_id, mpp)
    if image is None:
        raise ImageError(
            f"slide {library_id!r} has no image: expected {_slot(library_id, 'metadata', 'source_image_path')}, or "
            "['images']['hires'] with ['scalefactors']['tissue_hires_scalef']; hb.io.read_image reads a slide."
        )
    with open_image(image) as source:
        width = 0.0 if mpp is None else max(source.height, source.width) / scale * mpp
        pixels, reduction = thumbnail(source, max_px=max(USUAL_PX, math.ceil(width / FINE_UM)))
    return Overview(pixels, scale * reduction, mpp)


def _picture(entry: dict[str, Any], library_id: str, mpp: float | None) -> tuple[Any, float]:
    """The smallest image that is fine enough, and its scale."""
    images, path = entry.get("images", {}), entry.get("metadata", {}).get("source_image_path")
    reduced = "hires" in images and _HIRES in entry.get("scalefactors", {})
    full = images.get("fullres") if path is None or (reduced and not os.path.exists(path)) else str(path)
    if reduced:
        scale = _positive(entry["scalefactors"][_HIRES], _slot(library_id, "scalefactors", _HIRES))
        if full is None or mpp is None or mpp / scale <= COARSE_UM:
            return np.asarray(images["hires"]), scale
    return full, 1.0
