"""Retrieval from a large reference beside plain products and ``torch.topk``, on random embeddings.

``python benchmarks/retrieval.py`` searches a bank of 1,000,000 rows and writes ``docs/speed/retrieval.*``; with the
rows of a bank, and the number of queries, it prints only. The plain way compares 250 queries at a time with the whole
bank.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from _bench import Table, seconds_of
from scipy import sparse

from hibiost.model import confidence, retrieval

BANK, QUERIES, DIM, GENES, TOP_K, DENSITY, AT_A_TIME = 1_000_000, 4_000, 256, 300, 100, 0.1, 250


def unit(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    """Random directions, float32."""
    out = rng.standard_normal((n, dim), dtype=np.float32)
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return out


def counts(rng: np.random.Generator, n: int, genes: int) -> sparse.csr_matrix:
    """Expression with the same number of entries in each row."""
    kept = max(1, int(genes * DENSITY))
    columns = (rng.integers(genes, size=(n, 1), dtype=np.int32) + np.arange(kept, dtype=np.int32)) % genes
    values = np.log1p(rng.poisson(3, size=n * kept).astype(np.float32))
    return sparse.csr_matrix((values, columns.ravel(), np.arange(0, n * kept + 1, kept)), shape=(n, genes))


def plain(queries: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Rows of the bank, by products with all of it."""
    whole = torch.from_numpy(bank).T
    parts = [torch.from_numpy(queries[i : i + AT_A_TIME]) for i in range(0, len(queries), AT_A_TIME)]
    return torch.cat([torch.topk(part @ whole, TOP_K).indices for part in parts]).numpy()


def main(n_bank: int, n_queries: int) -> Table:
    """Search, average and judge."""
    rng = np.random.default_rng(0)
    bank, queries = (unit(rng, n, DIM) for n in (n_bank, n_queries))
    retrieval.most_similar(queries[:10], bank[:1_000], TOP_K)
    title = f"The {TOP_K} most similar of a bank of random embeddings, exactly; and what is made of their expression."
    table = Table("retrieval", title, "hibiost")
    case = f"{n_queries:,} queries, {n_bank:,} x {DIM}"
    ways = {
        "hibiost": lambda: retrieval.most_similar(queries, bank, TOP_K),
        "torch.topk(queries @ bank.T), float32": lambda: plain(queries, bank),
    }
    flops = 2 * DIM * n_bank * n_queries
    limit = seconds_of(flops=flops, bytes_moved=2 * n_bank * n_queries, dtype=torch.bfloat16)
    (rows, similarities), others = table.measure(case, ways, limit=limit, rounds=2).values()
    same = np.mean([len(np.intersect1d(a, b)) / TOP_K for a, b in zip(rows, others, strict=True)])
    assert same > 0.999, f"the two find other rows: {same:.5f} are the same"

    values = counts(rng, n_bank, GENES)
    mixing = retrieval.neighbour_weights(similarities).ravel()
    weights = sparse.csr_matrix((mixing, rows.ravel(), np.arange(0, rows.size + 1, TOP_K)), shape=(n_queries, n_bank))
    ways = {"hibiost": lambda: retrieval.mixed(weights, values), "scipy, dense": lambda: (weights @ values).toarray()}
    predicted, _ = table.measure(f"weighted mean of {GENES} genes", ways, rounds=2).values()
    table.measure("confidence", {"hibiost": lambda: confidence.correlation_ratio(weights, values, predicted)}, rounds=2)
    return table


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(int(sys.argv[1]), int(sys.argv[2]))
    else:
        main(BANK, QUERIES).write()
