"""Dorsolateral prefrontal cortex (Maynard et al. 2021): files of the registry -> one AnnData."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.utils import make_index_unique
from PIL import Image
from scipy import sparse

from .. import keys
from ..errors import DataError, nearest
from ..settings import logger
from ._registry import fetch

DATASET = "dlpfc"
SECTIONS = ("151673", "151674", "151675", "151676")
DONOR = "Br8100"
LAYERS = ("L1", "L2", "L3", "L4", "L5", "L6", "WM")
PITCH_UM = 100.0
METADATA = {
    "species": "Homo sapiens",
    "organ": "Brain",
    "disease_state": "Healthy",
    "st_technology": "Visium",
}
"""In the words of HEST-1k's metadata."""


def dlpfc(sections: str | Sequence[str] | None = None, *, image: bool = True) -> AnnData:
    """Human dorsolateral prefrontal cortex measured with Visium: four sections of one donor, with expert layers.

    Files come from the cache (``hibiost.settings.data_dir``), or are downloaded into it and checked by hash: 15 MB.
    A section takes two seconds and 0.6 GB while its dense file is read; all four then take 80 MB.

    Parameters
    ----------
    sections
        A section (``"151673"``) or several; by default all four, ``"151673"`` to ``"151676"``. The first two lie
        10 um apart, so do the last two, and 300 um lie between the pairs.
    image
        Attach the H&E thumbnails.

    Returns
    -------
    Spots x genes, the genes of all sections (outer join), with

    ``X``
        raw counts, CSR float32. Each section comes with its 5,000 most variable genes only: a zero says that a spot had
        none of a gene, or that the gene was left out of the section's file, which ``varm["measured"]`` tells.
    ``var_names``, ``var["gene_id"]``
        gene symbols as the publication gives them (2019), and Ensembl ids, by which genes are sorted. Where two
        genes of the sections share a symbol, the second is called ``HSPA14-1`` (the only case).
    ``varm["measured"]``
        bool DataFrame, genes x sections: whether the section's file has the gene.
    ``obs``
        ``library_id`` (section), ``patient`` (the donor) and ``layer`` (L1-L6 and WM, white matter, drawn by the
        authors; NaN for some 30 spots a section), categorical; ``array_row`` and ``array_col``, int, the spot's place
        on the Visium slide.
    ``obsm["spatial"]``
        float64, spot centres (x, y) in pixels of the full-resolution image.
    ``uns["spatial"][section]``
        ``images["lowres"]`` (uint8, 600 x 600 px, 16 um a pixel: larger ones are not fetched), the published
        ``scalefactors``, and ``metadata`` with ``mpp`` (micrometres per full-resolution pixel, from the 100 um pitch).

    Raises
    ------
    DataError
        No section, an unknown one, or one named twice.
    DownloadError
        A file is neither in the cache nor to be had.

    Notes
    -----
    Maynard et al., Nature Neuroscience 24:425-436 (2021). Layers, coordinates and images come from the authors'
    repository HumanPilot (Artistic-2.0); counts from the R package Banksy (MIT), which ships the sections as examples.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.datasets.dlpfc("151670")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    hibiost.errors.DataError: no dlpfc section '151670'; expected '151673', '151674', '151675', '151676'...
    """
    names = _section_names(sections)
    parts = {name: _read_section(name) for name in names}
    adata = ad.concat(parts, join="outer", label=keys.LIBRARY)
    adata.X.sort_indices()
    measured = {name: adata.var_names.isin(part.var_names) for name, part in parts.items()}
    adata.var["gene_id"] = adata.var_names
    adata.var_names = make_index_unique(pd.Index(_read_symbols()[adata.var_names].to_numpy()))
    adata.varm[keys.MEASURED] = pd.DataFrame(measured, index=adata.var_names)
    adata.obs[keys.PATIENT] = pd.Categorical([DONOR] * adata.n_obs)
    adata.obs = adata.obs[[keys.LIBRARY, keys.PATIENT, "array_row", "array_col", "layer"]]
    adata.uns[keys.SPATIAL] = {name: _spatial_entry(name, part, image=image) for name, part in parts.items()}
    logger.info("dlpfc: %d spots, %d genes, sections %s.", adata.n_obs, adata.n_vars, ", ".join(names))
    return adata


def _section_names(sections: str | Sequence[str] | None) -> list[str]:
    if sections is None:
        return list(SECTIONS)
    names = [sections] if isinstance(sections, str | int) else list(sections)
    if not names:
        raise DataError("no section given; expected at least one, such as '151673', or None for all four.")
    for name in names:
        if name not in SECTIONS:
            expected = ", ".join(map(repr, SECTIONS))
            raise DataError(f"no dlpfc section {name!r}; expected {expected} (str).{nearest(name, SECTIONS)}")
        if names.count(name) > 1:
            raise DataError(f"section {name!r} is named {names.count(name)} times; name it once.")
    return names


def _read_symbols() -> pd.Series:
    """Symbol of every gene of the publication, by Ensembl id."""
    path = fetch(DATASET, "humanpilot/Analysis/Layer_Guesses/SupplementaryTableXX_spot_stats.csv")
    return pd.read_csv(path, index_col=0)["Symbol"]


def _read_section(name: str) -> AnnData:
    """Counts, layers and coordinates of a section, genes by Ensembl id."""
    genes, spots, counts = _read_counts(fetch(DATASET, f"banksy/data/dlpfc{name}.rda"), name)
    places = pd.read_csv(
        fetch(DATASET, f"humanpilot/10X/{name}/tissue_positions_list.txt"),
        names=["spot", "in_tissue", "array_row", "array_col", "y", "x"],
        index_col="spot",
    ).loc[spots]
    layers = pd.read_csv(
        fetch(DATASET, "humanpilot/10X/barcode_level_layer_map.tsv"), sep="\t", names=["spot", "section", "layer"]
    )
    layers = layers[layers["section"] == int(name)].set_index("spot")["layer"]
    obs = places[["array_row", "array_col"]].set_axis(f"{name}_" + spots)
    obs["layer"] = pd.Categorical(layers.reindex(spots), categories=LAYERS)
    part = AnnData(counts, obs=obs, var=pd.DataFrame(index=genes))
    part.obsm[keys.SPATIAL] = places[["x", "y"]].to_numpy(dtype=np.float64)
    return part


def _read_counts(path: Path, name: str) -> tuple[pd.Index, pd.Index, sparse.csr_matrix]:
    """Sorted gene ids, barcodes and counts of an R file that holds a dense matrix of genes x spots."""
    import rdata

    matrix = rdata.read_rda(path)[f"dlpfc{name}"]["expression"].sortby("dim_0")
    genes, spots = (pd.Index(matrix.coords[axis].values.astype(object)) for axis in matrix.dims)
    return genes, spots, sparse.csr_matrix(matrix.values.T, dtype=np.float32)


def _spatial_entry(name: str, part: AnnData, *, image: bool) -> dict[str, Any]:
    scalefactors = fetch(DATASET, f"humanpilot/10X/{name}/scalefactors_json.json")
    entry: dict[str, Any] = {
        "images": {},
        "scalefactors": json.loads(scalefactors.read_text(encoding="utf-8")),
        "metadata": {"mpp": _mpp(part), **METADATA},
    }
    if image:
        with Image.open(fetch(DATASET, f"humanpilot/10X/{name}/tissue_lowres_image.png")) as picture:
            entry["images"]["lowres"] = np.asarray(picture.convert("RGB"))
    return entry


def _mpp(part: AnnData) -> float:
    """Micrometres per pixel: pixels fitted by the lattice, whose columns are half a pitch apart, its rows sqrt(3) / 2.

    The pixels of the files are whole numbers, so distances between neighbours alone would be 0.7 % off.
    """
    columns, rows = part.obs["array_col"] * PITCH_UM / 2, part.obs["array_row"] * PITCH_UM * np.sqrt(3) / 2
    lattice = np.column_stack([columns, rows, np.ones(part.n_obs)])
    fit, *_ = np.linalg.lstsq(lattice, part.obsm[keys.SPATIAL], rcond=None)
    return float(1 / np.sqrt(abs(np.linalg.det(fit[:2]))))
