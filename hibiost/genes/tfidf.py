"""TF-IDF weights (HiBio-ST, eqs 1-3) and the best genes of each spot (eq 4), on sparse counts.

Rows are computed in parallel and independently, in double precision and a fixed order, and rounded once to float32;
ranks are taken on those float32 weights. So results are the same whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import numba
import numpy as np
from scipy import sparse

from ..errors import DataError

Selection: TypeAlias = Literal["tfidf", "top", "hvg"]
"""How the genes of a sentence are chosen."""
EPSILON = 1e-8
"""Added to the denominator of eq 1."""
_TABLE = 1 << 16
_BLOCK = 20_000
_BUCKETS = 1024
_LARGE = 128
"""Size of a bucket from which on an insertion sort no longer pays."""
_LOW = np.uint64(0xFFFFFFFF)


def document_frequency(counts: Any) -> np.ndarray:
    """Number of spots in which each gene has a count above zero (the sum in eq 2).

    Parameters
    ----------
    counts
        Counts, n_obs x n_genes; sparse or dense.

    Returns
    -------
    int64, (n_genes,). Stored zeros do not count.

    Examples
    --------
    >>> import numpy as np
    >>> from hibiost.genes import document_frequency
    >>> document_frequency(np.array([[2, 0, 1], [1, 0, 0]])).tolist()
    [2, 0, 1]
    """
    matrix = _csr(counts)
    return _document_frequency(matrix.indices, matrix.data, matrix.shape[1], numba.get_num_threads())


def idf(df: Any, n_spots: Any) -> np.ndarray:
    """Inverse document frequency, ``log((1 + n_spots) / (1 + df))`` (HiBio-ST, eq 2).

    Parameters
    ----------
    df
        Spots with a count above zero, per gene.
    n_spots
        Spots in the corpus: one number, or per gene the spots of the slides that measured it.

    Returns
    -------
    float64, (n_genes,). Zero for a gene seen in every spot.

    Examples
    --------
    >>> from hibiost.genes import idf
    >>> idf([3, 1], 3).round(3).tolist()
    [0.0, 0.693]
    """
    return np.log((1.0 + np.asarray(n_spots, dtype=np.float64)) / (1.0 + np.asarray(df, dtype=np.float64)))


def tfidf(counts: Any, idf: Any) -> sparse.csr_matrix:
    """TF-IDF weights of each spot (HiBio-ST, eqs 1 and 3).

    ``log1p(count) / (sum of log1p(counts of the spot) + 1e-8) * idf``. Peak memory is that of the result.

    Parameters
    ----------
    counts
        Raw counts, n_obs x n_genes; sparse or dense.
    idf
        Inverse document frequency, (n_genes,).

    Returns
    -------
    CSR float32, n_obs x n_genes, with sorted indices and an entry for each entry of ``counts``: a gene seen in every
    spot (idf 0) and a stored zero keep one, of weight 0.

    Raises
    ------
    DataError
        Negative, NaN or infinite counts, or an ``idf`` of another length.

    Examples
    --------
    >>> import numpy as np
    >>> from hibiost.genes import tfidf
    >>> tfidf(np.array([[3, 0], [1, 1]]), [0.0, 2.0]).toarray().tolist()
    [[0.0, 0.0], [0.0, 1.0]]
    """
    matrix = _csr(counts)
    idf = np.ascontiguousarray(idf, dtype=np.float64)
    if idf.shape != (matrix.shape[1],):
        raise DataError(f"idf has shape {idf.shape}; expected one value for each of the {matrix.shape[1]} genes.")
    lowest, highest = matrix.data.min(initial=0), matrix.data.max(initial=0)
    if not (lowest >= 0 and highest < np.inf):
        raise DataError("counts hold negative, NaN or infinite values; expected raw counts.")
    table = np.log1p(np.arange(min(float(highest), _TABLE - 1) + 1))
    weights = _weights(matrix.indptr, matrix.indices, matrix.data, idf, table)
    result = sparse.csr_matrix((weights, matrix.indices.copy(), matrix.indptr.copy()), shape=matrix.shape)
    result.has_canonical_format = True
    return result


def top_genes(weights: Any, n_genes: int, *, among: Any = None) -> np.ndarray:
    """The genes of highest weight of each spot, highest first (HiBio-ST, eq 4).

    Parameters
    ----------
    weights
        Weights, n_obs x n_vars; sparse or dense. They are compared as float32.
    n_genes
        Length of a sentence.
    among
        Mask of the genes that may enter a sentence, (n_vars,); all where it is not given.

    Returns
    -------
    int32, n_obs x n_genes: column indices. Only weights above zero enter; the rest of a row is -1. Of equal weights the
    lowest column comes first.

    Raises
    ------
    DataError
        ``n_genes`` below 1, or a mask of another length.

    Examples
    --------
    >>> import numpy as np
    >>> from hibiost.genes import top_genes
    >>> top_genes(np.array([[0.1, 0.3, 0.0, 0.3], [0.0, 0.0, 0.0, 0.2]]), 3).tolist()
    [[1, 3, 0], [3, -1, -1]]
    """
    matrix = _csr(weights)
    if n_genes < 1:
        raise DataError(f"n_genes is {n_genes}; a sentence holds at least 1 gene.")
    among = np.ones(matrix.shape[1], dtype=bool) if among is None else np.ascontiguousarray(among, dtype=bool)
    if among.shape != (matrix.shape[1],):
        raise DataError(f"among has shape {among.shape}; expected one value for each of the {matrix.shape[1]} genes.")
    return _top_genes(matrix.indptr, matrix.indices, matrix.data.astype(np.float32, copy=False), n_genes, among)


def select_genes(
    counts: sparse.csr_matrix,
    weights: sparse.csr_matrix | np.ndarray,
    *,
    n_genes: int,
    selection: Selection = "tfidf",
    among: np.ndarray,
    slides: Iterable[np.ndarray],
) -> np.ndarray:
    """The genes of each spot's sentence, best first: by TF-IDF (HiBio-ST, eq 4), or one of the paper's ablations.

    Parameters
    ----------
    counts
        Raw counts, n_obs x n_vars.
    weights
        TF-IDF weights of them; or the inverse document frequency, (n_vars,), by which they are computed for 20,000
        spots at a time.
    n_genes
        Length of a sentence.
    selection
        ``"tfidf"``: highest weights. ``"top"``: highest counts. ``"hvg"``: of the ``n_genes`` genes whose log1p counts
        have the highest variance over the slide, those that the spot expresses, highest counts first.
    among
        Mask of the genes that may enter a sentence, (n_vars,).
    slides
        Rows of each slide.

    Returns
    -------
    int32, n_obs x n_genes, as of :func:`top_genes`.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from hibiost.genes import select_genes, tfidf
    >>> counts = sparse.csr_matrix(np.array([[9, 1, 0], [9, 0, 2]]))
    >>> options = {"n_genes": 2, "among": np.ones(3, dtype=bool), "slides": [np.arange(2)]}
    >>> weights = tfidf(counts, [0.0, 0.4, 0.4])
    >>> select_genes(counts, weights, **options).tolist()
    [[1, -1], [2, -1]]
    >>> select_genes(counts, weights, selection="top", **options).tolist()
    [[0, 1], [0, 2]]
    """
    if selection == "tfidf":
        if sparse.issparse(weights):
            return top_genes(weights, n_genes, among=among)
        sentences = np.empty((counts.shape[0], n_genes), dtype=np.int32)
        for start in range(0, counts.shape[0], _BLOCK):
            block = slice(start, start + _BLOCK)
            sentences[block] = top_genes(tfidf(counts[block], weights), n_genes, among=among)
        return sentences
    if selection == "top":
        return top_genes(counts, n_genes, among=among)
    from sklearn.utils.sparsefuncs import mean_variance_axis

    sentences = np.full((counts.shape[0], n_genes), -1, dtype=np.int32)
    for rows in slides:
        slide = counts[rows]
        _, variance = mean_variance_axis(slide.astype(np.float64).log1p(), axis=0)
        variable = top_genes(variance[None], n_genes, among=among)[0]
        of_slide = np.zeros_like(among)
        of_slide[variable[variable >= 0]] = True
        sentences[rows] = top_genes(slide, n_genes, among=of_slide)
    return sentences


def _csr(matrix: Any) -> sparse.csr_matrix:
    """CSR with sorted indices and no duplicates; the input is left as it is."""
    result = sparse.csr_matrix(matrix)
    if not result.has_canonical_format:
        result = result.copy()
        result.sum_duplicates()
    return result


@numba.njit(parallel=True, cache=True)
def _document_frequency(indices: np.ndarray, data: np.ndarray, n_genes: int, n_blocks: int) -> np.ndarray:
    partial = np.zeros((n_blocks, n_genes), dtype=np.int64)
    for block in numba.prange(n_blocks):
        for i in range(data.size * block // n_blocks, data.size * (block + 1) // n_blocks):
            if data[i] > 0:
                partial[block, indices[i]] += 1
    return partial.sum(axis=0)


@numba.njit(cache=True)
def _log1p(value: float, table: np.ndarray) -> float:
    """log1p of a number from 0 on, by table for the whole numbers in it (counts nearly always are)."""
    whole = np.int64(value)
    if whole < table.size and whole == value:
        return table[whole]
    return np.log1p(np.float64(value))


@numba.njit(parallel=True, cache=True)
def _weights(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, idf: np.ndarray, table: np.ndarray
) -> np.ndarray:
    weights = np.empty(data.size, dtype=np.float32)
    for row in numba.prange(indptr.size - 1):
        total = 0.0
        for i in range(indptr[row], indptr[row + 1]):
            total += _log1p(data[i], table)
        scale = 1.0 / (total + EPSILON)
        for i in range(indptr[row], indptr[row + 1]):
            weights[i] = np.float32(_log1p(data[i], table) * idf[indices[i]] * scale)
    return weights


@numba.njit(parallel=True, cache=True)
def _top_genes(
    indptr: np.ndarray, indices: np.ndarray, weights: np.ndarray, n_genes: int, among: np.ndarray
) -> np.ndarray:
    best = np.full((indptr.size - 1, n_genes), -1, dtype=np.int32)
    for row in numba.prange(indptr.size - 1):
        start, stop = indptr[row], indptr[row + 1]
        bits = weights[start:stop].view(np.uint32)
        keys = np.empty(stop - start, dtype=np.uint64)
        n = 0
        for i in range(stop - start):
            gene = indices[start + i]
            if weights[start + i] > 0 and among[gene]:
                keys[n] = (np.uint64(bits[i]) << np.uint64(32)) | (_LOW - np.uint64(gene))
                n += 1
        keys = _highest(keys[:n], n_genes)
        for i in range(keys.size):
            best[row, i] = np.int32(_LOW - (keys[i] & _LOW))
    return best


@numba.njit(cache=True)
def _highest(keys: np.ndarray, k: int) -> np.ndarray:
    """The ``k`` highest of ``keys`` (no two alike), falling.

    Keys are counted by bucket, those of the buckets that reach into the best ``k`` are laid out bucket by bucket, and
    an insertion sort, which then moves keys within their bucket only, puts them in order.
    """
    if keys.size == 0:
        return keys
    low, high = keys.min(), keys.max()
    shift = np.uint64(0)
    while (high - low) >> shift >= _BUCKETS:
        shift += np.uint64(1)
    sizes = np.zeros(_BUCKETS, dtype=np.int64)
    for key in keys:
        sizes[(key - low) >> shift] += 1
    place, n, largest = np.empty(_BUCKETS, dtype=np.int64), 0, 0
    lowest = _BUCKETS
    while n < k and lowest > 0:
        lowest -= 1
        place[lowest] = n
        n += sizes[lowest]
        largest = max(largest, sizes[lowest])
    best = np.empty(n, dtype=np.uint64)
    for key in keys:
        bucket = np.int64((key - low) >> shift)
        if bucket >= lowest:
            best[place[bucket]] = key
            place[bucket] += 1
    if largest > _LARGE:
        return np.sort(best)[::-1][:k]
    for i in range(1, n):
        key, j = best[i], i
        while j > 0 and best[j - 1] < key:
            best[j] = best[j - 1]
            j -= 1
        best[j] = key
    return best[:k]
