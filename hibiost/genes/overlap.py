"""Overlap of sentences with gene sets (HiBio-ST, eq 5), as a sparse kernel.

Rows are computed in parallel and independently, in double precision, compared with the threshold and then rounded once
to float32. So results are the same whatever the number of threads.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from scipy import sparse

from ..errors import DataError
from ..settings import logger

FEW = 0.1
"""Share of spots with a positive set below which the report becomes a warning."""


class Overlaps(NamedTuple):
    """Overlaps of spots with gene sets."""

    matrix: sparse.csr_matrix
    """CSR float32, n_spots x n_sets, sorted indices: the coefficients above the threshold."""
    best: np.ndarray
    """float64, (n_spots,): the highest coefficient of each spot, whether above the threshold or not."""


def overlap_coefficients(sentences: np.ndarray, members: sparse.csr_matrix, *, threshold: float = 0.2) -> Overlaps:
    """Overlap coefficient of each sentence with each gene set (HiBio-ST, eq 5).

    ``|set & sentence| / min(|set|, |sentence|)``, kept where it is above the threshold; one that equals it is not.

    Peak memory is that of the result (8 bytes an entry, 24 a spot) and of ``members`` once more by gene; each thread
    holds one row of coefficients (12 bytes a set).

    Parameters
    ----------
    sentences
        Int, n_spots x n_genes: columns of ``members``, each at most once in a row; entries below 0 are padding.
    members
        n_sets x n_genes, nonzero for a member of the set.
    threshold
        Lowest coefficient, itself excluded, from 0 to below 1.

    Returns
    -------
    The coefficients above the threshold, and the highest of each spot. An empty sentence has none; its highest is 0.

    Raises
    ------
    DataError
        ``sentences`` is no table of columns of ``members``, or ``threshold`` is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from hibiost.genes import overlap_coefficients
    >>> members = sparse.csr_matrix([[1, 1, 0, 0, 0], [0, 1, 1, 1, 1]])
    >>> overlaps = overlap_coefficients(np.array([[0, 1, 2], [4, -1, -1], [-1, -1, -1]]), members, threshold=0.7)
    >>> overlaps.matrix.toarray().tolist()
    [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    >>> overlaps.best.tolist()
    [1.0, 1.0, 0.0]
    """
    check_threshold(threshold)
    sentences = np.ascontiguousarray(sentences)
    if sentences.ndim != 2 or sentences.dtype.kind not in "iu":
        raise DataError(
            f"sentences have shape {sentences.shape} and dtype {sentences.dtype}; expected whole numbers, "
            "n_spots x n_genes."
        )
    highest = sentences.max(initial=-1)
    if highest >= members.shape[1]:
        raise DataError(
            f"the sentences name gene {highest} (counted from 0) of {members.shape[1]} genes: sentences and genes "
            "do not belong together; write both anew with hb.pp.tfidf_sentences(adata)."
        )
    by_gene = sparse.csc_matrix(members, copy=True)
    by_gene.sum_duplicates()
    by_gene.eliminate_zeros()
    sizes = np.bincount(by_gene.indices, minlength=members.shape[0])
    kept, best = _survey(sentences, by_gene.indptr, by_gene.indices, sizes, threshold)
    indptr = np.append(0, np.cumsum(kept))
    indices, data = _entries(sentences, by_gene.indptr, by_gene.indices, sizes, threshold, indptr)
    matrix = sparse.csr_matrix((data, indices, indptr), shape=(len(sentences), members.shape[0]))
    matrix.has_canonical_format = True
    return Overlaps(matrix, best)


def check_threshold(threshold: float) -> None:
    """Refuse a threshold which is not from 0 to below 1."""
    if not 0 <= threshold < 1:
        raise DataError(
            f"threshold is {threshold}; overlap coefficients lie from 0 to 1, and those above it are kept: expected a "
            "number from 0 to below 1."
        )


def reaching_threshold(best: np.ndarray, share: float = 0.5) -> float | None:
    """The threshold at which a share of the spots have a positive set.

    Parameters
    ----------
    best
        The highest coefficient of each spot, (n_spots,).
    share
        Share of the spots, above 0.

    Returns
    -------
    The highest number of two decimals with ``(best > number).mean() >= share``; of more decimals where two only give 0.
    ``None`` where too few spots share a gene with any set.

    Examples
    --------
    >>> from hibiost.genes.overlap import reaching_threshold
    >>> reaching_threshold([0.0, 0.12, 0.2, 0.5])
    0.19
    """
    falling = np.sort(best)[::-1]
    reached = np.arange(1, len(falling) + 1) / max(len(falling), 1) >= share
    bound = falling[np.argmax(reached)] if reached.any() else 0.0
    if not bound > 0:
        return None
    scale, step = 10, 0
    while step == 0:
        scale *= 10
        step = int(np.ceil(bound * scale))
        while step / scale >= bound:
            step -= 1
    return step / scale


def report_overlaps(overlaps: Overlaps, threshold: float) -> None:
    """Log how many spots have a positive set, and how many each has.

    Where fewer than a tenth of the spots have one, it is a warning that names the threshold at which half would.

    Parameters
    ----------
    overlaps
        What :func:`hibiost.genes.overlap_coefficients` returned.
    threshold
        The threshold it was given.
    """
    per_spot = np.diff(overlaps.matrix.indptr)
    n_spots, n_positive = len(per_spot), int(np.count_nonzero(per_spot))
    found = (
        f"{n_positive} of {n_spots} spots ({n_positive / n_spots:.1%}) have a pathway above threshold={threshold:g}; "
        f"the median spot has {np.median(per_spot):g}."
    )
    if n_positive >= FEW * n_spots:
        logger.info(found)
        return
    half = reaching_threshold(overlaps.best)
    if half is None:
        logger.warning(f"{found} No threshold gives half of them one: most spots share no gene with any pathway.")
    else:
        logger.warning(f"{found} With threshold={half:g}, {np.mean(overlaps.best > half):.1%} would have one.")


@numba.njit(cache=True, error_model="numpy")
def _row(sentence: np.ndarray, indptr: np.ndarray, sets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The coefficient of one sentence with each set; divisions without a branch, so that several run at once."""
    length = 0
    shared = np.zeros(sizes.size, dtype=np.int32)
    for gene in sentence:
        if gene >= 0:
            length += 1
            for i in range(indptr[gene], indptr[gene + 1]):
                shared[sets[i]] += 1
    coefficients = np.empty(sizes.size)
    for s in range(sizes.size):
        coefficients[s] = shared[s] / max(1, min(sizes[s], length))
    return coefficients


@numba.njit(parallel=True, cache=True)
def _survey(
    sentences: np.ndarray, indptr: np.ndarray, sets: np.ndarray, sizes: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """The number of entries and the highest coefficient of each row."""
    kept, best = np.zeros(len(sentences), dtype=np.int64), np.zeros(len(sentences))
    for row in numba.prange(len(sentences)):
        n, highest = 0, 0.0
        for coefficient in _row(sentences[row], indptr, sets, sizes):
            n += coefficient > threshold
            highest = max(highest, coefficient)
        kept[row], best[row] = n, highest
    return kept, best


@numba.njit(parallel=True, cache=True)
def _entries(
    sentences: np.ndarray, indptr: np.ndarray, sets: np.ndarray, sizes: np.ndarray, threshold: float, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sets and coefficients of the entries, row by row."""
    indices, data = np.empty(ends[-1], dtype=np.int32), np.empty(ends[-1], dtype=np.float32)
    for row in numba.prange(len(sentences)):
        at = ends[row]
        if at < ends[row + 1]:
            for s, coefficient in enumerate(_row(sentences[row], indptr, sets, sizes)):
                if coefficient > threshold:
                    indices[at] = s
                    data[at] = coefficient
                    at += 1
    return indices, data
