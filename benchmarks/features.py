"""Which image features a ridge predicts expression from best: those before the projection, or the embedding.

``python benchmarks/features.py MODEL``. MODEL is trained on her2st C2-C5 (``hibiost demo`` leaves one in
``hibiost-demo/model``); a model of random weights stands beside it. A ridge is fitted to C2-C5, or a tenth of their
spots, and tested on C6: 300 genes of highest mean per-slide variance in C2-C5. Prints Markdown.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import anndata as ad
import numpy as np

import hibiost as hb
from hibiost import inputs
from hibiost.model.ridge import fit_ridge
from hibiost.tl._embed import of_patches

REFERENCE, SECTION = ["C2", "C3", "C4", "C5"], "C6"


def features(adata: ad.AnnData, model: hb.model.HibioModel) -> dict[str, np.ndarray]:
    """Of each spot: what the tower sees before its projection, and the l2-normalised embedding."""
    running = model.inference()
    kinds = {"before the projection": running.features, "embedding": running.images}
    found = {}
    for kind, function in kinds.items():
        batches = of_patches(inputs.slides(adata), model, function, batch_size=64, desc=kind)
        rows, values = zip(*batches, strict=True)
        found[kind] = np.concatenate(values)[np.argsort(np.concatenate(rows))]
    return found


def expression(adata: ad.AnnData, genes: list[str], target_sum: float | None) -> np.ndarray:
    """log1p expression, n_spots x n_genes."""
    columns = adata.var_names.get_indexer(genes)
    return inputs.log_expression(inputs.counts(adata), target_sum=target_sum)[:, columns].toarray()


def rows(path: str) -> Iterator[str]:
    """Lines of the table."""
    model = hb.model.load(path)
    reference, section = hb.datasets.her2st(REFERENCE), hb.datasets.her2st(SECTION)
    few = np.random.default_rng(0).permutation(reference.n_obs)[: reference.n_obs // 10]
    seen = {
        weights: (features(reference, each), features(section, each))
        for weights, each in (("trained", model), ("random", hb.model.untrained(model)))
    }
    for target, target_sum in (("raw", None), ("normalized", inputs.median_total(inputs.counts(reference)))):
        ranked = hb.benchmark.variable_genes(reference, reference.n_vars, target_sum=target_sum)
        genes = [gene for gene in ranked if gene in section.var_names][:300]
        known, truth = (expression(adata, genes, target_sum) for adata in (reference, section))
        for weights, (training, test) in seen.items():
            for kind, values in training.items():
                for share, spots in (("all", slice(None)), ("10 %", few)):
                    predicted = fit_ridge(values[spots], known[spots]).predict(test[kind])
                    pcc, mse = np.nanmean(hb.metrics.pcc(truth, predicted)), hb.metrics.mse(truth, predicted)
                    yield f"| {target} | {weights} | {kind} | {share} | {pcc:.3f} | {mse:.3f} |"


if __name__ == "__main__":
    print("| target | weights | features | spots | pcc | mse |\n|---|---|---|---|---|---|")
    for line in rows(sys.argv[1]):
        print(line)
