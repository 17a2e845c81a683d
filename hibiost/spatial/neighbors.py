"""Nearest neighbours by the fused distance of space and embedding (HiBio-ST, eq 7), and the graph they make.

Distances are taken in double precision and rounded twice, to 12 decimals before they are scaled and to 9 decimals
after, so that neighbours do not depend on threads, matrix libraries or the machine. Which pairs are worth that is told
by rough cosines, whose error is bounded, by the distance in space alone, and, for the range of cosines, by places on a
few axes.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from .._products import SINGLE, STRIP, dot, widen
from ..errors import DataError
from . import tiles
from .cosines import cosine_range
from .tiles import Spots, members, spans, tiled, with_progress

_GRID = 1e12
"""Steps per unit, to which ``1 - cosine`` and the distance in space (of the largest one) are rounded."""
_FUSED_GRID = 1e9
"""Steps per unit, to which the fused distance is rounded."""
_WEIGHT_DECIMALS = 6


class _Columns(NamedTuple):
    """Spots that others are compared with, and what makes a rough distance of their rough products."""

    spots: NDArray[np.intp]
    xy: NDArray[np.float32]
    shift: NDArray[np.float32]
    space: np.float32
    feature: np.float32


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
    all pairs i != j; a term that is the same for all pairs is 0.

    Neighbours are exact, and the same on every machine. Cosines are multiplied in bfloat16 where the CPU does so
    natively, in float32 elsewhere; pairs whose rank their error leaves open are computed in double precision. As
    ``D_ij >= alpha * minmax(|x_i - x_j|)``, nothing farther in space than ``D_ik / alpha`` can come before the k-th
    neighbour: tiles of spots beyond that are left out. The range of the cosines is told by groups of like embeddings,
    between which bounds on a few axes rule most pairs out; where embeddings spread along too many axes for that, it
    takes half of all pairs, and time grows with ``n_spots ** 2 * n_dims``. Memory beside arguments and result is the
    embeddings once more, in bfloat16 or float32, about 40 MiB, and 1 MiB for each 400 spots, which PyTorch keeps for
    the shapes of its products. Up to 4,096 spots products are kept, and none is taken twice: at most 32 MiB more in
    bfloat16, 64 in float32.

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
    k = max(0, min(k, n - 1))
    if n < 2:
        return np.empty((n, k), dtype=np.int64), np.empty((n, k))
    spots = tiled(xy, features)
    return _search(spots, _scales(spots, alpha, beta), k)


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


def _check(xy: NDArray, features: NDArray, k: int, alpha: float, beta: float) -> None:
    if features.ndim != 2 or xy.shape != (len(features), 2):
        raise DataError(
            f"xy of shape {xy.shape} and features of shape {features.shape}; expected (n, 2) and (n, dims)."
        )
    for name, values in (("xy", xy), ("features", features)):
        if not np.isfinite([values.min(initial=0), values.max(initial=0)]).all():
            count = np.count_nonzero(~np.isfinite(values))
            raise DataError(f"{name} holds {count} NaN or infinite values; drop or mend these spots.")
    if k < 1:
        raise DataError(f"k is {k}; expected at least one neighbour.")
    if not (0 <= alpha < np.inf and 0 <= beta < np.inf and alpha + beta > 0):
        raise DataError(f"alpha is {alpha} and beta {beta}; expected weights of 0 or more, not both 0.")


def _scales(spots: Spots, alpha: float, beta: float) -> _Scales:
    """Scales from the ranges over all pairs; a range of 0 counts as 1."""
    nearest, farthest = _distance_range(spots.xy)
    lowest, highest = cosine_range(spots)
    space = _GRID / farthest if farthest > 0 else 0.0
    space_low, space_high = np.rint(nearest * space), np.rint(farthest * space)
    feature_low, feature_high = np.rint((1.0 - highest) * _GRID), np.rint((1.0 - lowest) * _GRID)
    return _Scales(
        float(space),
        float(space_low),
        alpha * _FUSED_GRID / ((space_high - space_low) or _GRID),
        float(feature_low),
        beta * _FUSED_GRID / ((feature_high - feature_low) or _GRID),
    )


def _distance_range(xy: NDArray[np.float64]) -> tuple[float, float]:
    """Distance of the nearest and of the farthest two spots; the latter are corners of the convex hull."""
    from scipy.spatial import ConvexHull, KDTree, QhullError
    from scipy.spatial.distance import pdist

    nearest = KDTree(xy).query(xy, k=2)[0][:, 1].min()
    try:
        corners = ConvexHull(xy).vertices
    except QhullError:  # fewer than three spots, or all on a line
        corners = np.concatenate([xy.argmin(axis=0), xy.argmax(axis=0)])
    return float(nearest), float(pdist(xy[corners]).max())


def _search(spots: Spots, scales: _Scales, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k nearest of each spot, tile by tile: each is compared with the others in order of their distance to it."""
    order, rough, bounds = spots.order, spots.rough, spots.bounds
    indices, steps = np.zeros((len(order), k), dtype=np.int64), np.full((len(order), k), np.inf)
    space, feature = (
        scales.space * scales.space_weight / _FUSED_GRID,
        _GRID * scales.feature_weight / _FUSED_GRID,
    )
    shift = -feature * (rough.along - spots.centre)
    base = (
        feature * (1 - rough.along)
        - (scales.space_low * scales.space_weight + scales.feature_low * scales.feature_weight) / _FUSED_GRID
    )
    farthest = space * np.linalg.norm(np.ptp(spots.xy, axis=0))
    error = feature * rough.error(rough) + (scales.space_weight + scales.feature_weight + 2) / _FUSED_GRID
    error += SINGLE * (farthest + np.abs(shift).max() + feature * rough.length * rough.length.max())
    shifts, room = shift.astype(np.float32), rough.room(tiles.TILE, tiles.GROUP * tiles.TILE)
    for tile, (start, stop) in with_progress(list(enumerate(spans(bounds))), len(order), "neighbours"):
        apart = _apart(spots.boxes[tile], spots.boxes)
        sequence = np.argsort(apart, kind="stable")
        own = slice(start, stop)
        best, found = np.full((stop - start, k), np.inf), np.zeros((stop - start, k), dtype=np.int64)
        for first in range(0, len(sequence), tiles.GROUP):
            group = sequence[first : first + tiles.GROUP]
            if apart[group[0]] > _reach(best[:, -1].max(), scales):
                break
            at = members(group, bounds)
            xy = np.ascontiguousarray(spots.rough_xy[:, at])
            columns = _Columns(order[at], xy, shifts[at], np.float32(space), np.float32(feature))
            bits, exact = spots.products(own, at, room), (spots.xy, spots.features, spots.inverse)
            rows = order[own], spots.rough_xy[:, own], base[own], error[own]
            _nearest(bits, *rows, columns, *exact, scales, best, found)
        indices[order[own]], steps[order[own]] = found, best
    return indices, steps / _FUSED_GRID


def _apart(box: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least distance of a point in a box to one in each of the others."""
    gaps = np.maximum(0, np.maximum(boxes[:, 0] - box[1], box[0] - boxes[:, 1]))
    return np.hypot(gaps[:, 0], gaps[:, 1])


def _reach(steps: float, scales: _Scales) -> float:
    """Distance in space beyond which the fused distance is larger, whatever the cosine; two steps for rounding."""
    if scales.space_weight == 0 or scales.space == 0:
        return np.inf
    return ((steps + scales.feature_weight + 2) / scales.space_weight + scales.space_low + 2) / scales.space


@numba.njit(cache=True, fastmath={"afn", "arcp", "contract"})
def _judge(
    bits: np.ndarray,
    place: tuple[np.float32, np.float32],
    xs: np.ndarray,
    ys: np.ndarray,
    shift: np.ndarray,
    weights: tuple[np.float32, np.float32],
    judged: np.ndarray,
) -> None:
    """Rough distances, less ``base``, of a spot to the columns."""
    widen(bits, judged.view(np.uint32))
    for c in range(bits.size):
        dx, dy = place[0] - xs[c], place[1] - ys[c]
        judged[c] = weights[0] * np.sqrt(dx * dx + dy * dy) + shift[c] - weights[1] * judged[c]


@numba.njit(cache=True, inline="always")
def _some(judged: np.ndarray, limit: np.float32) -> bool:
    """Whether one does not exceed the limit."""
    found = False
    for c in range(judged.size):
        found |= judged[c] <= limit
    return found


@numba.njit(cache=True)
def _kth_other(judged: np.ndarray, k: int) -> float:
    """The k-th lowest where one is not to count, or a little more: columns are in lanes, and of each only the best."""
    lanes = np.full(max(STRIP, 4 * k), np.float32(np.inf))
    for start in range(0, judged.size, lanes.size):
        strip = judged[start : start + lanes.size]
        for c in range(strip.size):
            lanes[c] = min(lanes[c], strip[c])
    lowest, at = np.full(k + 1, np.float32(np.inf)), np.zeros(k + 1, dtype=np.int64)
    for c in range(lanes.size):
        _insert(lanes[c], c, lowest, at)
    return lowest[k]


@numba.njit(cache=True)
def _insert(value: float, spot: int, values: np.ndarray, spots: np.ndarray) -> None:
    """Put a value in its place among the ``k`` lowest, of equal ones the spot that stands first; the last falls out."""
    place = values.size
    while place > 0 and (value < values[place - 1] or (value == values[place - 1] and spot < spots[place - 1])):
        if place < values.size:
            values[place], spots[place] = values[place - 1], spots[place - 1]
        place -= 1
    if place < values.size:
        values[place], spots[place] = value, spot


@numba.njit(parallel=True, cache=True)
def _nearest(
    bits: np.ndarray,
    rows: np.ndarray,
    rows_xy: np.ndarray,
    base: np.ndarray,
    error: np.ndarray,
    columns: _Columns,
    xy: np.ndarray,
    features: np.ndarray,
    inverse: np.ndarray,
    scales: _Scales,
    best: np.ndarray,
    found: np.ndarray,
) -> None:
    """Better ``best`` and ``found``, the k nearest of each row, by the columns.

    A pair is computed where its rough distance, less its error, does not exceed the k-th best, nor what the k-th best
    rough one is at most.
    """
    n, k = columns.spots.size, best.shape[1]
    xs, ys, weights = columns.xy[0], columns.xy[1], (columns.space, columns.feature)
    for row in numba.prange(rows.size):
        judged = np.empty(n, dtype=np.float32)
        i, place = rows[row], (rows_xy[0, row], rows_xy[1, row])
        _judge(bits[row], place, xs, ys, columns.shift, weights, judged)
        steps, spots = best[row], found[row]
        limit = np.float32(steps[k - 1] / _FUSED_GRID - base[row] + error[row])
        if limit == np.inf:
            limit = _kth_other(judged, k) + np.float32(2 * error[row])
        for start in range(0, n, STRIP):
            strip = judged[start : start + STRIP]
            if not _some(strip, limit):
                continue
            for c in range(strip.size):
                j = columns.spots[start + c]
                if strip[c] > limit or j == i:
                    continue
                dx, dy = xy[i, 0] - xy[j, 0], xy[i, 1] - xy[j, 1]
                cosine = dot(features[i], features[j]) * inverse[i] * inverse[j]
                apart = np.rint(np.sqrt(dx * dx + dy * dy) * scales.space) - scales.space_low
                unlike = np.rint((1.0 - cosine) * _GRID) - scales.feature_low
                _insert(
                    max(0.0, np.rint(scales.space_weight * apart + scales.feature_weight * unlike)), j, steps, spots
                )
                limit = min(limit, np.float32(steps[k - 1] / _FUSED_GRID - base[row] + error[row]))
