"""Which genes vary most over the spots of a slide."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy import sparse


def most_variable(expression: sparse.csr_matrix, slides: Iterable[np.ndarray]) -> np.ndarray:
    """Genes by falling mean per-slide variance (HiBio-ST, A.2).

    Parameters
    ----------
    expression
        n_spots x n_genes.
    slides
        Rows of each slide.

    Returns
    -------
    int64, (n_genes,): columns; of equal variance the one that stands first.
    """
    return np.argsort(-np.mean([_variance(expression[rows]) for rows in slides], axis=0), kind="stable")


def _variance(expression: sparse.csr_matrix) -> np.ndarray:
    expression = expression.astype(np.float64)
    mean = np.asarray(expression.mean(axis=0)).ravel()
    return np.asarray(expression.multiply(expression).mean(axis=0)).ravel() - mean**2
