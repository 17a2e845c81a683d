"""Exact nearest neighbours among embeddings, and means over them; in blocks."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from ..errors import DataError, nearest

_QUERIES, _BANK = 512, 1 << 15
"""Queries and rows of a bank that are compared at a time: 64 MiB of similarities."""
_VALUES = 1 << 24
"""Dense values that are mixed at a time."""
_CLOSE = 1e-6
"""Squared distances below are those of equal embeddings, up to rounding."""
WEIGHTINGS = ("similarity", "softmax", "uniform", "inverse_distance")


def most_similar(
    queries: np.ndarray, bank: np.ndarray, k: int, *, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` rows of ``bank`` most similar to each query, by dot product, best first.

    The search is exact. Of equally similar rows the lower one goes first, so that the result does not depend on the
    blocks in which both sides are compared. Besides the result at most 64 MiB of similarities are held at a time
    (a few times that where many are equal), whatever the numbers of rows.

    Parameters
    ----------
    queries
        float32, n_queries x dim.
    bank
        float32, n_bank x dim.
    k
        At most n_bank.
    device
        Where to compute.

    Returns
    -------
    Rows of ``bank`` (int64) and similarities (float32), both n_queries x ``k``.
    """
    rows = np.empty((len(queries), k), dtype=np.int64)
    similarities = np.empty((len(queries), k), dtype=np.float32)
    for start in range(0, len(queries), _QUERIES):
        part = slice(start, start + _QUERIES)
        found = _search(torch.tensor(queries[part], device=device), bank, k)
        rows[part], similarities[part] = (each.cpu().numpy() for each in found)
    return rows, similarities


def _search(queries: Tensor, bank: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
    """The best of a block of queries: what was found so far and the best of each block of the bank are merged."""
    values = queries.new_empty((len(queries), 0))
    rows = torch.empty((len(queries), 0), dtype=torch.int64, device=queries.device)
    for start in range(0, len(bank), _BANK):
        part = torch.from_numpy(np.require(bank[start : start + _BANK], requirements="W"))
        block = queries @ part.to(queries.device).T
        columns = _best_columns(block, k)
        values = torch.cat([values, block.gather(1, columns)], dim=1)
        values, order = values.sort(dim=1, descending=True, stable=True)
        rows = torch.cat([rows, columns + start], dim=1).gather(1, order)
        values, rows = values[:, :k], rows[:, :k]
    return rows, values


def _best_columns(block: Tensor, k: int) -> Tensor:
    """Columns of the ``k`` highest values of each row, in ascending order; of equal values the leftmost."""
    if k >= block.shape[1]:
        return torch.arange(block.shape[1], device=block.device).expand(len(block), -1)
    values, columns = block.topk(k + 1)
    columns = columns[:, :k].sort(dim=1).values
    cut = values[:, k - 1] == values[:, k]
    if cut.any():
        columns[cut] = _leftmost(block[cut], values[cut, k, None], k)
    return columns


def _leftmost(block: Tensor, lowest: Tensor, k: int) -> Tensor:
    """Columns of the values above ``lowest``, and of those equal to it from the left, ``k`` in all."""
    above, equal = block > lowest, block == lowest
    place = equal.cumsum(dim=1, dtype=torch.int32)
    chosen = above | (equal & (place <= k - above.sum(dim=1, keepdim=True)))
    return chosen.nonzero()[:, 1].view(-1, k)


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
        case _:
            raise DataError(
                f"weighting is {weighting!r}; expected one of {list(WEIGHTINGS)}.{nearest(weighting, WEIGHTINGS)}"
            )
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
