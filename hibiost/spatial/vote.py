"""Smoothing of labels by the vote of neighbouring spots."""

from __future__ import annotations

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
    Memory is about 0.8 kB per spot.

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
    voters = codes[neighbors]
    rows = np.arange(len(codes))
    ballots = np.bincount((rows[:, None] * len(names) + voters).ravel(), minlength=len(codes) * len(names))
    ballots = ballots.reshape(len(codes), len(names))
    keeps = ballots[rows, codes] == ballots.max(axis=1)
    return names[np.where(keeps, codes, ballots.argmax(axis=1))]


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
    rows = np.arange(len(xy))[:, None]
    _, candidates = KDTree(xy).query(xy, k=min(len(xy), k + 1 + _TIED))
    distances = np.square(xy[candidates] - xy[:, None]).sum(axis=2)
    distances[candidates == rows] = np.inf
    order = np.lexsort((candidates, xy[candidates, 0], xy[candidates, 1], distances), axis=1)
    return labels, np.take_along_axis(candidates, order[:, :k], axis=1)
