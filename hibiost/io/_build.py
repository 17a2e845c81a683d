"""What every reader ends in: one slide as the AnnData that the verbs expect."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from .. import inputs, keys
from ..errors import DataError
from ..images import open_image, thumbnail
from ..settings import logger
from ._checks import warn_background, warn_mixed_species


class PixelSize(NamedTuple):
    """Micrometres per full-resolution pixel, and where the number comes from."""

    mpp: float
    source: str


def one_slide(
    counts: Any,
    *,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    xy: np.ndarray,
    library_id: str,
    image: str | os.PathLike[str] | None = None,
    images: Mapping[str, np.ndarray] | None = None,
    scalefactors: Mapping[str, float] | None = None,
    pixel_size: PixelSize | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> AnnData:
    """One slide, its parts checked against each other.

    Parameters
    ----------
    counts
        Raw counts, spots x genes.
    obs, var
        Spots and genes, by unique names.
    xy
        Spot centres in pixels of the full-resolution image, n_spots x 2.
    library_id
        Name of the slide.
    image
        Full-resolution image; its header is read, and a thumbnail where ``images`` has no ``"hires"``.
    images, scalefactors
        As scanpy lays them out.
    pixel_size
        Where known.
    metadata
        Further entries, such as ``species`` and ``organ``, in HEST-1k's words; ``None`` is left out.

    Returns
    -------
    AnnData with ``X`` (CSR float32), ``obs["library_id"]``, ``obsm["spatial"]`` (float64) and
    ``uns["spatial"][library_id]``.

    Raises
    ------
    DataError
        Names that occur twice, parts that do not fit, a pixel size that is not positive, or spots outside the image.
    ImageError
        The image is absent or unreadable.
    """
    for what, names in (("spot", obs.index), ("gene", var.index)):
        if not names.is_unique:
            twice = names[names.duplicated()].unique()
            raise DataError(
                f"slide {library_id!r}: {len(twice)} {what} names occur more than once, such as "
                f"{list(map(str, twice[:3]))}; expected each once."
            )
    if counts.shape != (len(obs), len(var)):
        raise DataError(
            f"slide {library_id!r}: counts of shape {counts.shape} for {len(obs)} spots and {len(var)} genes; "
            "expected spots x genes."
        )
    if pixel_size is not None and not 0 < pixel_size.mpp < np.inf:
        raise DataError(
            f"slide {library_id!r}: mpp is {pixel_size.mpp} ({pixel_size.source}); expected micrometres per pixel, a "
            "positive number such as 0.5."
        )
    adata = AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs.copy(), var=var.copy())
    adata.obs.insert(0, keys.LIBRARY, pd.Categorical([library_id] * adata.n_obs))
    adata.obsm[keys.SPATIAL] = np.asarray(xy, dtype=np.float64)
    entry: dict[str, Any] = {"images": dict(images or {}), "scalefactors": dict(scalefactors or {}), "metadata": {}}
    entry["metadata"] |= {key: value for key, value in (metadata or {}).items() if value is not None}
    if pixel_size is not None:
        entry["metadata"] |= {"mpp": pixel_size.mpp, "mpp_source": pixel_size.source}
    if image is not None:
        entry["metadata"]["source_image_path"] = os.path.abspath(image)
        if "hires" not in entry["images"]:
            with open_image(image) as source:
                entry["images"]["hires"], entry["scalefactors"]["tissue_hires_scalef"] = thumbnail(source)
    adata.uns[keys.SPATIAL] = {library_id: entry}
    inputs.coordinates(adata)
    if image is not None:
        inputs.slides(adata)
    warn_mixed_species(adata, library_id)
    warn_background(adata, library_id)
    known = "unknown: pass mpp=" if pixel_size is None else f"{pixel_size.mpp:.4g} um ({pixel_size.source})"
    logger.info("slide %r: %d spots, %d genes; pixel size %s.", library_id, adata.n_obs, adata.n_vars, known)
    return adata
