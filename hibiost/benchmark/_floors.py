from __future__ import annotations

import numpy as np

from ..model.ridge import fit_ridge

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def colour_statistics(patches: np.ndarray) -> np.ndarray:
    """Mean, standard deviation and five quantiles of each colour channel: what a patch tells without any shape.

    Parameters
    ----------
    patches
        uint8, n x size x size x 3.

    Returns
    -------
    float32, n x 21.

    Examples
    --------
    >>> import numpy as np, hibiost as hb
    >>> hb.benchmark.colour_statistics(np.zeros((2, 8, 8, 3), dtype=np.uint8)).shape
    (2, 21)
    """
    pixels = patches.reshape(len(patches), -1, 3).astype(np.float32)
    parts = [pixels.mean(axis=1), pixels.std(axis=1), *np.quantile(pixels, QUANTILES, axis=1)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def ridge(features: np.ndarray, targets: np.ndarray, *, queries: np.ndarray) -> np.ndarray:
    """Ridge regression on standardised features, its penalty chosen by leave-one-out on the training spots.

    Parameters
    ----------
    features
        Training features, n x dim.
    targets
        Training targets, n x n_genes.
    queries
        Features to predict for, m x dim.

    Returns
    -------
    float32, m x n_genes.

    Examples
    --------
    >>> import numpy as np, hibiost as hb
    >>> x = np.arange(20.0)[:, None]
    >>> hb.benchmark.ridge(x, 2 * x, queries=np.array([[5.0]])).round(1)
    array([[10.]], dtype=float32)
    """
    return fit_ridge(features, targets.reshape(len(targets), -1)).predict(queries)
