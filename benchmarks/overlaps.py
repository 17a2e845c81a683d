"""Overlaps of sentences with pathways: hibiost beside SciPy and dense products, on synthetic sentences and sets.

Sentences of 250 out of 18,000 genes, popular genes more often; 2,694 sets with the sizes of Reactome's.
``python benchmarks/overlaps.py`` measures 50,000 spots and writes ``docs/speed/overlaps.*``;
``python benchmarks/overlaps.py N ...`` only measures.
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
from _bench import Table, seconds_of
from scipy import sparse

import hibiost as hb

N_VARS, N_GENES, N_SETS, THRESHOLD, CHUNK = 18_000, 250, 2_694, 0.2, 1_000
OURS = "hb.genes.overlap_coefficients"


def synthetic(n_spots: int) -> tuple[np.ndarray, sparse.csr_matrix]:
    """Sentences and members; genes that stand in many sentences do not stand in more sets."""
    rng = np.random.default_rng(0)
    popularity = rng.normal(0, 1.5, N_VARS)
    sentences = np.empty((n_spots, N_GENES), dtype=np.int32)
    for spot in range(n_spots):
        sentences[spot] = np.argpartition(popularity + rng.gumbel(size=N_VARS), -N_GENES)[-N_GENES:]
    sizes = np.clip(np.exp(rng.normal(np.log(15), 1.4, N_SETS)), 5, 2_500).astype(int)
    share = np.exp(rng.normal(0, 1, N_VARS))
    chosen = [rng.choice(N_VARS, size, replace=False, p=share / share.sum()) for size in sizes]
    indptr, indices = np.append(0, np.cumsum(sizes)), np.concatenate(chosen)
    return sentences, sparse.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), (N_SETS, N_VARS))


def with_hibiost(sentences: np.ndarray, members: sparse.csr_matrix) -> sparse.csr_matrix:
    """``hibiost.genes``."""
    return hb.genes.overlap_coefficients(sentences, members, threshold=THRESHOLD).matrix


def with_scipy(sentences: np.ndarray, members: sparse.csr_matrix, chunk: int) -> sparse.csr_matrix:
    """Sparse products, ``chunk`` spots at a time."""
    by_gene = members.T.tocsr()
    blocks = []
    for start in range(0, len(sentences), chunk):
        product = indicator(sentences[start : start + chunk]) @ by_gene
        smaller = np.minimum(np.diff(members.indptr)[product.indices], sentences.shape[1])
        omega = product.data.astype(np.float64) / smaller
        product.data = np.where(omega > THRESHOLD, omega, 0).astype(np.float32)
        product.eliminate_zeros()
        product.sort_indices()
        blocks.append(product)
    return sparse.vstack(blocks, format="csr")


def with_dense_chunks(sentences: np.ndarray, members: sparse.csr_matrix) -> sparse.csr_matrix:
    """Dense products (BLAS, float32), 1,000 spots at a time."""
    smaller = np.minimum(np.diff(members.indptr), sentences.shape[1])
    dense = members.T.toarray()
    blocks = []
    for start in range(0, len(sentences), CHUNK):
        omega = (indicator(sentences[start : start + CHUNK]).toarray() @ dense).astype(np.float64) / smaller
        omega[omega <= THRESHOLD] = 0
        blocks.append(sparse.csr_matrix(omega, dtype=np.float32))
    return sparse.vstack(blocks, format="csr")


def indicator(sentences: np.ndarray) -> sparse.csr_matrix:
    """1 for each gene of a sentence; no sentence is padded here."""
    indptr = np.arange(0, sentences.size + 1, sentences.shape[1])
    return sparse.csr_matrix((np.ones(sentences.size, np.float32), sentences.ravel(), indptr), (len(sentences), N_VARS))


def main(sizes: list[int]) -> None:
    """Measure the sizes given, or the default one and write it; all ways must give the same."""
    with_hibiost(*synthetic(100))
    table = Table("overlaps", "Overlap of sentences with pathways (eq 5), above 0.2.", OURS)
    for n_spots in sizes or [50_000]:
        given = synthetic(n_spots)
        found = table.measure(
            f"{n_spots:,} sentences x {N_SETS:,} pathways",
            {
                OURS: partial(with_hibiost, *given),
                "SciPy, one sparse product": partial(with_scipy, *given, chunk=n_spots),
                "SciPy, 1,000 spots at a time": partial(with_scipy, *given, chunk=CHUNK),
                "dense products, 1,000 at a time": partial(with_dense_chunks, *given),
            },
            limit=seconds_of(bytes_moved=given[0].nbytes),
            once=("dense products, 1,000 at a time",),
        )
        for name, matrix in found.items():
            if (matrix != found[OURS]).nnz:
                raise SystemExit(f"{name} disagrees.")
    if not sizes:
        table.write()


if __name__ == "__main__":
    main(list(map(int, sys.argv[1:])))
