"""Nearest neighbours by the fused distance of space and embedding (HiBio-ST, eq 7), and the graph they make.

Distances are taken in double precision and rounded twice, to 12 decimals before they are scaled and to 9 decimals
after, so that neighbours do not depend on threads, matrix libraries or the machine. Which pairs are worth that is told
by rough cosines, whose error is bounded, by the distance in space alone, and, for the range of cosines, by places on a
few axes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from .._products import Bits, RoughRows, dot, widen
from ..errors import DataError
from ..settings import settings
from .projected import ENDS, Projected

if TYPE_CHECKING:
    import torch

TILE = 512
"""Spots at most that are looked at together."""
GROUP = 8
"""Tiles that a tile is compared with at a time."""
_GRID = 1e12
"""Steps per unit, to which ``1 - cosine`` and the distance in space (of the largest one) are rounded."""
_FUSED_GRID = 1e9
"""Steps per unit, to which the fused distance is rounded."""
_WEIGHT_DECIMALS = 6
_STRIP = 256
"""Pairs that are judged at a time."""
_SINGLE = 2.0**-20
"""More than the relative error of a few sums and products in single precision."""
_ONE = 1 - 1e-13
"""Cosines beyond it, or below its negative, are 1 or -1 on the grid."""
_PROBED, _FEW = 8, 1 / 4
"""One group of so many tells whether a pair in so many, at most, may have the least or the greatest cosine."""
_LONG = 50_000
"""Spots from which on progress is shown."""


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


@dataclass
class _Spots:
    """The spots of a slide; ``order``, ``rough`` and ``rough_xy`` tell them tile by tile."""

    xy: NDArray[np.float64]
    features: NDArray[Any]
    inverse: NDArray[np.float64]
    """1 / length of each row of the features; 0 for a row of zeros."""
    order: NDArray[np.intp]
    """The spots, tile by tile."""
    bounds: NDArray[np.intp]
    """Where each tile begins, and where the last one ends."""
    boxes: NDArray[np.float64]
    """Lowest and highest x and y of each tile, n_tiles x 2 x 2."""
    rough: RoughRows
    rough_xy: NDArray[np.float32]
    """2 x n, from the middle of the slide."""
    centre: float
    """Squared length of the centre of the rough rows."""
    kept: NDArray[Any] | None
    """Rough products of all spots, where they are few."""

    def products(self, rows: slice, columns: slice | NDArray[np.intp], room: torch.Tensor) -> Bits:
        """Rough products of some spots with others, those kept or new ones in ``room``."""
        if self.kept is not None:
            return self.kept[rows, columns]
        return self.rough[rows].times(self.rough[columns], room)


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
    spots = _tiled(xy, features)
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


def unit_rows(features: NDArray) -> NDArray[Any]:
    """Rows of length 1, in single precision where they come in it; rows of zeros stay."""
    features = _floats(features)
    return np.multiply(features, _inverse_lengths(features)[:, None], out=np.empty_like(features), casting="same_kind")


def _floats(features: NDArray) -> NDArray[Any]:
    """In single precision what comes in it or in half, all else in double."""
    single = features.dtype in (np.float16, np.float32)
    return np.ascontiguousarray(features, dtype=np.float32 if single else np.float64)


def _inverse_lengths(features: NDArray) -> NDArray[np.float64]:
    squares = np.einsum("ij,ij->i", features, features, dtype=np.float64)
    return np.divide(1, np.sqrt(squares), out=np.zeros(len(features)), where=squares > 0)


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


def _tiled(xy: NDArray[np.float64], features: NDArray) -> _Spots:
    """The spots, with what a search needs beside them."""
    features = _floats(features)
    inverse = _inverse_lengths(features)
    centre = np.einsum("i,ij->j", inverse, features) / len(features)
    tiles = _tiles(xy)
    order = np.concatenate(tiles)
    bounds = np.cumsum([0, *map(len, tiles)])
    middle = (xy.min(axis=0) + xy.max(axis=0)) / 2
    rough = RoughRows.of(features, centre, scale=inverse, order=order)
    return _Spots(
        xy=xy,
        features=features,
        inverse=inverse,
        order=order,
        bounds=bounds,
        boxes=np.array([[xy[tile].min(axis=0), xy[tile].max(axis=0)] for tile in tiles]),
        rough=rough,
        rough_xy=(xy - middle)[order].T.astype(np.float32, order="C"),
        centre=float(centre @ centre),
        kept=_all_products(rough, bounds) if len(tiles) <= GROUP else None,
    )


def _all_products(rough: RoughRows, bounds: NDArray[np.intp]) -> Bits:
    """Rough products of all rows with one another; half are multiplied, the others are their mirror image."""
    n, room = len(rough), rough.room(TILE, len(rough))
    found = np.empty((n, n), dtype=f"i{room.itemsize}")
    for start, stop in _pairs(bounds):
        found[start:stop, start:] = rough[start:stop].times(rough[start:], room)
        found[stop:, start:stop] = found[start:stop, stop:].T
    return found


def _tiles(xy: NDArray[Any]) -> list[NDArray[np.intp]]:
    """Spots in compact groups, by halves along the longest side."""
    parts, tiles = [np.arange(len(xy))], []
    while parts:
        part = parts.pop()
        if len(part) <= TILE:
            tiles.append(part)
            continue
        half = len(part) // 2
        split = np.argpartition(xy[part, np.ptp(xy[part], axis=0).argmax()], half)
        parts += [part[split[half:]], part[split[:half]]]
    return tiles


def _scales(spots: _Spots, alpha: float, beta: float) -> _Scales:
    """Scales from the ranges over all pairs; a range of 0 counts as 1."""
    nearest, farthest = _distance_range(spots.xy)
    lowest, highest = _cosine_range(spots)
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


def _cosine_range(spots: _Spots) -> tuple[float, float]:
    """Least and greatest cosine of two spots."""
    found = _CosineRange(spots)
    if spots.kept is not None or not found.among_few():
        found.among_all()
    return found.low, found.high


class _CosineRange:
    """Least and greatest cosine of the pairs of spots that were compared."""

    def __init__(self, spots: _Spots) -> None:
        self.spots, self.low, self.high = spots, np.inf, -np.inf
        self.room = spots.rough.room(max(TILE, ENDS), GROUP * TILE)

    def among_all(self) -> None:
        """Compare all pairs, tile by tile."""
        spots, order, rough = self.spots, self.spots.order, self.spots.rough
        for start, stop in _with_progress(_pairs(spots.bounds), len(order), "range of cosines"):
            # kept products are looked at by whole rows, which lie in one piece
            for first in range(start if spots.kept is None else 0, len(order), GROUP * TILE):
                own, to = slice(start, stop), slice(first, first + GROUP * TILE)
                rows, columns = (order[own], rough[own]), (order[to], rough[to])
                self._compare(spots.products(own, to, self.room), rows, columns, spots.centre, start + 1 - first)

    def among_few(self) -> bool:
        """Compare the pairs whose cosine may be the least or the greatest, unless those are too many; say which.

        Groups of like embeddings, each by itself, and the ends of the axes tell nearly the whole range. Then each group
        is compared with the spots of later ones that may have a cosine beyond it.
        """
        n, projected = len(self.spots.order), Projected.of(self.spots.features, self.spots.inverse)
        groups = _tiles(projected.places[:-1].T)
        order, bounds = np.concatenate(groups), _pairs(np.cumsum([0, *map(len, groups)]))
        for group in [projected.ends(), *groups[::_PROBED]]:
            self._compare_like(group, group, 1)
        projected = projected[order]
        left = sum(len(projected.rivals(*group, *self._open())) for group in bounds[::_PROBED])
        if left > _FEW * sum(n - stop for _, stop in bounds[::_PROBED]):
            return False
        for group in groups:
            self._compare_like(group, group, 1)
        for start, stop in _with_progress(bounds, n, "range of cosines"):
            rivals = order[projected.rivals(start, stop, *self._open())]
            whole = np.pad(rivals, (0, -len(rivals) % TILE), mode="edge")  # of each new shape oneDNN keeps a kernel
            self._compare_like(order[start:stop], whole, -TILE)
        return True

    def _open(self) -> tuple[float, float]:
        """The range, without an end beyond which there is nothing."""
        return self.low if self.low > -_ONE else -np.inf, self.high if self.high < _ONE else np.inf

    def _compare_like(self, group: NDArray[np.intp], others: NDArray[np.intp], ahead: int) -> None:
        """Compare, having taken the centre of the group away, which leaves little of like rows, and little error."""
        features, inverse = self.spots.features, self.spots.inverse
        centre = inverse[group] @ features[group] / len(group)
        rows = group, RoughRows.of(features, centre, scale=inverse, order=group)
        for first in range(0, len(others), GROUP * TILE):
            part = others[first : first + GROUP * TILE]
            columns = part, RoughRows.of(features, centre, scale=inverse, order=part)
            bits = rows[1].times(columns[1], self.room)
            self._compare(bits, rows, columns, float(centre @ centre), ahead - first)

    def _compare(
        self,
        bits: Bits,
        rows: tuple[NDArray[np.intp], RoughRows],
        columns: tuple[NDArray[np.intp], RoughRows],
        centre: float,
        ahead: int,
    ) -> None:
        """Compare each row with the columns from ``ahead + row`` on; ``centre`` is the squared length of theirs."""
        (spots, own), (others, bank) = rows, columns
        farthest = max(np.abs(own.along).max(), np.abs(bank.along).max())
        error = own.error(bank) + _SINGLE * (farthest + centre + own.length * bank.length.max())
        shift = (bank.along - centre).astype(np.float32)
        exact = self.spots.features, self.spots.inverse, self.low, self.high
        self.low, self.high = _extremes(bits, spots, own.along, error, ahead, others, shift, *exact)


@numba.njit(cache=True, inline="always")
def _beyond(low: float, high: float, along: float, error: float) -> tuple[np.float32, np.float32]:
    """Rough cosines that may be a new extreme: up to the first, from the second on."""
    below = np.float32(low - along + error) if low > -_ONE else np.float32(-np.inf)
    return below, np.float32(high - along - error) if high < _ONE else np.float32(np.inf)


@numba.njit(parallel=True, cache=True)
def _extremes(
    bits: np.ndarray,
    rows: np.ndarray,
    along: np.ndarray,
    error: np.ndarray,
    ahead: int,
    columns: np.ndarray,
    shift: np.ndarray,
    features: np.ndarray,
    inverse: np.ndarray,
    low: float,
    high: float,
) -> tuple[float, float]:
    """The range of cosines, ``low`` to ``high`` so far, of each row with the columns from ``ahead + row`` on.

    A cosine is computed where its rough value, ``along + bits + shift``, lies within its error of a new extreme.
    """
    lows, highs = np.full(rows.size, low), np.full(rows.size, high)
    for row in numba.prange(rows.size):
        wide, judged = np.empty(_STRIP, dtype=np.uint32), np.empty(_STRIP, dtype=np.float32)
        rough = wide.view(np.float32)
        below, above = _beyond(low, high, along[row], error[row])
        for start in range(max(0, ahead + row), columns.size, _STRIP):
            strip, shifts = bits[row, start : start + _STRIP], shift[start : start + _STRIP]
            widen(strip, wide)
            for c in range(strip.size):
                judged[c] = rough[c] + shifts[c]
            found = False
            for c in range(strip.size):
                found |= (judged[c] <= below) | (judged[c] >= above)
            if not found:
                continue
            for c in range(strip.size):
                if judged[c] <= below or judged[c] >= above:
                    i, j = min(rows[row], columns[start + c]), max(rows[row], columns[start + c])
                    cosine = dot(features[i], features[j]) * inverse[i] * inverse[j]
                    lows[row], highs[row] = min(lows[row], cosine), max(highs[row], cosine)
                    below, above = _beyond(lows[row], highs[row], along[row], error[row])
    return lows.min(), highs.max()


def _search(spots: _Spots, scales: _Scales, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
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
    error += _SINGLE * (farthest + np.abs(shift).max() + feature * rough.length * rough.length.max())
    shifts, room = shift.astype(np.float32), rough.room(TILE, GROUP * TILE)
    for tile, (start, stop) in _with_progress(list(enumerate(_pairs(bounds))), len(order), "neighbours"):
        apart = _apart(spots.boxes[tile], spots.boxes)
        sequence = np.argsort(apart, kind="stable")
        own = slice(start, stop)
        best, found = np.full((stop - start, k), np.inf), np.zeros((stop - start, k), dtype=np.int64)
        for first in range(0, len(sequence), GROUP):
            group = sequence[first : first + GROUP]
            if apart[group[0]] > _reach(best[:, -1].max(), scales):
                break
            at = _members(group, bounds)
            xy = np.ascontiguousarray(spots.rough_xy[:, at])
            columns = _Columns(order[at], xy, shifts[at], np.float32(space), np.float32(feature))
            bits, exact = spots.products(own, at, room), (spots.xy, spots.features, spots.inverse)
            rows = order[own], spots.rough_xy[:, own], base[own], error[own]
            _nearest(bits, *rows, columns, *exact, scales, best, found)
        indices[order[own]], steps[order[own]] = found, best
    return indices, steps / _FUSED_GRID


def _pairs(bounds: NDArray[np.intp]) -> list[tuple[int, int]]:
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


def _members(tiles: NDArray[np.intp], bounds: NDArray[np.intp]) -> slice | NDArray[np.intp]:
    """Where the spots of some tiles stand; those of all tiles in their own order."""
    if len(tiles) == len(bounds) - 1:
        return slice(0, int(bounds[-1]))
    return np.concatenate([np.arange(bounds[tile], bounds[tile + 1]) for tile in tiles])


def _with_progress(tiles: Sequence[Any], n_spots: int, desc: str) -> Iterable[Any]:
    from tqdm.auto import tqdm

    return tqdm(tiles, desc=desc, unit="tile", leave=False, disable=n_spots < _LONG or not settings.progress)


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
    lanes = np.full(max(_STRIP, 4 * k), np.float32(np.inf))
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
        for start in range(0, n, _STRIP):
            strip = judged[start : start + _STRIP]
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
