"""Which genes, or gene sets, mark one group of spots off from the others; counts in, tables out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

Table = NDArray[np.float64]


class Enrichment(NamedTuple):
    """Tables of n_groups x n_genes, float64."""

    scores: Table
    """Standard deviations by which the count of a group exceeds that of as many spots drawn at random."""
    pvals: Table
    """Of as many spots with the gene or more, drawn at random (hypergeometric; Fisher's exact test, one-sided)."""
    pvals_adj: Table
    """Adjusted over the genes of each group (Benjamini and Hochberg)."""
    log_odds: Table
    """log2 of the odds ratio, with 0.5 added to each of the four counts (Haldane and Anscombe)."""
    shares: Table
    """Share of the group's spots with the gene."""
    shares_rest: Table
    """Share of the other spots with the gene."""


def enrichment(counts: Any, sizes: Any) -> Enrichment:
    """Compare the share of a group's spots that hold a gene with the share of all other spots.

    Parameters
    ----------
    counts
        Spots that hold the gene, int, n_groups x n_genes.
    sizes
        Spots of each group, int, n_groups.

    Returns
    -------
    Scores, p-values, effect sizes and shares, each n_groups x n_genes.

    Raises
    ------
    DataError
        Fewer than two groups, a group without spots, or more counts than spots.

    Examples
    --------
    >>> from hibiost.genes import enrichment
    >>> found = enrichment([[3, 1], [0, 1]], [3, 3])
    >>> found.pvals.round(2).tolist()
    [[0.05, 0.8], [1.0, 0.8]]
    """
    counts, sizes = np.asarray(counts), np.asarray(sizes)[:, None]
    if len(sizes) < 2 or sizes.min() < 1 or counts.min() < 0 or (counts > sizes).any():
        raise DataError(f"counts of {counts.shape} in groups of {sizes.ravel()} spots; expected two groups or more.")
    n_spots, held = sizes.sum(), counts.sum(axis=0)
    expected = sizes * held / n_spots
    variance = expected * (1 - held / n_spots) * (n_spots - sizes) / max(n_spots - 1, 1)
    deviation = np.sqrt(np.where(variance > 0, variance, np.inf))
    pvals = np.array([_tail(row, held, n_spots, size) for row, size in zip(counts, sizes.ravel(), strict=True)])
    others, rest = held - counts, n_spots - sizes
    odds, odds_rest = (counts + 0.5) / (sizes - counts + 0.5), (others + 0.5) / (rest - others + 0.5)
    return Enrichment(
        scores=(counts - expected) / deviation,
        pvals=pvals,
        pvals_adj=_adjusted(pvals),
        log_odds=np.log2(odds / odds_rest),
        shares=counts / sizes,
        shares_rest=others / rest,
    )


def _tail(counts: NDArray[np.integer], held: NDArray[np.integer], n_spots: int, size: int) -> Table:
    """Probability of as many spots or more; genes with the same counts are computed once."""
    from scipy.stats import hypergeom

    pairs, back = np.unique(np.stack([counts, held]), axis=1, return_inverse=True)
    tail = hypergeom.sf(pairs[0] - 1, n_spots, pairs[1], size)
    return np.clip(tail, 0, 1)[back.ravel()]


def _adjusted(pvals: Table) -> Table:
    from scipy.stats import false_discovery_control

    return false_discovery_control(pvals, axis=1)
