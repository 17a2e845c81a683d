"""Several slides -> one AnnData."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import chain
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from .. import inputs, keys
from ..errors import DataError

SHARED_GENES = 0.1
"""Of the smallest slide's genes: species that share fewer call their genes by different names."""


def concat(adatas: Sequence[AnnData] | Mapping[str, AnnData]) -> AnnData:
    """Join slides over the genes of all.

    Parameters
    ----------
    adatas
        AnnData of one or more slides each, or slides by name: the name then becomes the ``library_id``.

    Returns
    -------
    Spots x genes, slides in the order given, genes in order of first appearance, with

    ``X``
        CSR; zero where a slide has not measured a gene. ``layers`` likewise.
    ``obs``, ``obsm``
        those of the slides, NaN where one has none; ``obs["library_id"]`` categorical. Where two slides share the name
        of a spot, all names get their slide's in front, ``C2_10x21``, and ``obs["barcode"]`` keeps them as they were.
    ``var``
        the columns that say the same of a gene wherever they name it.
    ``varm["measured"]``
        bool DataFrame, genes x slides: whether the slide measured the gene at all.
    ``uns["spatial"]``
        the entries of all slides. What else is in ``uns`` belongs to single slides and is left out.

    Raises
    ------
    DataError
        Nothing to join, the same slide twice, genes that occur twice, or slides of several species whose genes
        go by different names.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(n_spots=100)
    >>> slides = hb.io.concat({"S1": adata, "S2": adata})
    >>> list(slides.uns["spatial"])
    ['S1', 'S2']
    """
    if isinstance(adatas, Mapping):
        named = [(adata, _spots_of_one(adata, str(name))) for name, adata in adatas.items()]
    else:
        named = [(adata, inputs.libraries(adata)) for adata in adatas]
    if not named:
        raise DataError("no slides to join; expected at least one AnnData.")
    slides = [slide for _, rows in named for slide in rows]
    twice = sorted({slide for slide in slides if slides.count(slide) > 1})
    if twice:
        raise DataError(
            f"slide {twice[0]!r} occurs {slides.count(twice[0])} times; give each slide a name of its own: "
            "hb.io.concat({'name': adata, ...})."
        )
    spatial = {slide: entry for adata, rows in named for slide, entry in _entries(adata, rows).items()}
    _check_genes([adata for adata, _ in named], spatial)
    shared = pd.Index(np.concatenate([adata.obs_names for adata, _ in named])).has_duplicates
    joined = ad.concat([_part(adata, rows, prefix=shared) for adata, rows in named], join="outer")
    genes = pd.Index(list(dict.fromkeys(chain.from_iterable(adata.var_names for adata, _ in named))))
    joined = joined[:, genes].copy()
    for matrix in (joined.X, *joined.layers.values()):
        matrix.sort_indices()
    joined.obs[keys.LIBRARY] = pd.Categorical(joined.obs[keys.LIBRARY], categories=slides)
    joined.var = _common([adata.var for adata, _ in named], genes)
    joined.varm[keys.MEASURED] = pd.concat([_measured(adata, rows, genes) for adata, rows in named], axis=1)
    if spatial:
        joined.uns[keys.SPATIAL] = spatial
    return joined


def _spots_of_one(adata: AnnData, name: str) -> dict[str, np.ndarray]:
    """Rows of the only slide of an AnnData, under another name."""
    found = inputs.libraries(adata)
    if len(found) > 1:
        raise DataError(f"{name!r} holds {len(found)} slides ({list(found)}); slides named by a dict come one by one.")
    return dict(zip([name], found.values(), strict=True))


def _entries(adata: AnnData, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Copies of ``uns["spatial"]``, by the new names of the slides."""
    entries = adata.uns.get(keys.SPATIAL, {})
    renamed = zip(inputs.libraries(adata), rows, strict=True)
    return {new: deepcopy(entries[old]) for old, new in renamed if old in entries}


def _check_genes(adatas: Sequence[AnnData], spatial: Mapping[str, Any]) -> None:
    """Refuse genes that occur twice, and species whose genes have not been mapped to those of the other."""
    for adata in adatas:
        if not adata.var_names.is_unique:
            twice = list(map(str, adata.var_names[adata.var_names.duplicated()].unique()))
            raise DataError(f"{len(twice)} gene names occur more than once, such as {twice[:3]}; sum or rename them.")
    species = sorted({str(e["metadata"]["species"]) for e in spatial.values() if "species" in e.get("metadata", {})})
    smallest = min(adatas, key=lambda adata: adata.n_vars).var_names
    shared = min(smallest.isin(adata.var_names).mean() for adata in adatas)
    if len(species) > 1 and shared < SHARED_GENES:
        raise DataError(
            f"slides of {' and '.join(species)} share {shared:.1%} of their genes; bring them to the genes of one "
            "species first: hb.pp.map_genes(adata, species=..., to=...)."
        )


def _part(adata: AnnData, rows: Mapping[str, np.ndarray], *, prefix: bool) -> AnnData:
    """What is joined spot by spot, matrices sparse."""
    obs = adata.obs.copy()
    library = inputs.spread(rows, adata.n_obs)
    obs[keys.LIBRARY] = library
    if prefix:
        obs[keys.BARCODE] = obs.get(keys.BARCODE, obs.index)
        obs.index = pd.Index([f"{slide}_{spot}" for slide, spot in zip(library, obs.index, strict=True)])
    # anndata 0.13 counts X among the layers, as None
    layers = {key: sparse.csr_matrix(layer) for key, layer in adata.layers.items() if key is not None}
    var = pd.DataFrame(index=adata.var_names)
    return AnnData(sparse.csr_matrix(adata.X), obs=obs, var=var, obsm=dict(adata.obsm), layers=layers)


def _common(tables: Sequence[pd.DataFrame], genes: pd.Index) -> pd.DataFrame:
    """Columns of ``var`` that do not contradict each other."""
    stacked = pd.concat([table.assign(_gene=table.index) for table in tables], ignore_index=True)
    by_gene = stacked.groupby("_gene", sort=False)
    same = [column for column in stacked if column != "_gene" and (by_gene[column].nunique() <= 1).all()]
    return by_gene[same].first().reindex(genes) if same else pd.DataFrame(index=genes)


def _measured(adata: AnnData, rows: Mapping[str, np.ndarray], genes: pd.Index) -> pd.DataFrame:
    """Whether each slide measured each gene, genes x slides."""
    if keys.MEASURED in adata.varm:
        table = adata.varm[keys.MEASURED][list(inputs.libraries(adata))].set_axis(list(rows), axis=1)
    else:
        table = pd.DataFrame(data=True, index=adata.var_names, columns=list(rows))
    return table.reindex(genes, fill_value=False)
