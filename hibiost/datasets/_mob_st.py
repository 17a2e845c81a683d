"""Mouse olfactory bulb (Spatial Transcriptomics, STUtility's example): files of the registry -> one AnnData."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from anndata import AnnData

from .. import keys
from ..io import concat, read_st
from ..settings import logger
from ._registry import fetch, section_names

DATASET = "mob_st"
INDIVIDUAL = {"MOB1": "1", "MOB2": "1", "MOB3": "2", "MOB4": "2"}
SECTIONS = tuple(INDIVIDUAL)
DEFAULT = ("MOB1", "MOB2", "MOB3")
PITCH_UM = 150.0
PITCH_SOURCE = (
    "150 um between spots, assumed for the 2k array: the publishers do not state it, their software takes 141"
)
METADATA = {
    "species": "Mus musculus",
    "organ": "Brain",
    "tissue": "Olfactory bulb",
    "disease_state": "Healthy",
}
"""In the words of HEST-1k's metadata."""


def mob_st(sections: str | Sequence[str] | None = None, *, image: bool = True) -> AnnData:
    """Mouse olfactory bulb measured with Spatial Transcriptomics (2k arrays): four sections of two mice.

    Files come from the cache (``hibiost.settings.data_dir``), or are downloaded into it and checked by hash: 13 MB for
    three sections, which take a second or two.

    Parameters
    ----------
    sections
        A section (``"MOB1"``), several, or ``"all"``. ``None`` stands for MOB1-MOB3.
    image
        Attach the H&E. ``False`` leaves images out (and downloads none), for counts alone.

    Returns
    -------
    Spots x genes, the 1,000 genes of each section (outer join, absent ones zero), with

    ``X``
        raw counts, CSR float32; the spots under tissue.
    ``var_names``, ``var["gene_ids"]``
        versioned Ensembl mouse ids; ``hb.pp.map_genes`` brings them to symbols and to human genes.
    ``varm["measured"]``
        bool DataFrame, genes x sections: whether the section's table has the gene.
    ``obs``
        ``library_id`` (section) and ``patient`` (the mouse), categorical; ``in_tissue`` (1), ``array_row`` and
        ``array_col``, int, the spot's place on the array, whose rows alternate.
    ``obsm["spatial"]``
        float64, spot centres (x, y) in pixels of the image.
    ``uns["spatial"][section]``
        ``images["hires"]`` (uint8, at most 1000 px), ``scalefactors``, and in ``metadata``: ``mpp`` (about 4.64
        micrometres per pixel, if neighbouring spots lie 150 um apart, which the publishers do not state: see
        ``mpp_source``), ``source_image_path`` (1905 x 1905 px), ``species`` and ``organ``.

    Raises
    ------
    DataError
        No section, an unknown one, or one named twice.
    DownloadError
        A file is neither in the cache nor to be had.

    Notes
    -----
    From the R package STUtility of Bergenstråhle et al., BMC Genomics 21:482 (2020), MIT.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.datasets.mob_st("MOB5")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    hibiost.errors.DataError: no mob_st section 'MOB5'; expected MOB1, MOB2, MOB3, MOB4...
    """
    names = section_names(DATASET, sections, known=SECTIONS, default=DEFAULT, expected=", ".join(SECTIONS))
    adata = concat([_read_section(name, image=image) for name in names])
    mouse = adata.obs[keys.LIBRARY].astype(str).map(INDIVIDUAL)
    adata.obs.insert(1, keys.PATIENT, pd.Categorical(mouse))
    logger.info("mob_st: %d spots, %d genes, sections %s.", adata.n_obs, adata.n_vars, ", ".join(names))
    return adata


def _read_section(name: str, *, image: bool) -> AnnData:
    folder = "inst/extdata/counts"
    part = read_st(
        fetch(DATASET, f"{folder}/{name}.tsv"),
        fetch(DATASET, f"{folder}/alignment_table_{name}.tsv"),
        image=fetch(DATASET, f"{folder}/{name}.jpg") if image else None,
        pitch_um=PITCH_UM,
        library_id=name,
        metadata=METADATA,
    )
    part.obs_names = f"{name}_" + part.obs_names
    part.uns[keys.SPATIAL][name]["metadata"]["mpp_source"] = PITCH_SOURCE
    return part
