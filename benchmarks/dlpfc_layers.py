"""Zero-shot layers of four DLPFC sections from expression-side embeddings, by the paper's protocol, as Markdown.

``python benchmarks/dlpfc_layers.py MODEL [SECTION ...]``. K-means (C.2.1: seven clusters, 50 starts, then one vote of
the 5 nearest spots) on the gene-sentence embeddings of a model that never saw cortex, on those of random weights, and
on scanpy's principal components; and regions (eqs 7, 8) on the same, beside Leiden with and without the grid of spots,
both brought to seven clusters.
"""

from __future__ import annotations

import logging
import sys
from functools import partial

import anndata as ad
import numpy as np
import pandas as pd
from dlpfc_regions import EXPRESSION, bisect, leiden, section, table

import hibiost as hb

SEEDS, N_LAYERS = range(3), 7
MODEL, RANDOM = "sentences, model", "sentences, random weights"
REPS = {MODEL: "model_gene", RANDOM: "random_gene", "principal components": "X_pca"}


def embedded(name: str, model: hb.model.HibioModel) -> ad.AnnData:
    """A section with principal components, and its sentences embedded by the model and by random weights."""
    adata = section(name)
    raw = hb.datasets.dlpfc(name)
    hb.pp.tfidf_sentences(raw, vocabulary=model.vocabulary)
    for key, each in (("model", model), ("random", hb.model.untrained(model))):
        hb.tl.embed(raw, model=each, modality="gene", key_added=key)
        adata.obsm[f"{key}_gene"] = raw.obsm[f"{key}_gene"]
    return adata


def measure(name: str, model: hb.model.HibioModel) -> list[tuple[str, str, int, float, float]]:
    """Section, method, seed, ARI and NMI."""
    adata = embedded(name, model)
    grid = 0.5 * adata.obsp["connectivities"] + 0.5 * adata.obsp["spatial_connectivities"]
    graphs = {EXPRESSION: adata.obsp["connectivities"], "Leiden on expression and grid": grid}
    for method, rep in REPS.items():
        hb.tl.regions(adata, use_rep=rep)
        graphs[f"regions on {method}"] = adata.obsp["region_connectivities"].copy()
    rows = []
    for seed in SEEDS:
        found = {}
        for method, rep in REPS.items():
            hb.tl.cluster(adata, n_clusters=N_LAYERS, use_rep=rep, rng=seed)
            found[f"K-means on {method}, raw"] = adata.obs["cluster_raw"].to_numpy()
            found[f"K-means on {method}, smoothed"] = adata.obs["cluster"].to_numpy()
        for method, graph in graphs.items():
            found[method] = bisect(partial(leiden, adata, graph, seed), N_LAYERS)[1]
        shuffled = np.random.default_rng(seed).permutation(adata.obs["layer"].to_numpy(dtype=object))
        found["layers of other spots (chance)"] = shuffled
        layers = adata.obs["layer"]
        rows += [
            (name, method, seed, hb.metrics.ari(layers, labels), hb.metrics.nmi(layers, labels))
            for method, labels in found.items()
        ]
    return rows


if __name__ == "__main__":
    logging.disable(logging.INFO)
    model = hb.model.load(sys.argv[1])
    names = sys.argv[2:] or ["151673", "151674", "151675", "151676"]
    rows = [row for name in names for row in measure(name, model)]
    scores = pd.DataFrame(rows, columns=["section", "method", "seed", "ARI", "NMI"])
    scores = scores.melt(["section", "method", "seed"], var_name="metric", value_name="score")
    print(f"Mean ± standard deviation over {len(names)} sections x {len(SEEDS)} seeds\n")
    print(table(scores, "metric"))
    print(f"\nARI by section\n\n{table(scores[scores['metric'] == 'ARI'], 'section')}")
