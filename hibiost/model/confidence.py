"""How far a predicted gene can be trusted: agreement of neighbours, and cross-validation over slides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy import sparse

from .. import metrics

Fit: TypeAlias = Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]]
"""From the rows to learn from to what predicts for other rows: dense, n_rows x n_genes."""

MAX_SLIDES, MAX_SPOTS, MIN_SPOTS = 20, 500, 10
"""Slides held out at most, spots predicted of each at most, and spots a slide needs."""
_ENTRIES = 1 << 22
"""Dense values, or rows of a sparse matrix, in float64 at a time."""


def correlation_ratio(weights: sparse.csr_matrix, values: sparse.csr_matrix, predicted: np.ndarray) -> np.ndarray:
    """Share of the variance of retrieved expression that lies between spots, not among the neighbours of a spot.

    With the weight w_ij of neighbour j of spot i, expression x_jg and prediction m_ig = sum_j w_ij x_jg,
    eta_g^2 = Var_i(m_ig) / (Var_i(m_ig) + mean_i sum_j w_ij (x_jg - m_ig)^2): the correlation ratio of Pearson. Its
    root is the correlation that the prediction would have, were each spot one of its neighbours. The denominator is
    the variance of x under the weights mean_i w_ij (law of total variance), so no squares of spots x genes are needed.

    Parameters
    ----------
    weights
        w, n_spots x n_bank; each row sums to 1.
    values
        x, n_bank x n_genes.
    predicted
        m, n_spots x n_genes.

    Returns
    -------
    float64, n_genes: 0 where all neighbourhoods are alike, 1 where all neighbours agree, NaN where the gene is
    constant among the neighbours.
    """
    share = np.asarray(weights.sum(axis=0), dtype=np.float64).ravel()
    total = _variance(values, share / share.sum())
    between = np.concatenate(
        [predicted[:, part].var(axis=0, dtype=np.float64) for part in _parts(predicted.shape[1], len(predicted))]
    )
    varying = total > 1e-9
    return np.clip(np.divide(between, total, out=np.full(len(total), np.nan), where=varying), 0, 1)


def _variance(values: sparse.csr_matrix, share: np.ndarray) -> np.ndarray:
    """Variance of each column, rows being weighted by ``share``."""
    first, second = np.zeros((2, values.shape[1]))
    used = np.flatnonzero(share)
    for part in _parts(len(used), values.shape[1]):
        block = values[used[part]].astype(np.float64)
        first += share[used[part]] @ block
        block.data **= 2
        second += share[used[part]] @ block
    return second - first**2


def _parts(length: int, width: int) -> Iterator[slice]:
    """Slices of ``length`` rows or columns of ``width`` values."""
    step = max(1, _ENTRIES // max(1, width))
    return (slice(start, start + step) for start in range(0, length, step))


class Calibration(NamedTuple):
    """What cross-validation tells of each gene."""

    expected_pcc: np.ndarray
    """Mean over the held-out slides of the correlation with what was measured; NaN where no slide varies."""
    noise: np.ndarray
    """Standard deviation of that mean, were the spots of each slide permuted."""
    n_slides: int
    """Slides held out."""


def cross_validate(
    expression: sparse.csr_matrix, slides: Sequence[np.ndarray], groups: Sequence[str], fit: Fit
) -> Calibration | None:
    """Correlation of each gene on slides that are predicted from the other groups.

    At most 20 slides are held out, evenly chosen, and of each at most 500 spots, evenly chosen; slides of fewer than
    10 spots only teach. Genes that are constant in a slide are left out there; a constant prediction of one that
    varies counts as 0. Memory is the predictions of one slide, and what ``fit`` takes.

    Parameters
    ----------
    expression
        n_spots x n_genes.
    slides
        Rows of each slide.
    groups
        The group of each slide, such as its patient: held out together.
    fit
        Takes rows to learn from and returns a function from rows to their predictions.

    Returns
    -------
    The calibration; ``None`` where there is one group only, or no slide of 10 spots.
    """
    held_out = _held_out(slides)
    if len(set(groups)) < 2 or not held_out:
        return None

    def predictions() -> Iterator[tuple[sparse.csr_matrix, np.ndarray]]:
        for group in dict.fromkeys(groups[i] for i in held_out):
            others = [rows for rows, other in zip(slides, groups, strict=True) if other != group]
            predict = fit(np.sort(np.concatenate(others)))
            for rows in (rows for i, rows in held_out.items() if groups[i] == group):
                yield expression[rows], predict(rows)

    return _over_slides(predictions(), expression.shape[1])


def validate(
    expression: sparse.csr_matrix, slides: Sequence[np.ndarray], predict: Callable[[np.ndarray], np.ndarray]
) -> Calibration | None:
    """Correlation of each gene on slides that nothing was learnt from, measured as in :func:`cross_validate`.

    Parameters
    ----------
    expression
        n_spots x n_genes.
    slides
        Rows of each slide.
    predict
        From rows to their predictions.

    Returns
    -------
    The calibration; ``None`` where there is no slide of 10 spots.
    """
    held_out = _held_out(slides).values()
    if not held_out:
        return None
    return _over_slides(((expression[rows], predict(rows)) for rows in held_out), expression.shape[1])


def _held_out(slides: Sequence[np.ndarray]) -> dict[int, np.ndarray]:
    """Some rows of the slides that have enough spots, by the place of the slide."""
    enough = [i for i, rows in enumerate(slides) if len(rows) >= MIN_SPOTS]
    chosen = [enough[i] for i in _evenly(len(enough), MAX_SLIDES)]
    return {i: slides[i][_evenly(len(slides[i]), MAX_SPOTS)] for i in chosen}


def _over_slides(pairs: Iterable[tuple[sparse.csr_matrix, np.ndarray]], n_genes: int) -> Calibration:
    """From the measured and the predicted expression of each slide."""
    total, variance, n_varying = np.zeros((3, n_genes))
    n_slides = 0
    for truth, predicted in pairs:
        correlations = _correlations(truth, predicted)
        varying = ~np.isnan(correlations)
        total[varying] += correlations[varying]
        variance += varying / (len(predicted) - 1)
        n_varying += varying
        n_slides += 1
    seen = np.where(n_varying, n_varying, np.nan)
    return Calibration(total / seen, np.sqrt(variance) / seen, n_slides)


def _evenly(n: int, most: int) -> np.ndarray:
    """At most ``most`` of n places, evenly spaced."""
    return np.arange(n) if n <= most else np.linspace(0, n - 1, most).astype(np.int64)


def _correlations(truth: sparse.csr_matrix, predicted: np.ndarray) -> np.ndarray:
    """Correlation of each gene; NaN where the truth is constant, 0 where only the prediction is."""
    columns = truth.tocsc()
    out = np.empty(truth.shape[1])
    for part in _parts(truth.shape[1], truth.shape[0]):
        measured = columns[:, part].toarray()
        found = np.nan_to_num(metrics.pcc(measured, predicted[:, part]))
        out[part] = np.where(np.ptp(measured, axis=0) > 0, found, np.nan)
    return out
