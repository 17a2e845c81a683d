"""Gene sentences: hibiost beside NumPy and scikit-learn, on synthetic counts of 18,000 genes, about 3,000 a spot.

Run ``python benchmarks/sentences.py [n_spots ...]``; each way runs in turn, and medians and ratios are printed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import anndata as ad
import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer

import hibiost as hb

N_VARS, WORDS, N_GENES, ROUNDS = 18_000, 3_000, 250, 5


def synthetic(n_spots: int) -> sparse.csr_matrix:
    """Counts with few common and many rare genes; rows are drawn 1,000 at a time and repeated beyond 5,000."""
    rng = np.random.default_rng(0)
    share = np.exp(rng.normal(0, 1.5, N_VARS))
    rate = 2.0 * WORDS * share / share.sum()
    blocks = [
        sparse.csr_matrix(rng.poisson(rate * rng.gamma(2, 0.5, (1_000, 1))).astype(np.float32))
        for _ in range(min(n_spots, 5_000) // 1_000)
    ]
    return sparse.vstack([blocks[i % len(blocks)] for i in range(n_spots // 1_000)], format="csr")


def best_of_rows(weights: sparse.csr_matrix) -> np.ndarray:
    """The best genes of each row by argpartition."""
    best = np.full((weights.shape[0], N_GENES), -1, dtype=np.int32)
    for row in range(weights.shape[0]):
        window = slice(weights.indptr[row], weights.indptr[row + 1])
        values, genes = weights.data[window], weights.indices[window]
        if values.size > N_GENES:
            top = np.argpartition(values, -N_GENES)[-N_GENES:]
            values, genes = values[top], genes[top]
        best[row, : genes.size] = genes[np.argsort(-values)]
    return best


def with_numpy(counts: sparse.csr_matrix) -> np.ndarray:
    """Eqs 1-4 by NumPy and SciPy."""
    logs = counts.log1p()
    idf = np.log((1 + counts.shape[0]) / (1 + np.bincount(counts.indices, minlength=N_VARS)))
    totals = np.asarray(logs.sum(axis=1)).ravel() + 1e-8
    logs.data *= idf[logs.indices].astype(np.float32)
    logs.data /= np.repeat(totals, np.diff(logs.indptr))
    return best_of_rows(logs)


def with_sklearn(counts: sparse.csr_matrix) -> np.ndarray:
    """The nearest that scikit-learn comes: its idf is one higher."""
    logs = counts.log1p()
    return best_of_rows(TfidfTransformer(norm="l1", smooth_idf=True).fit_transform(logs).tocsr())


def with_arrays(counts: sparse.csr_matrix) -> np.ndarray:
    """``hibiost.genes`` on arrays."""
    idf = hb.genes.idf(hb.genes.document_frequency(counts), counts.shape[0])
    return hb.genes.top_genes(hb.genes.tfidf(counts, idf), N_GENES)


def with_verb(counts: sparse.csr_matrix) -> np.ndarray:
    """``hibiost.pp.tfidf_sentences``: checks the counts and writes the slots too."""
    adata = ad.AnnData(counts)
    hb.pp.tfidf_sentences(adata, n_genes=N_GENES)
    return adata.obsm["gene_sentence"]


def measure(n_spots: int) -> None:
    """Print the medians of interleaved runs."""
    counts = synthetic(n_spots)
    ways: list[Callable[[sparse.csr_matrix], np.ndarray]] = [with_verb, with_arrays, with_numpy, with_sklearn]
    seconds: dict[str, list[float]] = {way.__name__: [] for way in ways}
    for _ in range(ROUNDS):
        for way in ways:
            start = time.perf_counter()
            way(counts)
            seconds[way.__name__].append(time.perf_counter() - start)
    ours = np.median(seconds["with_verb"])
    print(f"{n_spots:,} x {N_VARS:,}, {counts.nnz / n_spots:,.0f} genes a spot")
    for name, runs in seconds.items():
        print(f"  {name:13s} {np.median(runs):8.3f} s   x {np.median(runs) / ours:.1f}")


if __name__ == "__main__":
    hb.settings.verbosity = "error"
    with_verb(synthetic(1_000))
    for size in map(int, sys.argv[1:] or ("5000", "50000")):
        measure(size)
