"""Majority vote: hibiost beside a squidpy graph and a matrix of all distances, on synthetic slides.

Run ``python benchmarks/vote.py [n_spots ...]``; without sizes the table is written into ``docs/speed``.
"""

from __future__ import annotations

import sys

import numpy as np
import squidpy as sq
from _bench import Table
from anndata import AnnData
from scipy.spatial.distance import cdist

import hibiost as hb

SIZES, N_LABELS, K = (4_000, 500_000), 7, 5
WHOLE_MATRIX = 4_000
"""Spots up to which all distances are taken."""
OURS = "hb.spatial.majority_vote"


def synthetic(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and a hexagonal slide, whose spots sit a little off the grid, so that no two are as near."""
    rng = np.random.default_rng(0)
    row, column = np.divmod(np.arange(n), int(np.ceil(np.sqrt(n))))
    xy = np.stack([column + 0.5 * (row % 2), row * np.sqrt(0.75)], axis=1) * 100.0
    return rng.integers(N_LABELS, size=n), xy + rng.normal(0, 3, xy.shape)


def commonest(labels: np.ndarray, ballots: np.ndarray) -> np.ndarray:
    """The label of most votes; of several a spot's own, or else the smallest."""
    own = ballots[np.arange(len(labels)), labels] == ballots.max(axis=1)
    return np.where(own, labels, ballots.argmax(axis=1))


def with_squidpy(labels: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Votes by the product of squidpy's graph of neighbours and one-hot labels."""
    adata = AnnData(np.zeros((len(xy), 0)), obsm={"spatial": xy})
    sq.gr.spatial_neighbors_knn(adata, n_neighs=K)
    return commonest(labels, adata.obsp["spatial_connectivities"] @ np.eye(N_LABELS)[labels])


def with_cdist(labels: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Votes by all distances."""
    distances = cdist(xy, xy)
    np.fill_diagonal(distances, np.inf)
    nearest = np.argpartition(distances, K, axis=1)[:, :K]
    return commonest(labels, np.eye(N_LABELS)[labels[nearest]].sum(axis=1))


def measure(table: Table, n: int) -> None:
    """One size; all ways agree."""
    labels, xy = synthetic(n)
    ways = {
        OURS: lambda: hb.spatial.majority_vote(labels, xy, k=K),
        "squidpy graph, one-hot product": lambda: with_squidpy(labels, xy),
    }
    if n <= WHOLE_MATRIX:
        ways["all distances (cdist)"] = lambda: with_cdist(labels, xy)
    found = table.measure(f"{n:,} spots, {K} voters", ways)
    for smoothed in found.values():
        assert (smoothed == found[OURS]).all()


if __name__ == "__main__":
    hb.settings.verbosity = "error"
    sizes = list(map(int, sys.argv[1:]))
    table = Table("vote", f"Majority vote of the {K} nearest spots, {N_LABELS} labels.", OURS)
    hb.spatial.majority_vote(*synthetic(100), k=K)
    with_squidpy(*synthetic(100))
    for size in sizes or SIZES:
        measure(table, size)
    if not sizes:
        table.write()
