from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from .. import datasets, genes, inputs, keys
from ..errors import DataError
from ..genes.genesets import MIN_GENES
from ..genes.overlap import check_threshold, report_overlaps
from ..settings import logger

if TYPE_CHECKING:
    from anndata import AnnData


@inputs.takes_spatialdata
def pathway_overlap(
    adata: AnnData,
    gene_sets: str | os.PathLike[str] | Mapping[str, Iterable[str]] = "reactome",
    *,
    threshold: float = 0.2,
    min_genes: int = MIN_GENES,
    max_genes: int | None = None,
    sentence_key: str = keys.SENTENCE,
    key_added: str = keys.OVERLAP,
    copy: bool = False,
) -> AnnData | None:
    """Write the overlap of each spot's sentence with pathways (HiBio-ST, eq 5).

    ``|pathway & sentence| / min(|pathway|, |sentence|)``, kept where it is above ``threshold``. Pathways are first cut
    to the genes that sentences are made of, ``uns["gene_sentence"]["genes"]``, which stay whole when ``adata`` is cut.

    The log tells the share of spots with a pathway. At the paper's threshold of 0.2 real sections have few; below 10 %
    it is a warning that names the threshold at which half of the spots would have one. Memory is that of the result
    and of the members of the pathways; nothing of n_obs x n_pathways is dense.

    Parameters
    ----------
    adata
        AnnData on which :func:`hibiost.pp.tfidf_sentences` was called.
    gene_sets
        Pathways, as :func:`hibiost.datasets.gene_sets` takes them: a name, a GMT file, or genes by name.
    threshold
        Lowest overlap, itself excluded, from 0 to below 1.
    min_genes, max_genes
        Pathways with fewer or more genes, once cut, are left out.
    sentence_key
        The ``key_added`` of the sentences.
    key_added
        Where to write.
    copy
        Return a copy with the slots, and leave ``adata`` as it is.

    Returns
    -------
    ``None``, or an AnnData with ``copy=True``; with these slots:

    ``obsm["pathway_overlap"]`` : CSR float32, n_obs x n_pathways
        Overlaps above the threshold (eq 5).
    ``uns["pathway_overlap"]`` : dict
        ``pathways`` (their names, n_pathways) and ``params``.

    Raises
    ------
    MissingSlotError
        There are no sentences under ``sentence_key``.
    DataError
        An argument is out of range, no gene is shared, no pathway is left, or the sentences do not fit their genes.
    DownloadError
        The gene sets are neither in the cache nor to be had.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(100)
    >>> hb.pp.tfidf_sentences(adata, n_genes=20)
    >>> pathways = {"epithelium": ["ERBB2", "KRT19", "EPCAM"], "matrix": ["COL1A1", "MGP"]}
    >>> hb.pp.pathway_overlap(adata, pathways, min_genes=2)
    >>> adata.obsm["pathway_overlap"].shape
    (100, 2)
    >>> list(adata.uns["pathway_overlap"]["pathways"])
    ['epithelium', 'matrix']
    """
    check_threshold(threshold)
    if max_genes is not None and max_genes < min_genes:
        raise DataError(f"max_genes is {max_genes}, below min_genes, {min_genes}; expected at least as many.")
    inputs.check_spots(adata)
    call = "hb.pp.tfidf_sentences(adata)"
    sentences = np.asarray(inputs.slot(adata, "obsm", sentence_key, call))
    words = inputs.slot(adata, "uns", sentence_key, call)["genes"]
    sets = datasets.gene_sets(gene_sets)
    try:
        names, members = sets.membership(words, min_genes=min_genes, max_genes=max_genes)
    except DataError as error:
        error.add_note(f"The genes are those of uns[{sentence_key!r}]; where you rename genes, call {call} again.")
        raise
    overlaps = genes.overlap_coefficients(sentences, members, threshold=threshold)

    adata = adata.copy() if copy else adata
    adata.obsm[key_added] = overlaps.matrix
    inputs.record(
        adata,
        key_added,
        pathways=np.array(names, dtype=object),
        params={
            "source": sets.source.get("name"),
            "version": sets.source.get("version"),
            "threshold": threshold,
            "min_genes": min_genes,
            "max_genes": max_genes,
            "sentence_key": sentence_key,
        },
    )
    limits = str(min_genes) if max_genes is None else f"{min_genes} to {max_genes}"
    logger.info(
        f"obsm[{key_added!r}]: {len(names)} of {len(sets)} pathways; the other {len(sets) - len(names)} are dropped, "
        f"not having {limits} of the {len(words)} genes."
    )
    report_overlaps(overlaps, threshold)
    return adata if copy else None
