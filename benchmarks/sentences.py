"""Gene sentences: hibiost beside NumPy and scikit-learn, on synthetic counts of 18,000 genes.

``python benchmarks/sentences.py`` measures 50,000 spots (about 3,000 genes each) and 500,000 bins (about 200), and
writes ``docs/speed/sentences.*``; ``python benchmarks/sentences.py N`` only measures, N spots and ten times N bins.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
from _bench import Table, seconds_of
from scipy import sparse
from sklearn.feature_extraction.text import TfidfTransformer

import hibiost as hb

N_VARS, N_GENES = 18_000, 250
SPOTS, BINS = 3_000, 110
"""Words that give about 3,000 genes a spot and 200 a bin."""
OURS, WEIGHTS, FILE = "hb.pp.tfidf_sentences(weights=False)", "with layers['tfidf']", "counts in a file"


def synthetic(n_spots: int, words: int = SPOTS) -> sparse.csr_matrix:
    """Counts with few common and many rare genes; rows are drawn 500 at a time and repeated beyond 2,000."""
    rng = np.random.default_rng(0)
    share = np.exp(rng.normal(0, 1.5, N_VARS))
    rate = 2.0 * words * share / share.sum()
    blocks = [
        sparse.csr_matrix(rng.poisson(rate * rng.gamma(2, 0.5, (500, 1))).astype(np.float32))
        for _ in range(-(-min(n_spots, 2_000) // 500))
    ]
    return sparse.vstack([blocks[i % len(blocks)] for i in range(-(-n_spots // 500))], format="csr")[:n_spots]


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


def with_verb(adata: ad.AnnData, *, weights: bool) -> np.ndarray:
    """``hibiost.pp.tfidf_sentences``: checks the counts and writes the slots too."""
    hb.pp.tfidf_sentences(adata, n_genes=N_GENES, weights=weights)
    return adata.obsm.pop("gene_sentence")


def with_file(path: Path) -> np.ndarray:
    """The same on counts in a file, never in memory as a whole."""
    return with_verb(ad.read_h5ad(path, backed="r"), weights=False)


def measure(table: Table, name: str, counts: sparse.csr_matrix, folder: Path) -> None:
    """One size; the sentences in memory and from the file must be the same."""
    path = folder / "counts.h5ad"
    adata = ad.AnnData(counts)
    adata.write_h5ad(path)
    n_spots = counts.shape[0]
    found = table.measure(
        f"{n_spots:,} {name} x {N_VARS:,} genes, {counts.nnz / n_spots:,.0f} a {name[:-1]}",
        {
            OURS: partial(with_verb, adata, weights=False),
            WEIGHTS: partial(with_verb, adata.copy(), weights=True),
            FILE: partial(with_file, path),
            "NumPy": partial(with_numpy, counts),
            "scikit-learn": partial(with_sklearn, counts),
        },
        limit=seconds_of(bytes_moved=counts.data.nbytes + counts.indices.nbytes + 4 * N_GENES * n_spots),
    )
    if not np.array_equal(found[OURS], found[FILE]):
        raise SystemExit("the sentences from the file differ.")


def main(sizes: list[int]) -> None:
    """Measure the sizes given, or the default one and write it."""
    hb.settings.verbosity = "error"
    for weights in (True, False):  # compiles
        with_verb(ad.AnnData(synthetic(500)), weights=weights)
    title = "Gene sentences: TF-IDF weights and the best 250 genes of each spot."
    table = Table("sentences", title, OURS, variants=(WEIGHTS, FILE))
    with tempfile.TemporaryDirectory() as folder:
        for n_spots in sizes or [50_000]:
            measure(table, "spots", synthetic(n_spots), Path(folder))
            measure(table, "bins", synthetic(10 * n_spots, BINS), Path(folder))
    if not sizes:
        table.write()


if __name__ == "__main__":
    main(list(map(int, sys.argv[1:])))
