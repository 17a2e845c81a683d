"""Regions: hibiost's neighbours beside scikit-learn and PyTorch, and Leiden by igraph beside leidenalg.

``python benchmarks/regions.py`` times synthetic slides of 4,000 and 20,000 spots in turns, and one of 100,000 once, and
writes ``docs/speed/regions.*`` and ``leiden.*``; with numbers of spots it prints only.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from _bench import Table, seconds_of
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

import hibiost as hb

SIZES, DIMS, K, SEEDS, ROUNDS = (4_000, 20_000, 100_000), 1_024, 15, 5, 3
WHOLE_MATRIX, LARGE = 4_000, 20_000
"""Spots up to which scikit-learn is asked, which needs all distances at a time, and up to which torch is."""
Neighbors = tuple[np.ndarray, np.ndarray]


def synthetic(n_spots: int) -> Neighbors:
    """A hexagonal slide of twelve domains, with embeddings around the one of each domain, and noise."""
    rng = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(n_spots)))
    row, column = np.divmod(np.arange(n_spots), side)
    xy = np.stack([column + 0.5 * (row % 2), row * np.sqrt(0.75)], axis=1) * 100.0
    centres = rng.uniform(0, side * 100.0, (12, 2))
    domain = np.linalg.norm(xy[:, None] - centres, axis=2).argmin(axis=1)
    features = rng.normal(0, 1, (12, DIMS))[domain] + rng.normal(0, 2, (n_spots, DIMS))
    return xy, features.astype(np.float32)


def with_hibiost(xy: np.ndarray, features: np.ndarray) -> Neighbors:
    """``hibiost.spatial.fused_neighbors``: exact, float64."""
    return hb.spatial.fused_neighbors(xy, features, k=K)


def with_torch(xy: np.ndarray, features: np.ndarray) -> Neighbors:
    """Blocks of 1,000 rows in float32, one pass for the ranges and one for the neighbours."""
    points = torch.from_numpy(xy).float()
    unit = torch.nn.functional.normalize(torch.from_numpy(features))
    n = len(points)

    def block(start: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        stop = min(start + 1_000, n)
        own = torch.arange(start, stop)[:, None] == torch.arange(n)
        return torch.cdist(points[start:stop], points), 1 - unit[start:stop] @ unit.T, own

    ranges = []
    for start in range(0, n, 1_000):
        *terms, own = block(start)
        ranges.append(
            [f(term.masked_fill(own, fill)) for term in terms for f, fill in ((torch.min, 9e9), (torch.max, -1))]
        )
    least, greatest = np.min(ranges, axis=0), np.max(ranges, axis=0)
    indices, distances = [], []
    for start in range(0, n, 1_000):
        space, feature, own = block(start)
        fused = 0.5 * (space - least[0]) / (greatest[1] - least[0])
        fused += 0.5 * (feature - least[2]) / (greatest[3] - least[2])
        best = fused.masked_fill(own, torch.inf).topk(K, largest=False)
        indices.append(best.indices.numpy())
        distances.append(best.values.numpy())
    return np.concatenate(indices), np.concatenate(distances)


def with_sklearn(xy: np.ndarray, features: np.ndarray) -> Neighbors:
    """The whole matrix of distances, in float64."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = ~np.eye(len(xy), dtype=bool)
    fused = np.zeros(pairs.shape)
    for term in (np.linalg.norm(xy[:, None] - xy, axis=2), 1 - unit @ unit.T):
        low, high = term.min(where=pairs, initial=np.inf), term.max(where=pairs, initial=-np.inf)
        fused += 0.5 * (term - low) / (high - low)
    np.fill_diagonal(fused, 0)
    distances, indices = NearestNeighbors(n_neighbors=K, metric="precomputed").fit(fused.clip(0)).kneighbors()
    return indices, distances


def neighbors(table: Table, n_spots: int) -> sparse.csr_matrix:
    """Time the neighbours, check that the others find the same, and return the graph of ours."""
    data = synthetic(n_spots)
    ways = {"hibiost": lambda: with_hibiost(*data)}
    if n_spots <= LARGE:
        ways["torch, blocks, float32"] = lambda: with_torch(*data)
    if n_spots <= WHOLE_MATRIX:
        ways["scikit-learn, whole matrix"] = lambda: with_sklearn(*data)
    limit = seconds_of(flops=2 * DIMS * n_spots**2, dtype=torch.bfloat16)
    rounds = ROUNDS if n_spots <= LARGE else 1
    found = table.measure(f"{n_spots:,} spots x {DIMS:,}, {K} nearest", ways, rounds=rounds, limit=limit)
    ours = found.pop("hibiost")
    for name, (indices, _) in found.items():
        shared = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(ours[0], indices, strict=True)])
        assert shared > 0.999, f"{name} finds other neighbours: {shared:.5f} are the same"
    return hb.spatial.region_graph(*ours)


def communities(table: Table, graph: sparse.csr_matrix) -> None:
    """Time both flavours of Leiden; the mean modularity over seeds stands in the name."""
    reached = {}
    for flavor in ("igraph", "leidenalg"):
        labels = [hb.spatial.leiden(graph, flavor=flavor, rng=seed) for seed in range(SEEDS)]
        reached[flavor] = np.mean([hb.spatial.modularity(graph, each) for each in labels])
    assert reached["igraph"] > reached["leidenalg"] - 0.002
    case = f"{graph.shape[0]:,} spots, {graph.nnz // 2:,} edges"
    case += f"; modularity {reached['igraph']:.4f} and {reached['leidenalg']:.4f}"
    ways = {flavor: lambda flavor=flavor: hb.spatial.leiden(graph, flavor=flavor) for flavor in reached}
    table.measure(case, ways, rounds=ROUNDS)


def main(sizes: list[int]) -> None:
    """Measure, and write where all sizes were asked for."""
    hb.settings.verbosity, hb.settings.progress = "error", False
    hb.spatial.leiden(hb.spatial.region_graph(*with_hibiost(*synthetic(600))), flavor="leidenalg")
    regions = Table("regions", "Nearest neighbours by the fused distance (eq 7), on synthetic slides.", "hibiost")
    leiden = Table("leiden", f"Leiden on their graphs; modularity is the mean over {SEEDS} seeds.", "igraph")
    for size in sizes or SIZES:
        graph = neighbors(regions, size)
        if size <= LARGE:
            communities(leiden, graph)
    if not sizes:
        regions.write()
        leiden.write()


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]])
