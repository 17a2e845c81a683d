from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, get_args

import numpy as np
import pandas as pd
from scipy import sparse

from .. import genes, inputs, keys
from ..errors import DataError, check_choice
from ..genes.tfidf import Selection
from ..settings import logger

if TYPE_CHECKING:
    from anndata import AnnData


@inputs.takes_spatialdata
def tfidf_sentences(
    adata: AnnData,
    *,
    n_genes: int = 250,
    layer: str | None = None,
    min_spots: int = 1,
    selection: Selection = "tfidf",
    vocabulary: genes.Vocabulary | None = None,
    library_key: str = keys.LIBRARY,
    weights: bool = True,
    key_added: str = keys.SENTENCE,
    copy: bool = False,
) -> AnnData | None:
    """Write each spot as a sentence of its keyword genes (HiBio-ST, section 2.1, eqs 1-4).

    The weight of a gene in a spot is ``log1p(count) / (sum of log1p(counts of the spot) + 1e-8) * idf`` with
    ``idf = log((1 + M) / (1 + df))``; the sentence holds the genes of highest weight, highest first. Only weights above
    zero enter, so the sentence of a spot with few counts is shorter. Of equal weights (as float32) the gene that stands
    first in ``adata.var_names`` wins: sentences are the same on every run and number of threads.

    Counts stay sparse; beside them, memory holds the weights (about the size of the counts) and the sentences; without
    ``weights``, the sentences alone. Counts in a file (``backed="r"``, CSR or dense) or of dask are then read twice,
    block by block of about two million values (with dask, a row of chunks), and never are in memory as a whole.

    Parameters
    ----------
    adata
        Raw counts in ``X`` or ``layer``, of one slide or several. Where ``varm["measured"]`` (bool, a column per slide)
        is there, ``M`` and ``df`` of a gene count only the slides that measured it; else every slide measured it all.
    n_genes
        Length of a sentence.
    layer
        Layer that holds the raw counts; ``X`` where it is not given.
    min_spots
        Genes seen in fewer spots of the corpus get no place in a sentence; their weights stay in the layer.
    selection
        ``"tfidf"``: eq 4. ``"top"``: highest counts (the paper's "w.o. TF-IDF"). ``"hvg"``: of the ``n_genes`` genes
        whose log1p counts have the highest variance over the slide, those that the spot expresses, highest counts first
        (the paper's "HVG Selection").
    vocabulary
        Genes and idf of another corpus, such as ``model.vocabulary``: genes outside it weigh nothing. Where it is not
        given, idf is fitted on this AnnData, all slides together.
    library_key
        Column of ``obs`` with the slide of each spot; without the default column, all spots are one slide.
    weights
        Write the weights as a layer; on the bins of a large section they take as much memory as the counts. Not for
        counts in a file or of dask.
    key_added
        Where to write. Under another name than the default, ``tfidf``, ``idf`` and ``n_spots`` take it as prefix.
    copy
        Return a copy with the slots, and leave ``adata`` as it is.

    Returns
    -------
    ``None``, or an AnnData with ``copy=True``; with these slots:

    ``obsm["gene_sentence"]`` : int32, n_obs x n_genes
        Indices into ``uns["gene_sentence"]["genes"]``, best first; -1 is padding.
    ``uns["gene_sentence"]`` : dict
        ``genes`` (the gene names, n_vars) and ``params``.
    ``layers["tfidf"]`` : CSR float32, n_obs x n_vars
        Weights (eq 3), whatever the selection; stored where a count is stored. Without ``weights``, a layer of an
        earlier call is deleted.
    ``var["idf"]`` : float64
        Inverse document frequency (eq 2); 0 for genes outside the vocabulary.
    ``var["n_spots"]`` : int64
        Spots of the corpus with a count above zero; 0 for genes outside the vocabulary.

    Raises
    ------
    DataError
        ``X`` or the layer holds no raw counts, gene names occur twice, an argument is out of range, no gene is shared
        with the vocabulary or seen in ``min_spots`` spots, ``varm["measured"]`` does not cover the slides, or counts
        that are not in memory are to get ``weights``.
    MissingSlotError
        ``layer`` or ``library_key`` is not there.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> import hibiost as hb
    >>> counts = np.array([[4, 1, 0], [4, 0, 1], [4, 0, 3]], dtype="float32")
    >>> adata = ad.AnnData(counts)
    >>> adata.var_names = ["ACTB", "ERBB2", "IGLL5"]
    >>> hb.pp.tfidf_sentences(adata, n_genes=2)
    >>> hb.get.sentences(adata).tolist()
    ['ERBB2', 'IGLL5', 'IGLL5']
    """
    _check_arguments(n_genes, min_spots, selection, vocabulary)
    counts = inputs.count_blocks(adata, layer)
    if weights and not counts.in_memory:
        raise DataError(
            f"{counts.where} is not in memory, and neither would its weights be; call "
            "hb.pp.tfidf_sentences(adata, weights=False), or read the counts first: adata.to_memory()."
        )
    slides = inputs.libraries(adata, library_key)
    origin = "fitted" if vocabulary is None else "given"
    if vocabulary is None:
        vocabulary = genes.Vocabulary.fit(inputs.slide_counts(adata, counts, slides), min_spots=0)
    n_spots, idf = _aligned(vocabulary, adata.var_names)
    allowed = n_spots >= min_spots
    if not allowed.any():
        raise DataError(
            f"no gene is seen in {min_spots} spots (the most is {n_spots.max()}); lower min_spots, or give counts."
        )

    layer_added = genes.tfidf(inputs.counts(adata, layer), idf) if weights else None
    sentences = genes.select_genes(
        counts,
        idf if layer_added is None else layer_added,
        n_genes=n_genes,
        selection=selection,
        among=allowed,
        slides=slides.values(),
    )

    adata = adata.copy() if copy else adata
    prefix = "" if key_added == keys.SENTENCE else f"{key_added}_"
    adata.layers.pop(prefix + keys.TFIDF, None)
    if layer_added is not None:
        adata.layers[prefix + keys.TFIDF] = layer_added
    adata.var[prefix + keys.IDF] = idf
    adata.var[prefix + keys.N_SPOTS] = n_spots
    adata.obsm[key_added] = sentences
    inputs.record(
        adata,
        key_added,
        genes=adata.var_names.to_numpy(dtype=object),
        params={
            "n_genes": n_genes,
            "layer": layer,
            "min_spots": min_spots,
            "selection": selection,
            "vocabulary": origin,
            "library_key": library_key,
        },
    )
    _log(sentences, counts, key_added)
    return adata if copy else None


def _check_arguments(n_genes: int, min_spots: int, selection: str, vocabulary: object) -> None:
    if n_genes < 1:
        raise DataError(f"n_genes is {n_genes}; a sentence holds at least 1 gene.")
    if min_spots < 1:
        raise DataError(f"min_spots is {min_spots}; expected at least 1.")
    check_choice("selection", selection, get_args(Selection))
    if not isinstance(vocabulary, genes.Vocabulary | None):
        raise DataError(
            f"vocabulary is a {type(vocabulary).__name__}; expected a hibiost.genes.Vocabulary, as model.vocabulary."
        )


def _aligned(vocabulary: genes.Vocabulary, names: pd.Index) -> tuple[np.ndarray, np.ndarray]:
    """``n_spots`` and ``idf`` in the order of ``names``, 0 for genes outside the vocabulary."""
    index = vocabulary.match(names)
    known = index >= 0
    return np.where(known, vocabulary.n_spots[index], 0), np.where(known, vocabulary.idf[index], 0.0)


def _log(sentences: np.ndarray, counts: Iterable[sparse.csr_matrix], key: str) -> None:
    n_obs, n_genes = sentences.shape
    short, empty = (int(np.count_nonzero(sentences[:, place] < 0)) for place in (-1, 0))
    logger.info(f"obsm[{key!r}]: sentences of {n_genes} genes for {n_obs} spots, {short} of them shorter.")
    if empty:
        blank = sum(int((block.sum(axis=1) == 0).sum()) for block in counts)
        logger.warning(
            f"{empty} of {n_obs} spots have an empty sentence; {blank} have no counts at all. "
            "A gene seen in every spot, or outside the vocabulary, enters no TF-IDF sentence."
        )
