from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from .. import inputs, keys, metrics
from ..errors import DataError, ModelError
from ..genes.variance import most_variable
from ..model.retrieval import retrieved_mean
from ..tl._embed import image_embeddings
from ._floors import colour_statistics, ridge

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import HibioModel

PERCENTS = (1, 5, 10)
SCORES = ("pcc", "mse", "mae")


def variable_genes(
    adata: AnnData,
    n_genes: int = 300,
    *,
    target_sum: float | None = None,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
) -> list[str]:
    """The genes of highest mean per-slide variance of log1p expression (HiBio-ST, A.2).

    Parameters
    ----------
    adata
        Raw counts of one or several slides.
    n_genes
        How many genes.
    target_sum
        Scale each spot to that many counts first.
    layer
        Layer that holds raw counts; ``X`` where not given.
    library_key
        Column of ``obs`` that tells slides apart.

    Returns
    -------
    Gene names, highest variance first; of equal variance the one that stands first.

    Examples
    --------
    >>> import hibiost as hb
    >>> len(hb.benchmark.variable_genes(hb.datasets.tissue(100), 10))
    10
    """
    expression = inputs.log_expression(inputs.counts(adata, layer), target_sum=target_sum)
    order = most_variable(expression, inputs.libraries(adata, library_key).values())[:n_genes]
    return [str(name) for name in adata.var_names[order]]


def spot_level(
    reference: AnnData,
    adata: AnnData,
    *,
    untrained: HibioModel | None = None,
    n_genes: int = 300,
    top_k: int = 100,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
) -> pd.DataFrame:
    """Image-to-sentence retrieval and expression prediction on held-out slides, beside their floors.

    Genes are chosen, and every fit is made, on ``reference`` alone; the scores are means over the slides of ``adata``.
    The floors: chance, the mean of the reference, a ridge on colour statistics and, with ``untrained``, a ridge on
    features of random weights.

    Parameters
    ----------
    reference
        Training slides with images and counts, embedded by :func:`hibiost.tl.embed` with their sentences.
    adata
        Held-out slides, likewise.
    untrained
        A model of the same architecture with random weights, see :func:`hibiost.model.untrained`.
    n_genes
        Genes of highest mean per-slide variance to predict.
    top_k
        Reference spots averaged in retrieval.
    layer
        Layer that holds raw counts; ``X`` where not given.
    library_key
        Column of ``obs`` that tells slides apart.

    Returns
    -------
    A tidy table with columns ``task`` (``"retrieval"`` or ``"prediction"``), ``target`` (``"raw"`` or ``"normalized"``,
    empty for retrieval), ``method``, ``metric`` and ``value``.

    Raises
    ------
    DataError
        A slide is in both, or they share no gene.
    MissingSlotError
        No embeddings.
    ModelError
        The embeddings of the two come from different weights.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(100, n_slides=2)
    >>> model = hb.tl.pretrain(adata, image_encoder="ResNet-10", recipe={"epochs": 1, "batch_size": 32})
    >>> hb.pp.tfidf_sentences(adata, vocabulary=model.vocabulary)
    >>> hb.tl.embed(adata, model=model)
    >>> first = (adata.obs["library_id"] == "tissue_0").to_numpy()
    >>> table = hb.benchmark.spot_level(adata[first].copy(), adata[~first].copy(), n_genes=20)
    >>> sorted(table["metric"].unique())
    ['Recall@1%', 'Recall@10%', 'Recall@5%', 'mae', 'mse', 'pcc']
    """
    held_out, training = (inputs.libraries(part, library_key) for part in (adata, reference))
    shared = sorted(set(held_out) & set(training))
    if shared:
        raise DataError(
            f"slides {shared} are both in the reference and held out; hold out slides the model has not seen."
        )
    _check_weights(reference, adata)
    images, sentences = (_embeddings(adata, key) for key in (keys.IMAGE_EMBEDDING, keys.GENE_EMBEDDING))
    bank = _embeddings(reference, keys.GENE_EMBEDDING)
    features = _features(reference, adata, untrained, library_key)
    rows = [("retrieval", "", *row) for row in _recall(images, sentences, held_out)]
    for target in ("raw", "normalized"):
        known, truth = _expression(reference, adata, target, n_genes, layer, library_key)
        retrieved = retrieved_mean(images, bank, sparse.csr_matrix(known), k=min(top_k, len(known)))
        predictions = {"HiBio-ST, retrieval": retrieved}
        predictions |= {name: ridge(train, known, queries=test) for name, (train, test) in features.items()}
        predictions["mean of the reference"] = np.repeat(known.mean(axis=0, keepdims=True), len(truth), axis=0)
        for method, predicted in predictions.items():
            scores = metrics.expression_scores(truth, predicted, slides=_slide_names(held_out, len(truth)))
            rows += [("prediction", target, method, metric, scores.loc["mean", metric]) for metric in SCORES]
    return pd.DataFrame(rows, columns=["task", "target", "method", "metric", "value"])


def _check_weights(reference: AnnData, adata: AnnData) -> None:
    first, second = (
        inputs.slot(part, "uns", keys.EMBED, "hb.tl.embed(adata, model=model)")["fingerprint"]
        for part in (reference, adata)
    )
    if first != second:
        raise ModelError(f"the reference was embedded with weights {first}, the held-out slides with {second}.")


def _embeddings(adata: AnnData, key: str) -> np.ndarray:
    call = "hb.pp.tfidf_sentences(adata) and hb.tl.embed(adata, model=model)"
    return np.asarray(inputs.slot(adata, "obsm", key, call))


def _recall(
    images: np.ndarray, sentences: np.ndarray, slides: dict[str, np.ndarray]
) -> Iterator[tuple[str, str, float]]:
    """Method, metric and value, each the mean over slides."""
    scores = [metrics.recall_at_percent(images[rows], sentences[rows], percents=PERCENTS) for rows in slides.values()]
    for percent in PERCENTS:
        yield "HiBio-ST", f"Recall@{percent}%", float(np.mean([score[percent] for score in scores]))
    for percent in PERCENTS:
        yield "chance", f"Recall@{percent}%", float(percent)


def _features(
    reference: AnnData, adata: AnnData, untrained: HibioModel | None, library_key: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Features of the reference and of the held-out spots, by the name of the method that fits a ridge on them."""

    def pair(read: Callable[[AnnData], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        return read(reference), read(adata)

    features = {"HiBio-ST, ridge on features": pair(lambda part: _embeddings(part, keys.IMAGE_EMBEDDING))}
    if untrained is not None:
        features["ridge on random features"] = pair(
            lambda part: image_embeddings(part, untrained, batch_size=64, library_key=library_key)
        )
    features["ridge on colour statistics"] = pair(lambda part: _colours(part, library_key))
    return features


def _colours(adata: AnnData, library_key: str) -> np.ndarray:
    batches = inputs.numbered_patches(inputs.slides(adata, library_key), size=224)
    rows, values = zip(*((rows, colour_statistics(patches)) for rows, patches in batches), strict=True)
    return np.concatenate(values)[np.argsort(np.concatenate(rows))]


def _expression(
    reference: AnnData, adata: AnnData, target: str, n_genes: int, layer: str | None, library_key: str
) -> tuple[np.ndarray, np.ndarray]:
    """log1p expression of the reference and of the held-out spots: the reference's most variable shared genes."""
    counts = [inputs.counts(part, layer) for part in (reference, adata)]
    target_sum = inputs.median_total(counts[0]) if target == "normalized" else None
    ranked = variable_genes(reference, reference.n_vars, target_sum=target_sum, layer=layer, library_key=library_key)
    genes = [gene for gene in ranked if gene in adata.var_names][:n_genes]
    if not genes:
        raise DataError("reference and held-out slides have no gene in common; name the genes alike (adata.var_names).")
    known, truth = (
        inputs.log_expression(matrix, target_sum=target_sum)[:, part.var_names.get_indexer(genes)].toarray()
        for matrix, part in zip(counts, (reference, adata), strict=True)
    )
    return known, truth


def _slide_names(slides: dict[str, np.ndarray], n_spots: int) -> np.ndarray:
    names = np.empty(n_spots, dtype=object)
    for library, rows in slides.items():
        names[rows] = library
    return names
