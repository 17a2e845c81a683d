"""Ridge regression in closed form, its penalty chosen by leave-one-out, in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

ALPHAS = np.logspace(-1, 5, 13)
"""Penalties tried, on standardised features."""
_BLOCK = 1 << 23
"""Numbers of float64 held of a block of rows."""


@dataclass(frozen=True)
class Ridge:
    """A fitted regression: ``features @ weight + bias``.

    Attributes
    ----------
    weight
        float64, dim x n_targets, of the features as they are, not standardised.
    bias
        float64, (n_targets,).
    alpha
        The penalty that was chosen.
    errors
        Mean squared leave-one-out error of each penalty tried.
    """

    weight: np.ndarray
    bias: np.ndarray
    alpha: float
    errors: np.ndarray

    def predict(self, features: np.ndarray) -> np.ndarray:
        """Targets for features, n x dim, in blocks of rows; returns float32, n x n_targets."""
        out = np.empty((len(features), len(self.bias)), dtype=np.float32)
        for rows in _blocks(len(features), max(self.weight.shape)):
            out[rows] = features[rows].astype(np.float64) @ self.weight + self.bias
        return out


def fit_ridge(
    features: np.ndarray, targets: np.ndarray | sparse.csr_matrix, *, alphas: Sequence[float] | np.ndarray = ALPHAS
) -> Ridge:
    """Fit a ridge regression with intercept on standardised features, one penalty for all targets.

    One eigendecomposition of the features' correlations gives the weights and the leave-one-out errors of every
    penalty: the residual of a spot, divided by one minus its leverage, is that of the fit without it. Sums are taken in
    float64. The result is that of scikit-learn's ``StandardScaler`` and ``RidgeCV``. Beside the arguments, memory holds
    dim x (dim + n_targets) numbers and one block of rows (at most 64 MiB of features and as much of targets).

    Parameters
    ----------
    features
        n x dim, two rows or more; a feature that is constant has weight 0.
    targets
        n x n_targets; sparse ones are made dense block by block.
    alphas
        Penalties to choose from; of equally good ones the first.

    Returns
    -------
    The regression.
    """
    n, alphas = len(features), np.asarray(alphas, dtype=np.float64)
    mean, scale = _moments(features)
    centre = _mean(targets)

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in _blocks(n, max(features.shape[1], len(centre))):
            part: Any = targets[rows]
            dense = part.toarray() if sparse.issparse(part) else part
            yield (features[rows] - mean) / scale, dense - centre

    gram = np.zeros((len(mean), len(mean)))
    moment = np.zeros((len(mean), len(centre)))
    for x, y in blocks():
        gram += x.T @ x
        moment += x.T @ y
    values, vectors = np.linalg.eigh(gram)
    rotated = vectors.T @ moment
    shrunk = 1 / (np.clip(values, 0, None) + alphas[:, None])
    errors = np.zeros(len(alphas))
    if len(alphas) > 1:
        basis, spanned = np.linalg.qr(rotated.T) if len(centre) > len(mean) else (None, rotated.T)
        for x, y in blocks():
            errors += _left_out(x @ vectors, y, basis, spanned.T, shrunk, n)
    best = int(np.argmin(errors))
    weight = vectors @ (shrunk[best, :, None] * rotated) / scale[:, None]
    return Ridge(weight, centre - mean @ weight, float(alphas[best]), errors / (n * len(centre)))


def _left_out(
    x: np.ndarray, y: np.ndarray, basis: np.ndarray | None, moment: np.ndarray, shrunk: np.ndarray, n: int
) -> np.ndarray:
    """Sum of squared leave-one-out residuals of some rows, for each penalty.

    ``x`` and ``moment`` are in the space of the eigenvectors. Of more targets than features, a fit reaches only the
    space of ``basis``, orthonormal n_targets x dim; what lies outside is the same for all penalties.
    """
    outside = np.zeros(len(y))
    if basis is not None:
        total, y = np.square(y).sum(axis=1), y @ basis
        outside = np.clip(total - np.square(y).sum(axis=1), 0, None)
    squares = [outside + np.square(y - (x * factors) @ moment).sum(axis=1) for factors in shrunk]
    kept = 1 - 1 / n - np.square(x) @ shrunk.T
    found: np.ndarray = (np.stack(squares, axis=1) / kept**2).sum(axis=0)
    return found


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature; 1 for one that is constant but for rounding."""
    mean = features.mean(axis=0, dtype=np.float64)
    total = sum(np.square(features[rows] - mean).sum(axis=0) for rows in _blocks(*features.shape))
    scale = np.sqrt(total / len(features))
    constant = scale <= len(features) * np.finfo(np.float64).eps * np.abs(mean)
    return mean, np.where(constant, 1.0, scale)


def _mean(targets: Any) -> np.ndarray:
    """Mean of each target; scipy would add up float32 in float32."""
    if sparse.issparse(targets):
        return np.bincount(targets.indices, targets.data, minlength=targets.shape[1]) / targets.shape[0]
    return np.asarray(targets.mean(axis=0, dtype=np.float64))


def _blocks(n: int, width: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(1, width))
    return (slice(start, start + step) for start in range(0, n, step))
