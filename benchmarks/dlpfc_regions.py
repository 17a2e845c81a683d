"""Regions against the expert layers of four DLPFC sections, beside plain and spatial Leiden, as Markdown.

``python benchmarks/dlpfc_regions.py [SECTION ...]``. Every method sees the same 50 principal components of a section
and is brought to as many clusters as there are layers, by bisection of the Leiden resolution, for each of five seeds.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import squidpy as sq
from scipy import sparse

import hibiost as hb

SEEDS, N_COMPS, N_NEIGHBORS = range(5), 50, 15
ALPHAS = (0.0, 0.1, 0.2, 0.5, 0.8)
SPATIAL_WEIGHTS = (0.2, 0.5)
EXPRESSION = "Leiden on expression"
VOTED = f"{EXPRESSION}, majority vote"


def section(name: str) -> ad.AnnData:
    """A section with its principal components, expression graph and grid graph."""
    adata = hb.datasets.dlpfc(name)
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=N_COMPS, random_state=0)
    sc.pp.neighbors(adata, n_neighbors=N_NEIGHBORS, use_rep="X_pca", random_state=0)
    sq.gr.spatial_neighbors_grid(adata, n_neighs=6)
    return adata


def graphs(adata: ad.AnnData) -> dict[str, sparse.csr_matrix]:
    """The graph that each method clusters."""
    found = {}
    for alpha in ALPHAS:
        hb.tl.regions(adata, use_rep="X_pca", n_neighbors=N_NEIGHBORS, alpha=alpha, beta=1 - alpha)
        found[f"hb.tl.regions, alpha = {alpha}"] = adata.obsp["region_connectivities"].copy()
    expression, space = adata.obsp["connectivities"], adata.obsp["spatial_connectivities"]
    found[EXPRESSION] = expression
    for weight in SPATIAL_WEIGHTS:
        found[f"Leiden on {1 - weight} expression + {weight} grid"] = (1 - weight) * expression + weight * space
    return found


def leiden(adata: ad.AnnData, graph: sparse.csr_matrix, seed: int, resolution: float) -> np.ndarray:
    """Leiden by scanpy, until nothing improves: the same call for every graph."""
    sc.tl.leiden(
        adata, resolution, adjacency=graph, flavor="igraph", directed=False, n_iterations=-1, random_state=seed
    )
    return adata.obs["leiden"].to_numpy(dtype=str)


def bisect(cluster: Callable[[float], np.ndarray], n_clusters: int) -> tuple[float, np.ndarray]:
    """The resolution, and its labels, that gives ``n_clusters``, or comes nearest in 30 steps."""
    low, high = 0.01, 10.0
    best: tuple[float, np.ndarray] | None = None
    for _ in range(30):
        resolution = float(np.sqrt(low * high))
        labels = cluster(resolution)
        n = len(np.unique(labels))
        if best is None or abs(n - n_clusters) < abs(len(np.unique(best[1])) - n_clusters):
            best = resolution, labels
        if n == n_clusters:
            break
        low, high = (resolution, high) if n < n_clusters else (low, resolution)
    return best


def scored(adata: ad.AnnData, method: str, labels: np.ndarray, resolution: float, seed: int) -> dict[str, object]:
    """One row of the scores."""
    layers = adata.obs["layer"]
    return {
        "section": adata.obs["library_id"].iloc[0],
        "method": method,
        "seed": seed,
        "ARI": hb.metrics.ari(layers, labels),
        "NMI": hb.metrics.nmi(layers, labels),
        "coherence": hb.spatial.coherence(labels, adata.obsm["spatial"]),
        "clusters": len(np.unique(labels)),
        "resolution": resolution,
    }


def measure(name: str) -> list[dict[str, object]]:
    """Scores of every method and seed on a section, at as many clusters as layers, and at resolution 1."""
    adata = section(name)
    n_layers = adata.obs["layer"].nunique()
    rows = []
    for method, graph in graphs(adata).items():
        for seed in SEEDS:
            resolution, labels = bisect(partial(leiden, adata, graph, seed), n_layers)
            rows.append(scored(adata, method, labels, resolution, seed))
            if method == EXPRESSION:
                labels = hb.spatial.majority_vote(labels, adata.obsm["spatial"])
                rows.append(scored(adata, VOTED, labels, resolution, seed))
    for seed in SEEDS:
        hb.tl.regions(adata, use_rep="X_pca", rng=seed)
        rows.append(scored(adata, "hb.tl.regions, defaults", adata.obs["region"].to_numpy(dtype=str), 1.0, seed))
    return rows


def table(scores: pd.DataFrame, by: str) -> str:
    """Mean and standard deviation of ``score`` for each method, a column for each value of ``by``."""
    spread = scores.pivot_table("score", "method", by, aggfunc=["mean", "std"], sort=False)
    columns = list(dict.fromkeys(scores[by]))
    lines = [f"| method | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for method, row in spread.iterrows():
        cells = [f"{row['mean', column]:.3f} ± {row['std', column]:.3f}" for column in columns]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    names = sys.argv[1:] or ["151673", "151674", "151675", "151676"]
    scores = pd.DataFrame([row for name in names for row in measure(name)])
    scores = scores.melt(["section", "method", "seed"], var_name="metric", value_name="score")
    print(f"All sections: mean ± standard deviation over {len(names)} sections x {len(SEEDS)} seeds\n")
    print(table(scores, "metric"))
    for metric in ("ARI", "NMI"):
        print(f"\n{metric} by section\n\n{table(scores[scores['metric'] == metric], 'section')}")
