"""Whether the genes of a slide, and its spots and image, belong together."""

from __future__ import annotations

import warnings

import numpy as np
from anndata import AnnData

from .. import inputs, keys
from ..genes.orthologs import MIXED
from ..images import open_image, thumbnail, tissue_mask
from ..settings import logger

BACKGROUND = 0.5
"""A greater share of spots than this beside the tissue is told."""


def warn_mixed_species(adata: AnnData, library_id: str) -> None:
    """Warn where the genes of a slide have Ensembl identifiers of human and of mouse."""
    ids = adata.var.get("gene_ids", adata.var_names.to_series()).astype(str)
    human, mouse = (int(ids.str.contains(rf"(?:^|_){prefix}\d{{11}}").sum()) for prefix in ("ENSG", "ENSMUSG"))
    if min(human, mouse) > MIXED * (human + mouse):
        warnings.warn(
            f"slide {library_id!r} mixes species: {human} of its genes are of human and {mouse} of mouse: keep the "
            "genes of one species, adata[:, genes].",
            UserWarning,
            stacklevel=4,
        )


def warn_background(adata: AnnData, library_id: str) -> None:
    """Warn where most spots of a slide lie beside the tissue of its ``images["hires"]``.

    Spots with ``obs["in_tissue"]`` 0 do not count. A slide without such an image is passed over, and one whose image
    shows no tissue at all (such as a blank placeholder) is told in the log only.
    """
    entry = adata.uns[keys.SPATIAL][library_id]
    scale = entry["scalefactors"].get("tissue_hires_scalef")
    if "hires" not in entry["images"] or scale is None or not scale > 0:
        return
    mpp = entry["metadata"].get("mpp")
    with open_image(entry["images"]["hires"]) as source:
        pixels, reduced = thumbnail(source)
    scale *= reduced
    tissue = tissue_mask(pixels, mpp=None if mpp is None else mpp / scale)
    if not tissue.any():
        logger.info("slide %r: no tissue is found in its image.", library_id)
        return
    rows = inputs.libraries(adata)[library_id]
    if "in_tissue" in adata.obs:
        rows = rows[adata.obs["in_tissue"].to_numpy()[rows] == 1]
    xy = inputs.coordinates(adata)[rows] * scale
    share = _beside(xy, tissue)
    if share <= BACKGROUND:
        return
    hint = "is it the image of another section, or is it mirrored or turned?"
    if mpp is not None and _beside(xy / mpp, tissue) < share / 2:
        hint = f"the coordinates look like micrometres: divided by mpp ({mpp:.4g}) they lie on tissue."
    elif _beside(xy[:, ::-1], tissue) < share / 2:
        hint = "x and y look swapped: the other way round, they lie on tissue."
    warnings.warn(
        f"slide {library_id!r}: {share:.0%} of {len(xy)} spots lie beside the tissue of the image; {hint}",
        UserWarning,
        stacklevel=4,
    )


def _beside(xy: np.ndarray, tissue: np.ndarray) -> float:
    """Share of points that lie beside the tissue or outside the image."""
    if len(xy) == 0:
        return 0.0
    x, y = np.floor(xy).astype(np.int64).T
    inside = (x >= 0) & (y >= 0) & (x < tissue.shape[1]) & (y < tissue.shape[0])
    return 1 - float(tissue[y[inside], x[inside]].sum()) / len(xy)
