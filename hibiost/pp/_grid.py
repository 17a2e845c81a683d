from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from .. import inputs, keys
from ..errors import DataError, MissingSlotError
from ..images import tissue_grid
from ..settings import logger
from ._tissue import tissue_mask


def grid(
    adata: AnnData,
    *,
    spacing_um: float = 100.0,
    min_tissue: float = 0.5,
    use_mask: str = keys.TISSUE_MASK,
    library_key: str = keys.LIBRARY,
    copy: bool = False,
) -> AnnData | None:
    """Place spots on the tissue of slides that have none.

    Each slide is laid out in squares from its top left corner; those with enough tissue become spots, which
    :func:`hibiost.tl.embed` and :func:`hibiost.tl.predict` take like measured ones. The AnnData itself grows: other
    names for the same object see the spots too.

    Parameters
    ----------
    adata
        Slides without spots and genes, as of :func:`hibiost.io.read_image`.
    spacing_um
        Distance of neighbouring spots, and their diameter, in micrometres.
    min_tissue
        Least share of tissue in the square of a spot, from 0 to 1.
    use_mask
        Masks in ``uns``, of :func:`hibiost.pp.tissue_mask`, which is called with its defaults where there are none.
    library_key
        Column of ``obs`` that will tell slides apart.
    copy
        Return a changed copy instead of changing ``adata``.

    Returns
    -------
    ``None``, or the changed copy: an AnnData of the spots, named ``<column>x<row>`` (after the name of their slide
    where there are several), and no genes. Written are

    ``obs["library_id"]``
        categorical.
    ``obs["array_row"]``, ``obs["array_col"]``
        int64: place on the grid, counted from the top left corner of the image.
    ``obsm["spatial"]``
        float64, n_obs x 2: centres (x, y) in pixels of the full-resolution image.
    ``uns["spatial"][library_id]["scalefactors"]["spot_diameter_fullres"]``
        ``spacing_um`` in pixels.
    ``uns["tissue_mask"]``
        where it was not there.

    Raises
    ------
    DataError
        There are spots or genes already, the pixel size of a slide is unknown, a slide is blank, or an argument is out
        of range.
    MissingSlotError
        No slides in ``uns["spatial"]``, or one that the masks do not hold.
    ImageError
        A slide has no image, or one that cannot be read.

    Examples
    --------
    >>> import hibiost as hb
    >>> slide = hb.datasets.tissue(100)[:0, :0].copy()
    >>> hb.pp.grid(slide, spacing_um=50)
    >>> slide.obs_names[0], slide.n_vars
    ('0000x0000', 0)
    """
    _check(adata, spacing_um)
    masked = adata.copy()
    if use_mask not in masked.uns:
        tissue_mask(masked, key_added=use_mask)
    uns = dict(masked.uns)
    entries = {library_id: _spaced(library_id, entry, spacing_um) for library_id, entry in uns[keys.SPATIAL].items()}
    uns[keys.SPATIAL] = entries
    diameters = {name: entry["scalefactors"]["spot_diameter_fullres"] for name, entry in entries.items()}
    obs, xy = _spots(uns[use_mask]["slides"], diameters, min_tissue, use_mask)
    obs = obs.rename(columns={keys.LIBRARY: library_key})
    counts = sparse.csr_matrix((len(obs), 0), dtype=np.float32)
    grown = AnnData(counts, obs=obs, obsm={keys.SPATIAL: xy}, uns=uns)
    if copy:
        adata = grown
    else:
        AnnData.__init__(adata, grown)  # an AnnData changes its number of spots in no other way
    inputs.record(adata, keys.GRID, params={"spacing_um": spacing_um, "min_tissue": min_tissue, "use_mask": use_mask})
    logger.info("placed %d spots, %.4g um apart, on %d slides", adata.n_obs, spacing_um, len(entries))
    return adata if copy else None


def _check(adata: AnnData, spacing_um: float) -> None:
    if not isinstance(adata, AnnData):
        raise DataError(f"expected an AnnData of hb.io.read_image, found {type(adata).__name__}.")
    if adata.n_obs or adata.n_vars:
        raise DataError(
            f"the AnnData has {adata.n_obs} spots and {adata.n_vars} genes already; a grid is for slides without any: "
            "read the image by itself with hb.io.read_image(path, mpp=)."
        )
    if not adata.uns.get(keys.SPATIAL):
        raise MissingSlotError(f"no slides in uns[{keys.SPATIAL!r}]; read one with hb.io.read_image(path, mpp=).")
    if not 0 < spacing_um < np.inf:
        raise DataError(f"spacing_um is {spacing_um}; expected micrometres, a positive number such as 100.")


def _spaced(library_id: str, entry: Mapping[str, Any], spacing_um: float) -> dict[str, Any]:
    """Entry of ``uns["spatial"]`` with the diameter of the spots."""
    mpp = entry.get("metadata", {}).get("mpp")
    if mpp is None or not 0 < mpp < np.inf:
        raise DataError(
            f"the pixel size of slide {library_id!r} is {'unknown' if mpp is None else mpp}, so {spacing_um:.4g} "
            "micrometres cannot be told in pixels; pass mpp= to hb.io.read_image, or set "
            f"adata.uns[{keys.SPATIAL!r}][{library_id!r}]['metadata']['mpp']."
        )
    return {**entry, "scalefactors": {**entry.get("scalefactors", {}), "spot_diameter_fullres": spacing_um / mpp}}


def _spots(
    masks: Mapping[str, Any], spacings: Mapping[str, float], min_tissue: float, use_mask: str
) -> tuple[pd.DataFrame, np.ndarray]:
    """Spots of all slides as ``obs``, and their centres; spacings are in full-resolution pixels."""
    tables, centres = [], []
    for library_id, spacing in spacings.items():
        if library_id not in masks:
            raise MissingSlotError(
                f"uns[{use_mask!r}] has no mask of slide {library_id!r} (there: {list(masks)}); call "
                "hb.pp.tissue_mask(adata) anew."
            )
        mask, scale = masks[library_id]["mask"], masks[library_id]["scale"]
        places, _ = tissue_grid(mask, spacing=spacing * scale, min_tissue=min_tissue)
        xy = (places + 0.5) * spacing
        inside = (xy < np.array(mask.shape[::-1]) / scale).all(axis=1)
        places, xy = places[inside], xy[inside]
        if not len(places):
            raise DataError(
                f"no spot on slide {library_id!r}: {mask.mean():.1%} of it is tissue, and no square of {spacing:.0f} "
                f"pixels holds {min_tissue:.0%} of it. Is it blank, or no H&E? Look at uns[{use_mask!r}], or try a "
                "smaller min_area= of hb.pp.tissue_mask, or min_tissue=."
            )
        prefix = f"{library_id}_" if len(spacings) > 1 else ""
        names = [f"{prefix}{column:04d}x{row:04d}" for column, row in places]
        of_slide = pd.Categorical([library_id] * len(places), categories=list(spacings))
        columns = {keys.LIBRARY: of_slide, "array_row": places[:, 1], "array_col": places[:, 0]}
        tables.append(pd.DataFrame(columns, index=names))
        centres.append(xy)
    return pd.concat(tables), np.concatenate(centres)
