from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from .. import genes, inputs, keys
from ..errors import DataError
from ..settings import logger

if TYPE_CHECKING:
    from anndata import AnnData

Rows = list[NDArray[np.intp]]
"""Positions of the spots of each group."""


@inputs.takes_spatialdata
def rank_keywords(
    adata: AnnData,
    groupby: str,
    *,
    sentence_key: str = keys.SENTENCE,
    overlap_key: str = keys.OVERLAP,
    key_added: str = keys.KEYWORDS,
    copy: bool = False,
) -> AnnData | None:
    """Rank the keyword genes and pathways that tell each cluster or region apart from all other spots.

    A gene counts for a spot where the spot's sentence holds it, a pathway where its overlap is above the threshold of
    :func:`hibiost.pp.pathway_overlap`. The share of a group's spots is compared with the share of the other spots by
    Fisher's exact test, one-sided: does the group hold it more often? P-values are adjusted over all genes (or
    pathways) that any spot holds, by Benjamini and Hochberg; those that none holds score 0. Groups that were found from
    the same genes, such as regions, have lower p-values than chance alone would give: read them as a ranking.

    Results are laid out as those of ``scanpy.tl.rank_genes_groups``: ``sc.get.rank_genes_groups_df(adata, group=...,
    key="rank_keywords")``, ``sc.pl.rank_genes_groups`` and ``sc.pl.rank_genes_groups_dotplot`` read them.

    Beside the slots, memory holds some tables of n_groups x n_genes in double precision and the sentences of one group.

    Parameters
    ----------
    adata
        AnnData on which :func:`hibiost.pp.tfidf_sentences` was called.
    groupby
        ``obs`` column of labels, such as ``"cluster"`` or ``"region"``. Spots without a label are left out; a group of
        one spot is told and not ranked.
    sentence_key
        The ``key_added`` of the sentences.
    overlap_key
        The ``key_added`` of the pathway overlaps; without them, genes alone are ranked.
    key_added
        Where to write.
    copy
        Return a changed copy instead of writing into ``adata``.

    Returns
    -------
    ``None``, or the copy. Written:

    ``uns["rank_keywords"]``
        Structured arrays with a field for each group, best first: ``names``; ``scores``, the number of standard
        deviations by which the group holds more than as many random spots; ``pvals``, ``pvals_adj``;
        ``logfoldchanges``, log2 of the odds ratio (0.5 added to each count); ``shares`` and ``shares_rest`` of the
        spots; and ``means`` and ``means_rest`` of the TF-IDF weights, where their layer is there. And ``params``.
    ``uns["rank_keywords_pathways"]``
        The same of pathways; ``means`` are of the overlaps (eq 5).

    Raises
    ------
    MissingSlotError
        ``groupby`` or the sentences are not there.
    DataError
        Fewer than two groups, none with two spots, continuous labels, or no sentence holds a gene.

    Examples
    --------
    >>> import hibiost as hb, scanpy as sc
    >>> adata = hb.datasets.tissue(n_spots=100)
    >>> hb.pp.tfidf_sentences(adata, n_genes=20)
    >>> hb.tl.rank_keywords(adata, "region_truth")
    >>> sc.get.rank_genes_groups_df(adata, group="adipose", key="rank_keywords")["names"].head(3).to_list()
    ['ADH1B', 'LPL', 'FABP4']
    """
    inputs.check_spots(adata)
    names, groups = _groups(adata, groupby)
    call = "hb.pp.tfidf_sentences(adata)"
    sentences = np.asarray(inputs.slot(adata, "obsm", sentence_key, call))
    words = np.asarray(inputs.slot(adata, "uns", sentence_key, call)["genes"], dtype=object)
    if (sentences < 0).all():
        raise DataError(f"no sentence in obsm[{sentence_key!r}] holds a gene; call {call} on spots with counts.")
    held = [sentences[rows] for rows in groups]
    counts = _counts([table[table >= 0] for table in held], len(words))
    ranked = {"": _ranked(names, groups, words, counts, _weights(adata, words, sentence_key, groups))}
    if overlap_key in adata.obsm and (overlaps := sparse.csr_matrix(adata.obsm[overlap_key])).nnz:
        pathways = np.asarray(inputs.slot(adata, "uns", overlap_key, "hb.pp.pathway_overlap(adata)")["pathways"])
        counts = _counts([overlaps[rows].indices for rows in groups], len(pathways))
        ranked["_pathways"] = _ranked(names, groups, pathways, counts, _sums(overlaps, groups))

    adata = adata.copy() if copy else adata
    params = {"groupby": groupby, "reference": "rest", "method": "fisher", "corr_method": "benjamini-hochberg"}
    options = {"use_raw": False, "sentence_key": sentence_key}
    adata.uns.pop(f"{key_added}_pathways", None)
    for suffix, tables in ranked.items():
        inputs.record(adata, f"{key_added}{suffix}", **tables, params=params | options)
        things = suffix.lstrip("_") or "genes"
        logger.info("uns[%r]: %s of %d groups of obs[%r].", f"{key_added}{suffix}", things, len(names), groupby)
    return adata if copy else None


def _groups(adata: AnnData, groupby: str) -> tuple[list[str], Rows]:
    """Names and spots of the groups; refuses what cannot be compared."""
    column = inputs.slot(adata, "obs", groupby, "hb.tl.cluster(adata, n_clusters=...)")
    if pd.api.types.is_float_dtype(column):
        raise DataError(f"obs[{groupby!r}] holds continuous values ({column.dtype}); expected labels.")
    labels = pd.Categorical(column).remove_unused_categories()
    names = [str(name) for name in labels.categories]
    groups = [np.flatnonzero(labels.codes == code) for code in range(len(names))]
    alone = [name for name, rows in zip(names, groups, strict=True) if len(rows) == 1]
    if len(names) < 2:
        raise DataError(f"obs[{groupby!r}] holds the groups {names}; expected two or more, to tell one from the rest.")
    if len(alone) == len(names):
        raise DataError(f"each of the {len(names)} groups of obs[{groupby!r}] is a single spot; merge groups first.")
    if alone:
        logger.warning("%d groups of obs[%r] are a single spot and not ranked: %s.", len(alone), groupby, alone)
    return names, groups


def _counts(held: list[NDArray[np.integer]], n: int) -> NDArray[np.int64]:
    """How often each of ``n`` things occurs in each group, n_groups x n."""
    return np.stack([np.bincount(things, minlength=n) for things in held])


def _sums(values: sparse.csr_matrix, groups: Rows) -> NDArray[np.float64]:
    """Sums over the spots of each group, n_groups x n."""
    return np.stack([np.asarray(values[rows].sum(axis=0, dtype=np.float64)).ravel() for rows in groups])


def _weights(adata: AnnData, words: NDArray, sentence_key: str, groups: Rows) -> NDArray[np.float64] | None:
    """Sums of TF-IDF weights; NaN for genes that ``adata`` was cut of, None without the layer."""
    layer = keys.TFIDF if sentence_key == keys.SENTENCE else f"{sentence_key}_{keys.TFIDF}"
    if layer not in adata.layers:
        return None
    place = adata.var_names.get_indexer(words)
    return np.where(place >= 0, _sums(adata.layers[layer], groups)[:, place], np.nan)


def _ranked(
    names: list[str], groups: Rows, things: NDArray, counts: NDArray[np.int64], sums: NDArray[np.float64] | None
) -> dict[str, Any]:
    """Structured arrays with a field for each group of two spots or more; what no spot holds scores 0."""
    seen = counts.any(axis=0)
    sizes = np.array([len(rows) for rows in groups])
    found = genes.enrichment(counts[:, seen], sizes)

    def of_all(values: NDArray[np.float64], otherwise: float) -> NDArray[np.float64]:
        table = np.full(counts.shape, otherwise, dtype=np.float64)
        table[:, seen] = values
        return table

    scores = of_all(found.scores, 0)
    tables = {"names": np.tile(things, (len(names), 1)), "scores": scores.astype(np.float32)}
    tables |= {"pvals": of_all(found.pvals, 1), "pvals_adj": of_all(found.pvals_adj, 1)}
    tables |= {"logfoldchanges": of_all(found.log_odds, 0).astype(np.float32)}
    tables |= {"shares": of_all(found.shares, 0), "shares_rest": of_all(found.shares_rest, 0)}
    if sums is not None:
        size = sizes[:, None]
        tables |= {"means": sums / size, "means_rest": (sums.sum(axis=0) - sums) / (sizes.sum() - size)}
    order = np.argsort(-scores, axis=1, kind="stable")
    kept = np.flatnonzero(sizes > 1)
    return {key: _structured(np.take_along_axis(table, order, axis=1), names, kept) for key, table in tables.items()}


def _structured(table: NDArray, names: list[str], kept: NDArray[np.intp]) -> NDArray:
    """A field for each group, as scanpy stores its rankings."""
    return np.rec.fromarrays(list(table[kept]), dtype=[(names[group], table.dtype) for group in kept])
