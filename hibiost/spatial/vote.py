"""Smoothing of labels by the vote of neighbouring spots."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from ..errors import DataError

_TIED = 8
"""Neighbours looked at beyond the k-th, among which equal distances are ordered by position."""


def majority_vote(labels: ArrayLike, xy: ArrayLike, *, k: int = 5) -> NDArray:
    """Give each spot the commonest label among its k nearest spots (HiBio-ST, eq 15, one iteration).

    The neighbours of eq 15 are read as other spots: a spot does not vote on itself. It keeps its own label where
    that is among the winners of a tie; otherwise the smallest winner is taken. Of several spots at equal distance
    those with smaller y, then smaller x, are nearer, so the result does not depend on the order of the spots.
    Memory is some 0.3 kB per spot, at the default ``k``.

    Parameters
    ----------
    labels
        One label per spot, shape (n_spots,), of any type that sorts.
    xy
        Spot centres of one slide, shape (n_spots, 2), in any unit.
    k
        Voters per spot; a slide with fewer other spots uses them all.

    Returns
    -------
    Smoothed labels, shape and dtype of ``labels``.

    Raises
    ------
    DataError
        ``k`` is below 1, the lengths differ, or a coordinate is not finite.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.spatial.majority_vote([0, 0, 1, 0], [[0, 0], [1, 0], [2, 0], [3, 0]], k=2)
    array([0, 0, 0, 0])
    """
    labels, neighbors = labels_and_neighbors(labels, xy, k)
    if len(labels) < 2:
        return labels.copy()
    names, codes = np.unique(labels, return_inverse=True)
    return names[_winners(codes, neighbors)]


def labels_and_neighbors(labels: ArrayLike, xy: ArrayLike, k: int) -> tuple[NDArray, NDArray[np.intp]]:
    """The labels as an array, and the k nearest other spots of each spot (all where there are fewer), checked.

    Neighbours are ordered by distance, y, x and index.
    """
    labels, xy = np.asarray(labels), np.asarray(xy, dtype=np.float64)
    if k < 1:
        raise DataError(f"k is {k}; expected at least one neighbour.")
    if labels.ndim != 1 or xy.shape != (len(labels), 2):
        raise DataError(f"labels of shape {labels.shape} and xy of shape {xy.shape}; expected (n,) and (n, 2).")
    if not np.isfinite(xy).all():
        raise DataError(f"xy holds {int((~np.isfinite(xy)).sum())} NaN or infinite coordinates.")
    k = min(k, len(xy) - 1)
    if k < 1:
        return labels, np.empty((len(xy), 0), dtype=np.intp)
    _, candidates = KDTree(xy).query(xy, k=min(len(xy), k + 1 + _TIED), workers=numba.get_num_threads())
    return labels, _nearest(candidates, xy, k)


@numba.njit(parallel=True, cache=True)
def _nearest(candidates: np.ndarray, xy: np.ndarray, k: int) -> np.ndarray:
    """The k nearest of the candidates of each spot, itself left out, by insertion."""
    n, n_candidates = candidates.shape
    nearest, distances = np.empty((n, k), dtype=np.intp), np.full((n, k), np.inf)
    for spot in numba.prange(n):
        n_found = 0
        for column in range(n_candidates):
            other = candidates[spot, column]
            if other == spot:
                continue
            distance = (xy[other, 0] - xy[spot, 0]) ** 2 + (xy[other, 1] - xy[spot, 1]) ** 2
            place = n_found
            while place > 0 and _is_nearer(distance, other, distances[spot, place - 1], nearest[spot, place - 1], xy):
                if place < k:
                    distances[spot, place], nearest[spot, place] = distances[spot, place - 1], nearest[spot, place - 1]
                place -= 1
            if place < k:
                distances[spot, place], nearest[spot, place] = distance, other
            n_found = min(n_found + 1, k)
    return nearest


@numba.njit(cache=True)
def _is_nearer(distance: float, spot: int, than: float, other: int, xy: np.ndarray) -> bool:
    """Of equal distances, the smaller y, then x, then index."""
    return (distance, xy[spot, 1], xy[spot, 0], spot) < (than, xy[other, 1], xy[other, 0], other)


@numba.njit(parallel=True, cache=True)
def _winners(codes: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """The commonest code among the neighbours of each spot; of several its own, or else the smallest."""
    winners = codes.copy()
    for spot in numba.prange(len(codes)):
        voters = codes[neighbors[spot]]
        most = (voters == codes[spot]).sum()
        for code in voters:
            votes = (voters == code).sum()
            if votes > most or (votes == most and code < winners[spot] != codes[spot]):
                most, winners[spot] = votes, code
    return winners
