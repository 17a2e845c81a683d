"""Regions: hibiost beside scikit-learn and PyTorch, and Leiden by igraph beside leidenalg, on synthetic slides.

Run ``python benchmarks/regions.py [n_spots ...]``; each way runs in turn, and medians and ratios are printed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

import hibiost as hb

DIMS, K, SEEDS, ROUNDS = 1_024, 15, 5, 3
WHOLE_MATRIX = 4_000
"""Spots up to which scikit-learn is asked, which needs all distances at a time."""
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


def seconds(ways: dict[str, Callable[[], Any]]) -> tuple[dict[str, float], dict[str, Any]]:
    """Medians of interleaved runs, and what each way returned last."""
    runs: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            results[name] = way()
            runs[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in runs.items()}, results


def measure_neighbors(n_spots: int) -> sparse.csr_matrix:
    """Print times, and the share of our neighbours that the others find; return our graph."""
    data = synthetic(n_spots)
    ways = [with_hibiost, with_torch, *([with_sklearn] if n_spots <= WHOLE_MATRIX else [])]
    times, results = seconds({way.__name__: lambda way=way: way(*data) for way in ways})
    ours = results["with_hibiost"]
    print(f"{n_spots:,} spots x {DIMS:,}, {K} nearest")
    for name, taken in times.items():
        shared = np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(ours[0], results[name][0], strict=True)])
        print(f"  {name:13s} {taken:8.3f} s   x {taken / times['with_hibiost']:.1f}   same neighbours {shared:.5f}")
    return hb.spatial.region_graph(*ours)


def measure_leiden(graph: sparse.csr_matrix) -> None:
    """Print the time of a run and the mean modularity over seeds."""
    print(f"Leiden, {graph.shape[0]:,} spots, {graph.nnz // 2:,} edges")
    for flavor in ("igraph", "leidenalg"):
        taken, reached, n_regions = [], [], []
        for seed in range(SEEDS):
            start = time.perf_counter()
            labels = hb.spatial.leiden(graph, flavor=flavor, rng=seed)
            taken.append(time.perf_counter() - start)
            reached.append(hb.spatial.modularity(graph, labels))
            n_regions.append(labels.max() + 1)
        spread = f"{np.mean(reached):.4f} ({min(reached):.4f} to {max(reached):.4f})"
        print(f"  {flavor:13s} {np.median(taken):8.3f} s   modularity {spread}   regions {np.mean(n_regions):.1f}")


if __name__ == "__main__":
    hb.settings.verbosity = "error"
    hb.spatial.leiden(hb.spatial.region_graph(*with_hibiost(*synthetic(100))), flavor="leidenalg")
    hb.spatial.leiden(sparse.csr_matrix((2, 2)))
    for size in map(int, sys.argv[1:] or ("700", "4000", "20000")):
        measure_leiden(measure_neighbors(size))
