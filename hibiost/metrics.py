"""Scores of clusters, predicted expression and retrieval; arrays in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from .errors import DataError

__all__ = ["ari", "expression_scores", "mae", "mse", "nmi", "pcc", "recall_at_percent"]

_TIE = 1e-12


def ari(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Adjusted Rand index of two labellings of the same spots.

    Parameters
    ----------
    truth, predicted
        Labels of shape (n_spots,). Spots that either labelling leaves unlabelled (NaN, None or ``""``) are left out.

    Returns
    -------
    The index: 1 for equal clusterings, about 0 for random ones.

    Raises
    ------
    DataError
        The lengths differ, or no spot carries both labels.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.metrics.ari(["tumour", "tumour", "fat", None], [1, 1, 0, 0])
    1.0
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*_labels(truth, predicted)))


def nmi(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Normalised mutual information (arithmetic mean of the entropies) of two labellings of the same spots.

    Parameters
    ----------
    truth, predicted
        Labels of shape (n_spots,). Spots that either labelling leaves unlabelled (NaN, None or ``""``) are left out.

    Returns
    -------
    The normalised mutual information, 0 to 1.

    Raises
    ------
    DataError
        The lengths differ, or no spot carries both labels.

    Examples
    --------
    >>> import hibiost as hb
    >>> round(hb.metrics.nmi(["tumour", "tumour", "fat", "fat"], [0, 0, 1, 1]), 6)
    1.0
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(*_labels(truth, predicted)))


def mse(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Mean squared error over all spots and genes.

    Parameters
    ----------
    truth, predicted
        Expression of shape (n_spots, n_genes), or (n_spots,) for one gene; dense, sparse or DataFrame.

    Returns
    -------
    The error.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.metrics.mse([[0.0, 2.0]], [[1.0, 2.0]])
    0.5
    """
    truth, predicted = _expression(truth, predicted)
    return float(np.mean((truth - predicted) ** 2))


def mae(truth: ArrayLike, predicted: ArrayLike) -> float:
    """Mean absolute error over all spots and genes.

    Parameters
    ----------
    truth, predicted
        Expression of shape (n_spots, n_genes), or (n_spots,) for one gene; dense, sparse or DataFrame.

    Returns
    -------
    The error.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.metrics.mae([[0.0, 2.0]], [[3.0, 2.0]])
    1.5
    """
    truth, predicted = _expression(truth, predicted)
    return float(np.mean(np.abs(truth - predicted)))


def pcc(truth: ArrayLike, predicted: ArrayLike) -> NDArray[np.float64]:
    """Pearson correlation of each gene over the spots.

    Parameters
    ----------
    truth, predicted
        Expression of shape (n_spots, n_genes), or (n_spots,) for one gene; dense, sparse or DataFrame.

    Returns
    -------
    Correlations of shape (n_genes,), NaN where truth or prediction is constant (up to the rounding of its dtype).

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.metrics.pcc([[0, 5], [1, 5], [2, 5]], [[1, 0], [2, 1], [3, 0]])
    array([ 1., nan])
    """
    truth, predicted = _expression(truth, predicted)
    varying = ~(_constant(truth) | _constant(predicted))
    result = np.full(truth.shape[1], np.nan)
    result[varying] = np.sum(_unit(truth[:, varying]) * _unit(predicted[:, varying]), axis=0)
    return np.clip(result, -1.0, 1.0)


def expression_scores(truth: ArrayLike, predicted: ArrayLike, *, slides: ArrayLike) -> pd.DataFrame:
    """Scores of predicted expression per slide, as the paper reports them (HiBio-ST, section 4).

    The correlation of each gene is taken over the spots of one slide, averaged over genes, then over slides. A gene
    that is constant in a slide is left out there and counted. A constant prediction of a gene that varies, whose
    correlation is undefined, counts as 0: it tells nothing about where the gene is high.

    Parameters
    ----------
    truth, predicted
        Expression of shape (n_spots, n_genes); dense, sparse or DataFrame.
    slides
        The slide of each spot, shape (n_spots,).

    Returns
    -------
    A DataFrame with one row per slide, in order of appearance, then ``"mean"`` (the plain mean of the rows above) and
    ``"pooled"`` (all spots as if they were one slide). Columns: ``n_spots``, ``mse``, ``mae``, ``pcc``, ``n_genes``
    (genes averaged in ``pcc``), ``n_constant`` (genes left out) and ``n_flat`` (constant predictions counted as 0).

    Raises
    ------
    DataError
        Shapes or gene names differ, a value is not finite, or a spot has no slide.

    Examples
    --------
    >>> import numpy as np, hibiost as hb
    >>> truth = np.log1p(np.random.default_rng(0).poisson(5, (20, 3)))
    >>> hb.metrics.expression_scores(truth, truth, slides=["a"] * 12 + ["b"] * 8).loc["mean", "pcc"].round(6)
    np.float64(1.0)
    """
    truth, predicted = _expression(truth, predicted)
    codes, names = pd.factorize(pd.Series(np.asarray(slides), dtype="object"))
    if len(codes) != len(truth) or (codes < 0).any():
        raise DataError(
            f"slides names {int((codes >= 0).sum())} slides for {len(truth)} spots; expected the slide of each spot."
        )
    clash = {"mean", "pooled"} & {str(name) for name in names}
    if clash:
        raise DataError(f"a slide is called {clash.pop()!r}, the name of a summary row; rename it.")
    rows = {str(name): _slide_scores(truth[codes == i], predicted[codes == i]) for i, name in enumerate(names)}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.loc["mean"] = table.mean()
    table.loc["pooled"] = _slide_scores(truth, predicted)
    return table.rename_axis("slide")


def recall_at_percent(
    queries: ArrayLike, keys: ArrayLike, *, percents: Sequence[float] = (1, 5, 10), batch_size: int = 256
) -> dict[float, float]:
    """Recall@p%: how often an image finds its own sentence among the best p % of all sentences.

    A query succeeds where its own key (same row) is among the first ``ceil(p / 100 * N)`` of the N keys by cosine
    similarity. A key as similar as the own one counts as ranked before it, so equal embeddings score 0, never 100.
    Random embeddings score p. Memory is ``batch_size`` x N float64 beside the embeddings.

    Parameters
    ----------
    queries, keys
        Embeddings of shape (N, dim); row i of one belongs to row i of the other.
    percents
        Values of p, each above 0 and at most 100.
    batch_size
        Queries compared with all keys at a time; it does not change the result.

    Returns
    -------
    Percent of the queries that succeed, for each p.

    Raises
    ------
    DataError
        The shapes differ, there are no rows, a value is not finite, or a percent is out of range.

    Examples
    --------
    >>> import numpy as np, hibiost as hb
    >>> hb.metrics.recall_at_percent(np.eye(100), np.eye(100))
    {1: 100.0, 5: 100.0, 10: 100.0}
    """
    queries, keys = _expression(queries, keys)
    if any(not 0 < p <= 100 for p in percents):
        raise DataError(f"percents are {list(percents)}; expected values above 0 and at most 100.")
    queries, keys = _unit_rows(queries), _unit_rows(keys)
    ahead = np.empty(len(keys), dtype=np.int64)
    for start in range(0, len(keys), batch_size):
        rows = np.arange(start, min(start + batch_size, len(keys)))
        similarity = queries[rows] @ keys.T
        own = similarity[rows - start, rows]
        ahead[rows] = (similarity >= own[:, None] - _TIE).sum(axis=1) - 1
    return {p: float(100 * np.mean(ahead < math.ceil(p * len(keys) / 100 - 1e-9))) for p in percents}


def _labels(truth: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    first, second = (pd.Series(np.asarray(labels), dtype="object") for labels in (truth, predicted))
    if len(first) != len(second):
        raise DataError(f"truth labels {len(first)} spots, predicted {len(second)}; expected one label each per spot.")
    kept = first.notna() & second.notna() & (first != "") & (second != "")
    if not kept.any():
        raise DataError(f"none of the {len(first)} spots carries both labels; there is nothing to compare.")
    return pd.factorize(first[kept])[0], pd.factorize(second[kept])[0]


def _expression(truth: ArrayLike, predicted: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    if isinstance(truth, pd.DataFrame) and isinstance(predicted, pd.DataFrame):
        for axis in ("index", "columns"):
            if not getattr(truth, axis).equals(getattr(predicted, axis)):
                raise DataError(f"the {axis} of truth and predicted differ; bring them into the same order first.")
    first, second = (_dense(values) for values in (truth, predicted))
    if first.shape != second.shape or first.ndim != 2 or first.size == 0:
        raise DataError(f"shapes {first.shape} and {second.shape}; expected two equal, non-empty tables.")
    for name, values in (("first", first), ("second", second)):
        if not np.isfinite(values).all():
            raise DataError(f"the {name} table holds {int((~np.isfinite(values)).sum())} NaN or infinite values.")
    return first, second


def _dense(values: ArrayLike) -> NDArray[np.floating]:
    array = np.asarray(values.toarray() if isinstance(values, sparse.spmatrix | sparse.sparray) else values)
    array = array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
    return array[:, None] if array.ndim == 1 else array


def _constant(values: NDArray[np.floating]) -> NDArray[np.bool_]:
    rounding = 8 * np.finfo(values.dtype).eps
    return np.ptp(values, axis=0) <= rounding * np.abs(values).max(axis=0)


def _unit(values: NDArray[np.floating]) -> NDArray[np.float64]:
    centred = values - values.mean(axis=0, dtype=np.float64)
    return centred / np.linalg.norm(centred, axis=0)


def _unit_rows(values: NDArray[np.floating]) -> NDArray[np.float64]:
    norms = np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True)
    return values / np.where(norms > 0, norms, 1.0)


def _slide_scores(truth: NDArray[np.floating], predicted: NDArray[np.floating]) -> dict[str, float]:
    varying = ~_constant(truth)
    correlations = pcc(truth, predicted)[varying]
    flat = np.isnan(correlations)
    return {
        "n_spots": float(len(truth)),
        "mse": mse(truth, predicted),
        "mae": mae(truth, predicted),
        "pcc": float(np.where(flat, 0.0, correlations).mean()) if varying.any() else np.nan,
        "n_genes": float(varying.sum()),
        "n_constant": float((~varying).sum()),
        "n_flat": float(flat.sum()),
    }
