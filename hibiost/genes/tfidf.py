"""TF-IDF weights (HiBio-ST, eqs 1-3) and the best genes of each spot (eq 4), on sparse counts.

Rows are computed in parallel and independently, in double precision and a fixed order, and rounded once to float32;
ranks are taken on those float32 weights. So results are the same whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
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
_PARTS = 64
"""Parts into which rows are dealt out; each has memory for one row to compute in."""
_BUCKETS = 1024
_SAMPLE = 8
"""Of long rows, one in so many weights tells where about the best lie."""
_OCTAVE = np.uint32(17)
"""Bits of a float32 below its exponent and the first six of its digits."""
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
    weights, finite = _weights(matrix.indptr, matrix.indices, matrix.data, _checked(idf, matrix.shape[1]), _log_table())
    _check_finite(finite)
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
    return _top_genes(matrix.indptr, matrix.indices, matrix.data, n_genes, among)


def select_genes(
    counts: sparse.csr_matrix | Iterable[sparse.csr_matrix],
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
        Raw counts, n_obs x n_vars; or blocks of their rows, in order, gone through once, and with ``"hvg"`` twice.
    weights
        TF-IDF weights of them; or the inverse document frequency, (n_vars,), by which they are computed for a spot at a
        time.
    n_genes
        Length of a sentence.
    selection
        ``"tfidf"``: highest weights. ``"top"``: highest counts. ``"hvg"``: of the ``n_genes`` genes whose log1p counts
        have the highest variance over the slide, those that the spot expresses, highest counts first.
    among
        Mask of the genes that may enter a sentence, (n_vars,).
    slides
        Rows of each slide; together all rows.

    Returns
    -------
    int32, n_obs x n_genes, as of :func:`top_genes`.

    Raises
    ------
    DataError
        Negative, NaN or infinite counts, or an inverse document frequency of another length.

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
    if selection == "tfidf" and sparse.issparse(weights):
        return top_genes(weights, n_genes, among=among)
    blocks: Iterable[Any] = [counts] if sparse.issparse(counts) else counts
    slides = list(slides)
    variable = _variable_genes(blocks, n_genes, among, slides) if selection == "hvg" else []
    sentences = np.empty((sum(map(len, slides)), n_genes), dtype=np.int32)
    start = 0
    for block in blocks:
        rows = slice(start, start := start + block.shape[0])
        if selection == "tfidf":
            _write_sentences(block, weights, among, sentences[rows])
        elif selection == "top":
            sentences[rows] = top_genes(block, n_genes, among=among)
        for slide, mask in zip(slides, variable, strict=False):
            here = slide[(slide >= rows.start) & (slide < rows.stop)]
            sentences[here] = top_genes(block[here - rows.start], n_genes, among=mask)
    return sentences


def _write_sentences(counts: sparse.csr_matrix, idf: np.ndarray, among: np.ndarray, sentences: np.ndarray) -> None:
    """Write ``top_genes(tfidf(counts, idf), n_genes, among=among)``, without the weights in memory."""
    matrix = _csr(counts)
    idf = np.where(among & (idf > 0), _checked(idf, matrix.shape[1]), 0.0)
    _check_finite(_sentences(matrix.indptr, matrix.indices, matrix.data, idf, _log_table(), sentences))


def _variable_genes(
    blocks: Iterable[sparse.csr_matrix], n_genes: int, among: np.ndarray, slides: list[np.ndarray]
) -> list[np.ndarray]:
    """For each slide a mask of the genes of ``among`` whose log1p counts vary most over it."""
    from sklearn.utils.sparsefuncs import incr_mean_variance_axis

    moments: list[dict[str, Any]] = [
        {"last_mean": np.zeros(among.size), "last_var": np.zeros(among.size), "last_n": 0} for _ in slides
    ]
    start = 0
    for block in blocks:
        stop = start + block.shape[0]
        for slide, moment in zip(slides, moments, strict=True):
            here = slide[(slide >= start) & (slide < stop)]
            if here.size:
                logs = block[here - start].astype(np.float64).log1p()
                moment.update(zip(moment, incr_mean_variance_axis(logs, axis=0, **moment), strict=True))
        start = stop
    masks = []
    for moment in moments:
        variable = top_genes(moment["last_var"][None], n_genes, among=among)[0]
        masks.append(np.isin(np.arange(among.size), variable))
    return masks


def _checked(idf: Any, n_genes: int) -> np.ndarray:
    idf = np.ascontiguousarray(idf, dtype=np.float64)
    if idf.shape != (n_genes,):
        raise DataError(f"idf has shape {idf.shape}; expected one value for each of the {n_genes} genes.")
    return idf


def _check_finite(finite: np.ndarray) -> None:
    if not finite.all():
        raise DataError("counts hold negative, NaN or infinite values; expected raw counts.")


@cache
def _log_table() -> np.ndarray:
    return np.log1p(np.arange(_TABLE, dtype=np.float64))


def _csr(matrix: Any) -> sparse.csr_matrix:
    """CSR with sorted indices and no duplicates; the input is left as it is."""
    result = matrix if isinstance(matrix, sparse.csr_matrix) else sparse.csr_matrix(matrix)
    if not result.has_canonical_format:
        result = result.copy()
        result.sum_duplicates()
    return result


@numba.njit(parallel=True, cache=True)
def _document_frequency(indices: np.ndarray, data: np.ndarray, n_genes: int, n_blocks: int) -> np.ndarray:
    partial = np.zeros((n_blocks, n_genes), dtype=np.int32)
    for block in numba.prange(n_blocks):
        own = partial[block]
        for i in range(data.size * block // n_blocks, data.size * (block + 1) // n_blocks):
            own[np.uint32(indices[i])] += data[i] > 0
    return partial.sum(axis=0)


@numba.njit(cache=True)
def _log1p(value: float, table: np.ndarray) -> float:
    """log1p of a number from 0 on, by table for the whole numbers in it (counts nearly always are); else NaN."""
    whole = np.int64(value)
    if 0 <= whole < table.size and whole == value:
        return table[whole]
    return np.log1p(np.float64(value)) if value >= 0 else np.nan


@numba.njit(cache=True)
def _weigh(
    counts: np.ndarray, genes: np.ndarray, idf: np.ndarray, table: np.ndarray, logs: np.ndarray, weights: np.ndarray
) -> bool:
    """Write the weights of one row; False where its counts are none.

    Loops have no branch, indices no sign, and the sum four lanes: so several counts are taken at a time.
    """
    last, beyond = np.uint32(table.size - 1), False
    for i in range(counts.size):
        whole = min(np.uint32(max(counts[i], np.float32(0))), last)
        logs[i] = table[whole]
        beyond |= np.float32(whole) != counts[i]
    if beyond:
        for i in range(counts.size):
            logs[i] = _log1p(counts[i], table)
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    lanes = counts.size - counts.size % 4
    for i in range(0, lanes, 4):
        a, b, c, d = a + logs[i], b + logs[i + 1], c + logs[i + 2], d + logs[i + 3]
    for i in range(lanes, counts.size):
        a += logs[i]
    total = (a + b) + (c + d)
    scale = 1.0 / (total + EPSILON)
    for i in range(counts.size):
        weights[i] = np.float32(logs[i] * idf[np.uint32(genes[i])] * scale)
    return np.isfinite(total)


@numba.njit(parallel=True, cache=True)
def _weights(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, idf: np.ndarray, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and of each part of the rows whether its counts are numbers from 0 on."""
    n_rows, longest = indptr.size - 1, np.max(np.diff(indptr)) if indptr.size > 1 else 0
    weights, finite = np.empty(data.size, dtype=np.float32), np.ones(_PARTS, dtype=np.bool_)
    for part in numba.prange(_PARTS):
        logs = np.empty(longest)
        for row in range(n_rows * part // _PARTS, n_rows * (part + 1) // _PARTS):
            window = slice(indptr[row], indptr[row + 1])
            finite[part] &= _weigh(data[window], indices[window], idf, table, logs, weights[window])
    return weights, finite


@numba.njit(parallel=True, cache=True)
def _sentences(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, idf: np.ndarray, table: np.ndarray, best: np.ndarray
) -> np.ndarray:
    """Write the best genes by weight; of each part of the rows whether its counts are numbers from 0 on."""
    n_rows, longest = indptr.size - 1, np.max(np.diff(indptr)) if indptr.size > 1 else 0
    finite = np.ones(_PARTS, dtype=np.bool_)
    for part in numba.prange(_PARTS):
        logs, weights, room = np.empty(longest), np.empty(longest, dtype=np.float32), _room(longest)
        for row in range(n_rows * part // _PARTS, n_rows * (part + 1) // _PARTS):
            window = slice(indptr[row], indptr[row + 1])
            of_row = weights[: indptr[row + 1] - indptr[row]]
            finite[part] &= _weigh(data[window], indices[window], idf, table, logs, of_row)
            _write_best(indices[window], of_row, best[row], room)
    return finite


@numba.njit(parallel=True, cache=True)
def _top_genes(
    indptr: np.ndarray, indices: np.ndarray, weights: np.ndarray, n_genes: int, among: np.ndarray
) -> np.ndarray:
    n_rows, longest = indptr.size - 1, np.max(np.diff(indptr)) if indptr.size > 1 else 0
    best = np.empty((n_rows, n_genes), dtype=np.int32)
    for part in numba.prange(_PARTS):
        entering, room = np.empty(longest, dtype=np.float32), _room(longest)
        for row in range(n_rows * part // _PARTS, n_rows * (part + 1) // _PARTS):
            start, stop = indptr[row], indptr[row + 1]
            for i in range(start, stop):
                weight = np.float32(weights[i])
                entering[i - start] = weight if weight > 0 and among[indices[i]] else np.float32(0)
            _write_best(indices[start:stop], entering[: stop - start], best[row], room)
    return best


@numba.njit(cache=True)
def _room(longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Memory for the keys of a row, for the same in order, and for the ends of buckets."""
    return (
        np.empty(longest + 1, dtype=np.uint64),
        np.empty(longest, dtype=np.uint64),
        np.empty(_BUCKETS, dtype=np.int32),
    )


@numba.njit(cache=True)
def _write_best(
    genes: np.ndarray, weights: np.ndarray, best: np.ndarray, room: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    """Write the genes of the highest weights above zero, highest first, then -1; weights are from 0 on.

    As bits, such weights are in the order of whole numbers; a key has the weight above, the gene (falling) below.
    """
    keys, ordered, ends = room
    bits = weights.view(np.uint32)
    floor = _floor(bits, best.size, ends) if bits.size > 2 * best.size else np.uint32(1)
    n = _collect(bits, genes, floor, keys)
    if n < best.size and floor > 1:
        n = _collect(bits, genes, np.uint32(1), keys)
    if n:
        _order(keys[:n], ordered[:n], ends)
    for place in range(best.size):
        best[place] = np.int32(_LOW - (ordered[place] & _LOW)) if place < n else -1


@numba.njit(cache=True)
def _floor(bits: np.ndarray, k: int, ends: np.ndarray) -> np.uint32:
    """What about half as many again as ``k`` weights reach, judged by a sample; 1 where that cannot be told."""
    highest = np.uint32(0)
    for each in bits:
        highest = max(highest, each)
    top: Any = np.int64(highest >> _OCTAVE)
    ends[:] = 0
    for i in range(0, bits.size, _SAMPLE):
        ends[min(top - np.int64(bits[i] >> _OCTAVE), _BUCKETS - 1)] += 1
    n, wanted = 0, 3 * k // (2 * _SAMPLE) + 8
    for bucket in range(min(top, _BUCKETS - 1)):
        n += ends[bucket]
        if n >= wanted:
            return np.uint32((top - bucket) << _OCTAVE)
    return np.uint32(1)


@numba.njit(cache=True)
def _collect(bits: np.ndarray, genes: np.ndarray, floor: np.uint32, keys: np.ndarray) -> int:
    """Write the keys of the weights from ``floor`` on, without a branch; their number."""
    n = 0
    for i in range(bits.size):
        keys[n] = (np.uint64(bits[i]) << np.uint64(32)) | (_LOW - np.uint64(genes[i]))
        n += bits[i] >= floor
    return n


@numba.njit(cache=True)
def _order(keys: np.ndarray, ordered: np.ndarray, ends: np.ndarray) -> None:
    """Write keys (no two alike) in falling order: laid out bucket by bucket, then by an insertion sort.

    The sort moves keys within their bucket only; where one is large, a general sort is quicker.
    """
    low, high = keys.min(), keys.max()
    n_buckets = 64
    while n_buckets < min(2 * keys.size, _BUCKETS):
        n_buckets *= 2
    shift = np.uint64(0)
    while (high - low) >> shift >= n_buckets:
        shift += np.uint64(1)
    ends[:n_buckets] = 0
    for key in keys:
        ends[(high - key) >> shift] += np.int32(1)
    n, largest = np.int32(0), np.int32(0)
    for bucket in range(n_buckets):
        size = ends[bucket]
        ends[bucket] = n
        n += size
        largest = max(largest, size)
    for key in keys:
        bucket_of_key = (high - key) >> shift
        ordered[np.uint32(ends[bucket_of_key])] = key
        ends[bucket_of_key] += np.int32(1)
    if largest > _LARGE:
        ordered[:] = np.sort(ordered)[::-1]
        return
    for i in range(1, n):
        key, j = ordered[i], i
        while j > 0 and ordered[j - 1] < key:
            ordered[j] = ordered[j - 1]
            j -= 1
        ordered[j] = key
