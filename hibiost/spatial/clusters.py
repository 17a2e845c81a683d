"""K-means, all restarts at once.

Rows are put on a grid on which dot products of rows, and sums of a cluster, are exact in double precision. Distances
to centres are taken in single precision, by one matrix product for all restarts; where the nearest centre is not
certain beyond the error bound of such a product, in double precision. So labels do not depend on threads, matrix
libraries or the machine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from .._random import RNG, seed
from ..errors import DataError
from .regions import by_falling_size

BLOCK_BYTES = 32 << 20
"""Products held at a time."""
BATCH_BYTES = 256 << 20
"""What restarts that advance together hold."""
TOLERANCE = 1e-6
"""A restart ends where its centres shift less than this, squared and summed, in units of the variance of the rows."""
_GRID_BITS = 24
"""The longest row measures at most 2 ** 24 steps of the grid; single precision holds such integers."""
_TIE = 2.0**-16
"""Steps by which one centre must be nearer than another."""
_HUGE = 1e150
"""Beyond this, squares overflow."""
_STRIP = 1024
"""Rows that a thread assigns at a time."""
_SINGLE = 2.0**-24
"""Rounding error of single precision."""


class Clusters(NamedTuple):
    """What :func:`kmeans` finds."""

    labels: NDArray[np.int64]
    """Cluster of each row, (n_rows,); 0 is the largest."""
    inertia: float
    """Sum of squared distances of rows to their centres."""
    centers: NDArray[np.float64]
    """Mean of each cluster, n_clusters x n_dims."""


class _Grid(NamedTuple):
    """Rows about their mean, in steps of the grid: ``features = (rows + offset) / scale``."""

    rows: NDArray[np.float32]
    offset: NDArray[np.float64]
    scale: float
    squares: NDArray[np.float64]
    """Squared length of each row."""


class _Restarts(NamedTuple):
    """Where restarts stand."""

    labels: NDArray[np.int32]
    """n_restarts x n_rows; -1 before the first iteration."""
    centers: NDArray[np.float64]
    """n_restarts x n_clusters x n_dims."""
    sums: NDArray[np.float64]
    """Of the rows of each cluster."""
    sizes: NDArray[np.int64]
    """Rows of each cluster, n_restarts x n_clusters."""


def kmeans(features: ArrayLike, n_clusters: int, *, n_init: int = 50, max_iter: int = 500, rng: RNG = 0) -> Clusters:
    """The tightest of several K-means clusterings by Lloyd's algorithm, from greedy k-means++ starts.

    All restarts advance together, until their centres all but stand; the tightest goes on until no label changes.
    Each draws from a stream of its own, so it finds the same whatever ``n_init``. An empty cluster gets the row that is
    farthest from its centre, as in scikit-learn. Features are first rounded to 2^-24 of the longest row about the
    mean, and distances that differ by less than 1e-12 of it are equal: the lower cluster wins. Labels are the same
    on every machine and number of threads.

    Memory beside the arguments is a single-precision copy of ``features``, and at most about 0.5 GiB, or, where that
    is more, what one restart needs: some 50 bytes a row and as many a centre and dimension.

    Parameters
    ----------
    features
        Dense, n_rows x n_dims.
    n_clusters
        Number of clusters.
    n_init
        Restarts, of which the one of least inertia is kept; the first where several are.
    max_iter
        Iterations at most, of each restart and once more of the tightest.
    rng
        Seed or generator.

    Returns
    -------
    ``labels`` (int64, numbered by falling size; of equal sizes the one whose first row comes first), ``inertia`` and
    ``centers`` (float64, in this order).

    Raises
    ------
    DataError
        Features are not such a table of finite numbers, a number is below 1, or there are fewer distinct rows than
        ``n_clusters``.

    Examples
    --------
    >>> import hibiost as hb
    >>> found = hb.spatial.kmeans([[0.0], [9.0], [10.0], [11.0]], 2)
    >>> found.labels.tolist(), found.inertia, found.centers.ravel().tolist()
    ([1, 0, 0, 0], 2.0, [10.0, 0.0])
    """
    features = np.asarray(features)
    _check(features, n_clusters, n_init, max_iter)
    grid = _grid(features)
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed(rng)).spawn(n_init)]
    size = max(1, BATCH_BYTES // _bytes_of_restart(len(features), features.shape[1], n_clusters))
    batches = (streams[start : start + size] for start in range(0, n_init, size))
    best = max((_tightest(grid, n_clusters, batch, max_iter) for batch in batches), key=lambda one: _gains(one)[0])
    _lloyd(grid, best, max_iter, least_shift=0.0)
    labels = by_falling_size(best.labels[0])
    centers = np.empty_like(best.centers[0])
    centers[labels] = ((best.centers[0] + grid.offset) / grid.scale)[best.labels[0]]
    return Clusters(labels, _inertia(features, labels, centers), centers)


def _check(features: NDArray, n_clusters: int, n_init: int, max_iter: int) -> None:
    if features.ndim != 2 or features.dtype.kind not in "biuf":
        raise DataError(f"features are {features.dtype} of shape {features.shape}; expected numbers, n_rows x n_dims.")
    for name, value in (("n_clusters", n_clusters), ("n_init", n_init), ("max_iter", max_iter)):
        if value < 1:
            raise DataError(f"{name} is {value}; expected at least 1.")
    if len(features) < n_clusters:
        raise DataError(f"features hold {len(features)} rows; expected at least n_clusters = {n_clusters}.")
    wrong = sum(int((~(np.abs(features[block], dtype=np.float64) < _HUGE)).sum()) for block in _blocks(*features.shape))
    if wrong:
        raise DataError(f"features hold {wrong} values that are NaN, infinite or beyond {_HUGE:g}; drop these rows.")


def _blocks(n: int, dims: int) -> Iterator[slice]:
    """Slices of rows of as many numbers in double precision."""
    size = max(1, BLOCK_BYTES // (8 * dims or 1))
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def _n_trials(n_clusters: int) -> int:
    """Candidates for a next centre, as in scikit-learn."""
    return 2 + int(np.log(n_clusters))


def _bytes_of_restart(n: int, dims: int, n_clusters: int) -> int:
    return 8 * n * (_n_trials(n_clusters) + 3) + 48 * n_clusters * dims


def _grid(features: NDArray) -> _Grid:
    """Rows on the grid, whose step is a power of two, so that integers stay as far apart as they are."""
    n, dims = features.shape
    blocks = list(_blocks(n, dims))
    mean = features.mean(axis=0, dtype=np.float64)
    longest = np.sqrt(max(np.square(features[block] - mean).sum(axis=1).max() for block in blocks))
    scale = float(np.ldexp(1.0, _GRID_BITS - np.frexp(longest)[1]))
    offset = np.rint(mean * scale)
    rows, squares = np.empty((n, dims), dtype=np.float32), np.empty(n)
    for block in blocks:
        steps = np.rint(features[block].astype(np.float64) * scale) - offset
        rows[block], squares[block] = steps, np.square(steps).sum(axis=1)
    return _Grid(rows, offset, scale, squares)


def _plus_plus(grid: _Grid, n_clusters: int, streams: list[np.random.Generator]) -> NDArray[np.int64]:
    """Rows to start from, n_restarts x n_clusters, by greedy k-means++; all distances are exact."""
    restarts = np.arange(len(streams))
    seeds = np.empty((len(streams), n_clusters), dtype=np.int64)
    seeds[:, 0] = [stream.integers(len(grid.rows)) for stream in streams]
    draws = np.array([stream.random((n_clusters - 1, _n_trials(n_clusters))) for stream in streams])
    nearest = np.full((len(streams), len(grid.rows)), np.inf)
    nearest = _lowered(grid, seeds[:, :1], nearest)[0][:, 0]
    for cluster in range(1, n_clusters):
        if (nearest.max(axis=1) == 0).any():
            raise DataError(f"features hold {cluster} distinct rows; expected at least n_clusters = {n_clusters}.")
        heights = np.cumsum(nearest, axis=1)
        drawn = draws[:, cluster - 1] * heights[:, -1:]
        candidates = np.stack([np.searchsorted(*each, side="right") for each in zip(heights, drawn, strict=True)])
        lowered, totals = _lowered(grid, candidates, nearest)
        best = totals.argmin(axis=1)
        seeds[:, cluster], nearest = candidates[restarts, best], lowered[restarts, best]
    return seeds


def _lowered(
    grid: _Grid, candidates: NDArray[np.int64], nearest: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Squared distances to the nearest centre with each candidate, n_restarts x n_trials x n_rows, and their sums."""
    n, dims = grid.rows.shape
    centers = grid.rows[candidates.ravel()].astype(np.float64)
    products = np.empty((len(centers), n))
    for block in _blocks(n, dims):
        np.matmul(centers, grid.rows[block].astype(np.float64).T, out=products[:, block])
    lowered = products.reshape(*candidates.shape, n)
    return lowered, _lower(lowered, candidates, nearest, grid.squares)


@numba.njit(parallel=True, cache=True)
def _lower(products: np.ndarray, candidates: np.ndarray, nearest: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """Turn products of rows and candidates into distances to the nearest centre; their sums."""
    n_restarts, n_trials, n = products.shape
    totals = np.zeros((n_restarts, n_trials))
    for restart in numba.prange(n_restarts):
        for trial in range(n_trials):
            own, total = squares[candidates[restart, trial]], 0.0
            for row in range(n):
                distance = own + squares[row] - 2 * products[restart, trial, row]
                products[restart, trial, row] = min(distance, nearest[restart, row])
                total += products[restart, trial, row]
            totals[restart, trial] = total
    return totals


def _tightest(grid: _Grid, n_clusters: int, streams: list[np.random.Generator], max_iter: int) -> _Restarts:
    """The best of as many restarts."""
    state = _begin(grid, _plus_plus(grid, n_clusters, streams))
    _lloyd(grid, state, max_iter, least_shift=TOLERANCE * grid.squares.mean())
    one = [int(_gains(state).argmax())]
    return _Restarts(state.labels[one], state.centers[one], state.sums[one], state.sizes[one])


def _begin(grid: _Grid, seeds: NDArray[np.int64]) -> _Restarts:
    centers = grid.rows[seeds].astype(np.float64)
    labels = np.full((len(seeds), len(grid.rows)), -1, dtype=np.int32)
    return _Restarts(labels, centers, np.zeros_like(centers), np.zeros(seeds.shape, dtype=np.int64))


def _lloyd(grid: _Grid, state: _Restarts, max_iter: int, *, least_shift: float) -> None:
    """Lloyd's iterations, each restart until no label changes or its centres shift no more than that, squared.

    Threads take a block of rows each, products and all: those of BLAS and of numba would wait for each other.
    """
    n, dims = grid.rows.shape
    lengths = np.sqrt(grid.squares)
    active = np.arange(len(state.sizes))
    found = np.empty((len(active), n), dtype=np.int32)
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(numba.get_num_threads()) as pool:
        for _ in range(max_iter):
            old, labels = state.centers[active], found[: len(active)]
            single = old.astype(np.float32).reshape(-1, dims)
            half = np.square(old).sum(axis=2) / 2

            def assign(start: int, old: NDArray = old, single: NDArray = single, half: NDArray = half) -> None:
                rows = grid.rows[start : start + _STRIP]
                products = (single @ rows.T).reshape(*half.shape, -1)
                _assign(products, half, old, rows, lengths[start : start + _STRIP], found[: len(half)], start)

            deque(pool.map(assign, range(0, n, _STRIP)), maxlen=0)
            moved = np.array(list(pool.map(partial(_move_all, grid.rows, state), labels, active)))
            for restart in active[(state.sizes[active] == 0).any(axis=1)]:
                _fill_empty(grid.rows, restart, state)
            state.centers[active] = state.sums[active] / state.sizes[active][:, :, None]
            shifts = np.square(state.centers[active] - old).sum(axis=(1, 2))
            active = active[moved & (shifts > least_shift)]
            if not len(active):
                break


@numba.njit(nogil=True, cache=True)
def _assign(
    products: np.ndarray,
    half: np.ndarray,
    centers: np.ndarray,
    rows: np.ndarray,
    lengths: np.ndarray,
    labels: np.ndarray,
    start: int,
) -> None:
    """Write the nearest centre of rows from ``start`` on: by products, or by distances where these may deceive.

    ``|row - center| ** 2 / 2`` less ``|row| ** 2 / 2`` is taken in single precision. Its error is at most
    ``(dims + 3) * u * |row| * |center| + 2 * u * |center| ** 2``, with a tenth for terms of higher order.
    """
    n_restarts, n_clusters, n = products.shape
    for restart in range(n_restarts):
        own = half[restart].astype(np.float32)
        farthest = np.sqrt(2 * half[restart].max())
        per_length = 2.2 * (rows.shape[1] + 3) * _SINGLE * farthest + _TIE
        least = 4.4 * _SINGLE * farthest**2 + _TIE * farthest
        best, lowest, second = _two_nearest(products[restart], own)
        for row in range(n):
            limit = lowest[row] + per_length * lengths[row] + least
            if second[row] <= limit:
                distance = np.inf
                for cluster in range(n_clusters):
                    if own[cluster] - products[restart, cluster, row] <= limit:
                        other = _distance(rows[row], centers[restart, cluster])
                        if other < distance - _TIE:
                            best[row], distance = cluster, other
            labels[restart, start + row] = best[row]


@numba.njit(nogil=True, cache=True)
def _move_all(rows: np.ndarray, state: _Restarts, labels: np.ndarray, restart: int) -> bool:
    """Give all rows the labels found for them in a restart; whether one is new."""
    moved, old = False, state.labels[restart]
    for row in range(labels.size):
        if labels[row] != old[row]:
            _move(rows[row], old[row], labels[row], state.sums[restart], state.sizes[restart])
            old[row] = labels[row]
            moved = True
    return moved


@numba.njit(cache=True)
def _two_nearest(products: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest centre of each row, its score and that of the next; one centre after the other, without branches."""
    n_clusters, n = products.shape
    best = np.zeros(n, dtype=np.int32)
    lowest, second = np.full(n, np.inf, dtype=np.float32), np.full(n, np.inf, dtype=np.float32)
    for cluster in range(n_clusters):
        for row in range(n):
            score, low, next_low = half[cluster] - products[cluster, row], lowest[row], second[row]
            loser = low if score < low else score
            second[row] = loser if loser < next_low else next_low
            best[row] = cluster if score < low else best[row]
            lowest[row] = score if score < low else low
    return best, lowest, second


@numba.njit(cache=True)
def _square(row: np.ndarray) -> float:
    total = 0.0
    for value in row:
        total += value * value
    return total


@numba.njit(cache=True)
def _distance(row: np.ndarray, center: np.ndarray) -> float:
    total = 0.0
    for dim in range(len(row)):
        total += (row[dim] - center[dim]) ** 2
    return np.sqrt(total)


@numba.njit(cache=True)
def _move(row: np.ndarray, old: int, new: int, sums: np.ndarray, sizes: np.ndarray) -> None:
    """Take a row from a cluster (-1: none) to another; sums are of integers, so exact."""
    if old >= 0:
        sizes[old] -= 1
        for dim in range(len(row)):
            sums[old, dim] -= row[dim]
    sizes[new] += 1
    for dim in range(len(row)):
        sums[new, dim] += row[dim]


@numba.njit(cache=True)
def _fill_empty(rows: np.ndarray, restart: int, state: _Restarts) -> None:
    """Give each empty cluster the row farthest from its centre, from a cluster of several."""
    labels, sizes = state.labels[restart], state.sizes[restart]
    distances = np.empty(len(rows))
    for row in range(len(rows)):
        distances[row] = _distance(rows[row], state.centers[restart, labels[row]])
    for cluster in range(len(sizes)):
        if sizes[cluster] > 0:
            continue
        farthest = -1
        for row in range(len(rows)):
            if sizes[labels[row]] > 1 and (farthest < 0 or distances[row] > distances[farthest]):
                farthest = row
        _move(rows[farthest], labels[farthest], cluster, state.sums[restart], sizes)
        labels[farthest], distances[farthest] = cluster, 0.0


@numba.njit(cache=True)
def _gains(state: _Restarts) -> np.ndarray:
    """What the centres of each restart take off the sum of squares, added in one order on every machine."""
    n_restarts, n_clusters = state.sizes.shape
    gains = np.zeros(n_restarts)
    for restart in range(n_restarts):
        for cluster in range(n_clusters):
            gains[restart] += _square(state.sums[restart, cluster]) / state.sizes[restart, cluster]
    return gains


def _inertia(features: NDArray, labels: NDArray[np.int64], centers: NDArray[np.float64]) -> float:
    blocks = _blocks(*features.shape)
    return float(sum(np.square(features[block] - centers[labels[block]]).sum() for block in blocks))
