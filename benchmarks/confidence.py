"""Which statistic of the retrieved neighbours tells best how well a gene is predicted, and which weights predict best.

``python benchmarks/confidence.py MODEL``, with MODEL trained on her2st C2-C5. Each of these sections is predicted from
the other three; nothing is chosen on C6. Prints two Markdown tables.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

import hibiost as hb
from hibiost import inputs
from hibiost.model import retrieval

SECTIONS, TOP_K, MIN_COUNTS = ["C2", "C3", "C4", "C5"], 100, 50


def moments(weights: sparse.csr_matrix, values: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and mean square."""
    return np.asarray((weights @ values).todense()), np.asarray((weights @ values.multiply(values)).todense())


def statistics(weights: sparse.csr_matrix, bank: sparse.csr_matrix) -> dict[str, np.ndarray]:
    """Candidates, each a value per gene."""
    mean, square = moments(weights, bank)
    first, second = moments(sparse.csr_matrix(np.full((1, bank.shape[0]), 1 / bank.shape[0])), bank)
    between, within, variance = mean.var(axis=0), (square - mean**2).mean(axis=0), (second - first**2)[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "between spots / (between + within neighbourhoods)": between / (between + within),
            "between spots / variance of the reference": between / variance,
            "1 - within neighbourhoods / variance of the reference": 1 - within / variance,
            "variance of the reference": variance,
            "mean of the reference": first[0],
        }


def held_out(reference: ad.AnnData) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of each section and of the others."""
    for rows in inputs.libraries(reference).values():
        yield rows, np.setdiff1d(np.arange(reference.n_obs), rows)


def measure(reference: ad.AnnData, scale: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean rank correlation of each statistic with the PCC of genes, and mean PCC with each weighting."""
    counts, ranks, scores = inputs.counts(reference), [], []
    images, sentences = reference.obsm["X_hibiost_image"], reference.obsm["X_hibiost_gene"]
    for target in ("raw", "normalized"):
        target_sum = inputs.median_total(counts) if target == "normalized" else None
        logs = inputs.log_expression(counts, target_sum=target_sum).astype(np.float64)
        names = hb.benchmark.variable_genes(reference, 300, target_sum=target_sum)
        variable = reference.var_names.get_indexer(names)
        sets = {"300": variable, f"{MIN_COUNTS} counts": np.flatnonzero(np.ravel(counts.sum(axis=0)) >= MIN_COUNTS)}
        for rows, others in held_out(reference):
            truth = logs[rows].toarray()
            for weighting in retrieval.WEIGHTINGS:
                weights = retrieval.neighbours(
                    images[rows], sentences[others], k=TOP_K, weighting=weighting, scale=scale
                )
                pcc = hb.metrics.pcc(truth, retrieval.mixed(weights, logs[others]))
                scores.append({"target": target, "weighting": weighting, "PCC": np.nanmean(pcc[variable])})
                if weighting != "similarity":
                    continue
                for name, values in statistics(weights.astype(np.float64), logs[others]).items():
                    for of, genes in sets.items():
                        rho = pd.Series(values[genes]).corr(pd.Series(pcc[genes]), method="spearman")
                        ranks.append({"statistic": name, "genes": f"{target}, {of}", "rho": rho})
    tables = pd.DataFrame(ranks), pd.DataFrame(scores)
    return (
        tables[0].pivot_table("rho", "statistic", "genes", sort=False),
        tables[1].pivot_table("PCC", "weighting", "target", sort=False),
    )


if __name__ == "__main__":
    logging.disable(logging.INFO)
    model = hb.model.load(sys.argv[1])
    reference = hb.datasets.her2st(SECTIONS)
    hb.pp.tfidf_sentences(reference, vocabulary=model.vocabulary)
    hb.tl.embed(reference, model=model)
    for table in measure(reference, model.scale.item()):
        print(table.round(3).to_markdown(), end="\n\n")
