"""Nearest neighbours by the fused distance of space and embedding (HiBio-ST, eq 7), and the graph they make.

Cosines and distances are taken in double precision and rounded twice, to 12 decimals before they are scaled and to 9
decimals after, so that neighbours do not depend on threads, matrix libraries or the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from ..errors import DataError

BLOCK_BYTES = 32 << 20
"""Similarities held at a time."""
_GRID = 1e12
"""Steps per unit, to which ``1 - cosine`` and the distance in space (of the largest one) are rounded."""
_FUSED_GRID = 1e9
"""Steps per unit, to which the fused distance is rounded."""
_WEIGHT_DECIMALS = 6


class _Scales(NamedTuple):
    """Turns a distance in pixels and a cosine into steps of the fused grid."""

    space: float
    space_low: float
    space_weight: float
    feature_low: float
    feature_weight: float


def fused_neighbors(
    xy: ArrayLike, features: ArrayLike, *, k: int = 15, alpha: float = 0.5, beta: float = 0.5
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k nearest other spots of each spot of one slide by the fused distance (HiBio-ST, eq 7).

    ``D_ij = alpha * minmax(|x_i - x_j|) + beta * minmax(1 - cos(v_i, v_j))``, each term scaled by its own range over
    all pairs i != j; a term that is the same for all pairs is 0. Neighbours are exact: all pairs are looked at, in time
    ``n_spots ** 2 * n_dims``. Memory beside the arguments is a double-precision copy of ``features`` and a block of
    similarities of 32 MiB.

    Parameters
    ----------
    xy
        Spot centres, n_spots x 2, in any unit.
    features
        Embeddings, n_spots x n_dims; rows are l2-normalised here. A row of zeros has cosine 0 with every other.
    k
        Neighbours per spot; a slide with fewer other spots uses them all.
    alpha, beta
        Weights of the spatial and of the embedding term.

    Returns
    -------
    Indices (int64) and distances (float64, rounded to 9 decimals) of the neighbours, each n_spots x k, nearest first;
    of equal distances the spot that stands first.

    Raises
    ------
    DataError
        Shapes that do not fit, NaN or infinite values, ``k`` below 1, or weights that are negative or both 0.

    Examples
    --------
    >>> import hibiost as hb
    >>> xy, features = [[0, 0], [1, 0], [2, 0]], [[1, 0], [1, 0], [0, 1]]
    >>> indices, distances = hb.spatial.fused_neighbors(xy, features, k=1)
    >>> indices.ravel().tolist(), distances.ravel().tolist()
    ([1, 0, 1], [0.0, 0.0, 0.5])
    """
    xy, features = np.array(xy, dtype=np.float64, order="C"), np.asarray(features)
    _check(xy, features, k, alpha, beta)
    n = len(xy)
    k = min(k, n - 1)
    indices, distances = np.empty((n, k), dtype=np.int64), np.empty((n, k))
    if n > 1:
        unit = unit_rows(features)
        scales = _scales(unit, xy, alpha, beta)
        for block in _blocks(n):
            indices[block], distances[block] = _nearest(unit[block] @ unit.T, xy, block.start, k, scales)
    return indices, distances


def region_graph(indices: NDArray[np.int64], distances: NDArray[np.float64]) -> sparse.csr_matrix:
    """Symmetric graph of nearest neighbours with weights ``exp(-D)`` (HiBio-ST, section 2.3).

    Two spots are joined where either is a neighbour of the other.

    Parameters
    ----------
    indices, distances
        Neighbours of each spot, n_spots x k, as :func:`fused_neighbors` gives them.

    Returns
    -------
    CSR float64, n_spots x n_spots, weights rounded to 6 decimals.

    Raises
    ------
    DataError
        The shapes differ.

    Examples
    --------
    >>> import hibiost as hb, numpy as np
    >>> hb.spatial.region_graph(np.array([[1], [0], [1]]), np.zeros((3, 1))).toarray().tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    if indices.ndim != 2 or indices.shape != distances.shape:
        raise DataError(
            f"indices of shape {indices.shape} and distances of shape {distances.shape}; expected two n x k."
        )
    n, k = indices.shape
    weights = np.exp(-distances.ravel()).round(_WEIGHT_DECIMALS)
    graph = sparse.csr_matrix((weights, indices.ravel(), np.arange(n + 1) * k), shape=(n, n))
    return graph.maximum(graph.T).tocsr()


def unit_rows(features: NDArray) -> NDArray[np.float64]:
    """Rows of length 1, double precision; rows of zeros stay."""
    features = features.astype(np.float64, order="C")
    length = np.sqrt(np.einsum("ij,ij->i", features, features))[:, None]
    return np.divide(features, length, out=features, where=length > 0)


def _check(xy: NDArray, features: NDArray, k: int, alpha: float, beta: float) -> None:
    if features.ndim != 2 or xy.shape != (len(features), 2):
        raise DataError(
            f"xy of shape {xy.shape} and features of shape {features.shape}; expected (n, 2) and (n, dims)."
        )
    for name, values in (("xy", xy), ("features", features)):
        finite = np.isfinite(values)
        if not finite.all():
            raise DataError(f"{name} holds {int((~finite).sum())} NaN or infinite values; drop or mend these spots.")
    if k < 1:
        raise DataError(f"k is {k}; expected at least one neighbour.")
    if not (0 <= alpha < np.inf and 0 <= beta < np.inf and alpha + beta > 0):
        raise DataError(f"alpha is {alpha} and beta {beta}; expected weights of 0 or more, not both 0.")


def _blocks(n: int) -> Iterator[slice]:
    rows = max(1, BLOCK_BYTES // (8 * n))
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def _scales(unit: NDArray[np.float64], xy: NDArray[np.float64], alpha: float, beta: float) -> _Scales:
    """Scales from the ranges over all pairs; a range of 0 counts as 1."""
    found = np.concatenate(
        [_extremes(unit[block] @ unit[block.start :].T, xy, block.start) for block in _blocks(len(xy))]
    )
    nearest, farthest = np.sqrt(found[:, 0].min()), np.sqrt(found[:, 1].max())
    space = _GRID / farthest if farthest > 0 else 0.0
    space_low, space_high = np.rint(nearest * space), np.rint(farthest * space)
    feature_low = np.rint((1.0 - found[:, 3].max()) * _GRID)
    feature_high = np.rint((1.0 - found[:, 2].min()) * _GRID)
    return _Scales(
        float(space),
        float(space_low),
        alpha * _FUSED_GRID / ((space_high - space_low) or _GRID),
        float(feature_low),
        beta * _FUSED_GRID / ((feature_high - feature_low) or _GRID),
    )


@numba.njit(parallel=True, cache=True)
def _extremes(cosines: np.ndarray, xy: np.ndarray, start: int) -> np.ndarray:
    """Per row: least and greatest squared distance, and cosine, to the later spots; columns begin at ``start``."""
    found = np.empty((cosines.shape[0], 4))
    for row in numba.prange(cosines.shape[0]):
        near, far, low, high = np.inf, -np.inf, np.inf, -np.inf
        for column in range(row + 1, cosines.shape[1]):
            dx = xy[start + row, 0] - xy[start + column, 0]
            dy = xy[start + row, 1] - xy[start + column, 1]
            squared = dx * dx + dy * dy
            near, far = min(near, squared), max(far, squared)
            low, high = min(low, cosines[row, column]), max(high, cosines[row, column])
        found[row] = near, far, low, high
    return found


@numba.njit(parallel=True, cache=True)
def _nearest(cosines: np.ndarray, xy: np.ndarray, start: int, k: int, scales: _Scales) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of each row by insertion: columns come in order, so an equal distance stays behind."""
    n_rows, n = cosines.shape
    indices, distances = np.empty((n_rows, k), dtype=np.int64), np.full((n_rows, k), np.inf)
    for row in numba.prange(n_rows):
        nearest, spots = distances[row], indices[row]
        for column in range(n):
            dx, dy = xy[start + row, 0] - xy[column, 0], xy[start + row, 1] - xy[column, 1]
            space = np.rint(np.sqrt(dx * dx + dy * dy) * scales.space) - scales.space_low
            feature = np.rint((1.0 - cosines[row, column]) * _GRID) - scales.feature_low
            fused = max(0.0, np.rint(scales.space_weight * space + scales.feature_weight * feature))
            if fused < nearest[k - 1] and column != start + row:
                place = k - 1
                while place > 0 and fused < nearest[place - 1]:
                    nearest[place], spots[place] = nearest[place - 1], spots[place - 1]
                    place -= 1
                nearest[place], spots[place] = fused, column
        nearest /= _FUSED_GRID
    return indices, distances
