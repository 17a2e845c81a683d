"""Overlaps of sentences with pathways: hibiost beside SciPy and dense products, on synthetic sentences and sets.

Sentences of 250 out of 18,000 genes, popular genes more often; 2,694 sets with the sizes of Reactome's. Run
``python benchmarks/overlaps.py [n_spots ...]``; each way runs in turn, medians and ratios are printed, and the memory
of each way at its peak, inputs left out.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import sparse

import hibiost as hb

N_VARS, N_GENES, N_SETS, THRESHOLD, CHUNK, ROUNDS = 18_000, 250, 2_694, 0.2, 1_000, 3
Way = Callable[[np.ndarray, sparse.csr_matrix], sparse.csr_matrix]


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


def with_scipy(sentences: np.ndarray, members: sparse.csr_matrix) -> sparse.csr_matrix:
    """One sparse product of all spots."""
    product = indicator(sentences) @ members.T.tocsr()
    smaller = np.minimum(np.diff(members.indptr)[product.indices], sentences.shape[1])
    omega = product.data.astype(np.float64) / smaller
    product.data = np.where(omega > THRESHOLD, omega, 0).astype(np.float32)
    product.eliminate_zeros()
    product.sort_indices()
    return product


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


def peak_mib(way: Way, sentences: np.ndarray, members: sparse.csr_matrix) -> float:
    """Resident memory at the peak over what was there before (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    way(sentences, members)
    return (resident("VmHWM") - before) / 2**10


def resident(field: str) -> int:
    """A field of the process status, KiB."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def measure(n_spots: int) -> None:
    """Print the medians of interleaved runs."""
    sentences, members = synthetic(n_spots)
    ways: list[Way] = [with_hibiost, with_scipy, with_dense_chunks]
    seconds: dict[str, list[float]] = {way.__name__: [] for way in ways}
    for _ in range(ROUNDS):
        for way in ways:
            start = time.perf_counter()
            result = way(sentences, members)
            seconds[way.__name__].append(time.perf_counter() - start)
            if way is with_hibiost:
                ours = result
            elif (ours != result).nnz:
                raise SystemExit(f"{way.__name__} disagrees.")
    quickest = np.median(seconds["with_hibiost"])
    print(
        f"{n_spots:,} sentences x {N_SETS:,} sets, {members.nnz:,} memberships, {ours.nnz:,} entries above {THRESHOLD}"
    )
    for way in ways:
        median = np.median(seconds[way.__name__])
        memory = peak_mib(way, sentences, members)
        print(f"  {way.__name__:18s} {median:8.3f} s   x {median / quickest:5.1f}   {memory:7,.0f} MiB")


if __name__ == "__main__":
    with_hibiost(*synthetic(100))
    for size in map(int, sys.argv[1:] or ("50000",)):
        measure(size)
