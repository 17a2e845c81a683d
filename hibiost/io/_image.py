"""An image alone -> an AnnData that waits for its spots."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from .. import keys
from ..errors import DataError
from ..images import open_image, pixel_size, thumbnail
from ..settings import logger


def read_image(path: str | os.PathLike[str], *, mpp: float | None = None, library_id: str | None = None) -> AnnData:
    """A slide of H&E without transcriptomics.

    The image stays on disk; its header and a thumbnail are read. Place spots on its tissue next:
    :func:`hibiost.pp.grid`.

    Parameters
    ----------
    path
        Any image that :func:`hibiost.images.open_image` opens.
    mpp
        Micrometres per pixel; by default what the file tells (:func:`hibiost.images.pixel_size`).
    library_id
        Name of the slide; by default that of the file, without its extension.

    Returns
    -------
    An AnnData of no spots and no genes, with

    ``obs["library_id"]``, ``obsm["spatial"]``
        empty: a categorical that knows the slide, and 0 x 2 (float64).
    ``uns["spatial"][library_id]``
        ``images["hires"]`` (uint8, at most 1000 px a side), ``scalefactors["tissue_hires_scalef"]``, and in
        ``metadata``: ``source_image_path`` (absolute), ``width`` and ``height`` (pixels), ``mpp`` and ``mpp_source``,
        which says where it comes from (``"argument"``: ``mpp``).

    Raises
    ------
    DataError
        The size of a pixel is not known, or an argument does not fit.
    ImageError
        The image is absent or unreadable.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.io.read_image("tumour.tiff", mpp=0.5)
    Traceback (most recent call last):
    ...
    hibiost.errors.ImageError: there is no image file tumour.tiff; check the path.
    """
    path = Path(path)
    name = slide_name(path) if library_id is None else library_id
    if not name or "/" in name:
        raise DataError(f"library_id is {name!r}; expected a name without '/', such as 'tumour'.")
    with open_image(path) as source:
        size, origin = _pixel_size(path, mpp)
        hires, scale = thumbnail(source)
        metadata = {
            "source_image_path": str(path.absolute()),
            "width": source.width,
            "height": source.height,
            "mpp": size,
            "mpp_source": origin,
        }
    nothing = pd.DataFrame(index=pd.Index([], dtype=str))
    adata = AnnData(sparse.csr_matrix((0, 0), dtype=np.float32), obs=nothing, var=nothing.copy())
    adata.obs[keys.LIBRARY] = pd.Categorical([], categories=[name])
    adata.obsm[keys.SPATIAL] = np.empty((0, 2))
    adata.uns[keys.SPATIAL] = {
        name: {"images": {"hires": hires}, "scalefactors": {"tissue_hires_scalef": scale}, "metadata": metadata}
    }
    logger.info(
        "slide %r: %d x %d pixels of %.4g um (%s), no spots yet: see hb.pp.grid.",
        name,
        metadata["width"],
        metadata["height"],
        size,
        origin,
    )
    return adata


def slide_name(path: Path) -> str:
    """What a slide is called that is an image: as the file, without its extension."""
    return path.stem.removesuffix(".ome")


def _pixel_size(path: Path, mpp: float | None) -> tuple[float, str]:
    if mpp is not None:
        if not 0 < mpp < np.inf:
            raise DataError(f"mpp is {mpp}; expected micrometres per pixel, a positive number such as 0.5.")
        return float(mpp), "argument"
    found = pixel_size(path)
    if found is None:
        raise DataError(
            f"{path} does not tell the size of its pixels; pass mpp=, micrometres per pixel: about 0.25 for a scan at "
            "40x, 0.5 at 20x."
        )
    return found
