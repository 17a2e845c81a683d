"""Exact nearest neighbours among embeddings, in blocks."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

_BLOCK = 1 << 24
"""Similarities held at a time."""


def most_similar(
    queries: np.ndarray, bank: np.ndarray, k: int, *, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` rows of ``bank`` most similar to each query, by dot product, best first.

    At most 64 MiB of similarities are held at a time, whatever the numbers of rows.

    Parameters
    ----------
    queries
        float32, n_queries x dim.
    bank
        float32, n_bank x dim.
    k
        At most n_bank.
    device
        Where to compute.

    Returns
    -------
    Rows of ``bank`` (int64) and similarities (float32), both n_queries x ``k``.
    """
    keys = torch.tensor(bank, device=device).T
    rows = max(1, _BLOCK // len(bank))
    found = [
        torch.topk(torch.tensor(queries[start : start + rows], device=device) @ keys, k)
        for start in range(0, len(queries), rows)
    ]
    indices = torch.cat([block.indices for block in found]).cpu().numpy()
    return indices, torch.cat([block.values for block in found]).cpu().numpy()


def similarity_weights(similarities: np.ndarray) -> np.ndarray:
    """Similarities as weights that sum to 1 in each row; negative ones count as 0, a row without any is uniform."""
    weights = np.clip(similarities, 0, None)
    total = weights.sum(axis=1, keepdims=True)
    uniform = np.full_like(weights, 1 / weights.shape[1])
    return np.divide(weights, total, out=uniform, where=total > 0)


def retrieved_mean(
    queries: np.ndarray, bank: np.ndarray, values: sparse.csr_matrix, *, k: int, device: str = "cpu"
) -> np.ndarray:
    """Mean of the values of the ``k`` most similar rows of a bank, weighted by similarity (HiBio-ST, C.2.3).

    Parameters
    ----------
    queries
        float32, n_queries x dim.
    bank
        float32, n_bank x dim.
    values
        n_bank x n_values.
    k
        At most n_bank.
    device
        Where to compare.

    Returns
    -------
    float32, n_queries x n_values.
    """
    rows, similarities = most_similar(queries, bank, k, device=device)
    ends = np.arange(0, rows.size + 1, k)
    mixing = sparse.csr_matrix(
        (similarity_weights(similarities).ravel(), rows.ravel(), ends), shape=(len(rows), len(bank))
    )
    return np.asarray((mixing @ values).todense(), dtype=np.float32)
