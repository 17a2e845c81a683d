"""Exact nearest neighbours among embeddings, and means over them; in blocks."""

from __future__ import annotations

import numba
import numpy as np
from scipy import sparse

from .._products import SINGLE, STRIP, RoughRows, dot, reaches, widen
from ..errors import check_choice

_QUERIES, _BANK = 512, 1 << 14
"""Queries and rows of a bank that are compared at a time: 16 MiB of products in bfloat16, 32 MiB in float32."""
_VALUES = 1 << 24
"""Dense values that are mixed at a time."""
_CLOSE = 1e-6
"""Squared distances below are those of equal embeddings, up to rounding."""
WEIGHTINGS = ("similarity", "softmax", "uniform", "inverse_distance")


def most_similar(
    queries: np.ndarray, bank: np.ndarray, k: int, *, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` rows of ``bank`` most similar to each query, by dot product, best first.

    The search is exact and the same on every machine: products are taken in bfloat16 where the CPU multiplies it
    natively, in float32 elsewhere, and those whose rank their error leaves open are computed in double precision and
    rounded to float32. Of equally similar rows the lower one goes first. Besides the result at most 80 MiB are held at
    a time, the queries being rounded once and the bank block by block, whatever the numbers of rows.

    Parameters
    ----------
    queries
        Float, n_queries x dim.
    bank
        Float, n_bank x dim.
    k
        At most n_bank.
    device
        Where to multiply.

    Returns
    -------
    Rows of ``bank`` (int64) and similarities (float32), both n_queries x ``k``.
    """
    queries, bank = np.ascontiguousarray(queries), np.ascontiguousarray(bank)
    rows = np.zeros((len(queries), k), dtype=np.int64)
    similarities = np.full((len(queries), k), -np.inf, dtype=np.float32)
    centre = bank.mean(axis=0, dtype=np.float64)
    rough = RoughRows.of(queries, centre, device=device)
    room = rough.room(min(_QUERIES, len(queries)), min(_BANK, len(bank)))
    for first in range(0, len(bank), _BANK):
        block = bank[first : first + _BANK]
        others = RoughRows.of(block, centre, device=device)
        shift = (others.along - centre @ centre).astype(np.float32)
        error = rough.error(others)
        error += SINGLE * (np.abs(rough.along) + np.abs(shift).max() + rough.length * others.length.max())
        tops = np.maximum.reduceat(shift, np.arange(0, len(shift), STRIP))
        for start in range(0, len(queries), _QUERIES):
            part = slice(start, start + _QUERIES)
            bits = rough[part].times(others, room)
            exact = queries[part], block, first, similarities[part], rows[part]
            _keep_best(bits, rough.along[part], error[part], shift, tops, *exact)
    return rows, similarities


@numba.njit(parallel=True, cache=True)
def _keep_best(
    bits: np.ndarray,
    along: np.ndarray,
    error: np.ndarray,
    shift: np.ndarray,
    tops: np.ndarray,
    queries: np.ndarray,
    bank: np.ndarray,
    first: int,
    best: np.ndarray,
    found: np.ndarray,
) -> None:
    """Better ``best`` and ``found``, the most similar rows so far of each query, by a block that begins at ``first``.

    A product is computed where its rough value, ``along + bits + shift``, and its error reach what is the last of the
    best; strips where no bits and the highest shift do are passed over. Blocks come in order, so an equal one stays
    behind.
    """
    k = best.shape[1]
    for row in numba.prange(bits.shape[0]):
        judged = np.empty(STRIP, dtype=np.float32)
        values, rows = best[row], found[row]
        for start in range(0, bits.shape[1], STRIP):
            strip, shifts = bits[row, start : start + STRIP], shift[start : start + STRIP]
            limit = np.float32(values[k - 1] - along[row] - error[row])
            if not reaches(strip, limit - tops[start // STRIP]):
                continue
            widen(strip, judged.view(np.uint32))
            for c in range(strip.size):
                judged[c] += shifts[c]
            for c in range(strip.size):
                if judged[c] < limit:
                    continue
                value = np.float32(dot(queries[row], bank[start + c]))
                if value > values[k - 1]:
                    place = k - 1
                    while place > 0 and value > values[place - 1]:
                        values[place], rows[place] = values[place - 1], rows[place - 1]
                        place -= 1
                    values[place], rows[place] = value, first + start + c
                    limit = np.float32(values[k - 1] - along[row] - error[row])


def neighbour_weights(similarities: np.ndarray, weighting: str = "similarity", *, scale: float = 1.0) -> np.ndarray:
    """Weights of the neighbours of each query, which sum to 1.

    With the cosine similarity s_ij of query i and its neighbour j, and the squared distance of the two on the unit
    sphere, d_ij^2 = 2 - 2 s_ij, the weight w_ij is proportional to

    - ``"similarity"``: max(s_ij, 0); 1 where no neighbour has a positive one (HiBio-ST, C.2.3);
    - ``"softmax"``: exp(scale s_ij), as the contrastive loss weighs them (HiBio-ST, eq 10);
    - ``"uniform"``: 1 (Xie et al. 2023, BLEEP);
    - ``"inverse_distance"``: 1 / d_ij^2 (as in Min et al. 2024, mclSTExp), no distance counting as less than 0.001.

    Parameters
    ----------
    similarities
        n_queries x k.
    weighting
        One of the above.
    scale
        Inverse temperature of the softmax.

    Returns
    -------
    float32, n_queries x k.

    Raises
    ------
    DataError
        ``weighting`` is none of the above.
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    similarities = similarities.astype(np.float64)
    match weighting:
        case "similarity":
            weights = np.clip(similarities, 0, None)
            weights[~weights.any(axis=1)] = 1
        case "softmax":
            weights = np.exp(scale * (similarities - similarities.max(axis=1, keepdims=True)))
        case "uniform":
            weights = np.ones_like(similarities)
        case "inverse_distance":
            weights = 1 / np.maximum(2 - 2 * similarities, _CLOSE)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def neighbours(
    queries: np.ndarray,
    bank: np.ndarray,
    *,
    k: int,
    weighting: str = "similarity",
    scale: float = 1.0,
    device: str = "cpu",
) -> sparse.csr_matrix:
    """Weights of the ``k`` most similar rows of a bank, as a sparse matrix.

    Parameters
    ----------
    queries
        float32, n_queries x dim, l2-normalised.
    bank
        float32, n_bank x dim, l2-normalised.
    k
        At most n_bank.
    weighting, scale
        See :func:`neighbour_weights`.
    device
        Where to compare.

    Returns
    -------
    float32, n_queries x n_bank, ``k`` entries in each row, which sum to 1.
    """
    rows, similarities = most_similar(queries, bank, k, device=device)
    weights = neighbour_weights(similarities, weighting, scale=scale)
    return sparse.csr_matrix(
        (weights.ravel(), rows.ravel(), np.arange(0, rows.size + 1, k)), shape=(len(queries), len(bank))
    )


def mixed(weights: sparse.csr_matrix, values: sparse.csr_matrix) -> np.ndarray:
    """The product of the two, dense: the weighted means of rows of ``values``; sparse blocks are all it takes besides.

    Parameters
    ----------
    weights
        n_queries x n_bank, of :func:`neighbours`.
    values
        n_bank x n_values.

    Returns
    -------
    float32, n_queries x n_values.
    """
    out = np.empty((weights.shape[0], values.shape[1]), dtype=np.float32)
    step = max(1, _VALUES // max(1, values.shape[1]))
    for start in range(0, len(out), step):
        out[start : start + step] = (weights[start : start + step] @ values).toarray()
    return out
