from __future__ import annotations

import numpy as np

from ..errors import DataError


def tissue_grid(mask: np.ndarray, *, spacing: float, min_tissue: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """The squares of a grid that hold tissue.

    The squares are laid from the top left corner; those that reach over the edge of the mask count what lies beyond as
    no tissue. The share of tissue is that of the square's area: pixels it cuts count by the part inside.

    Parameters
    ----------
    mask
        bool, height x width, of :func:`hibiost.images.tissue_mask`.
    spacing
        Side of the squares in pixels of the mask; need not be whole.
    min_tissue
        Least share of tissue in a square, from 0 to 1; a square without any is never taken.

    Returns
    -------
    Column and row of each square, int64, n x 2, row by row; its centre (x, y) is at (column + 0.5, row + 0.5) times
    ``spacing``. Beside it, its share of tissue, float64, n.

    Raises
    ------
    DataError
        ``spacing`` is not positive, or ``min_tissue`` not between 0 and 1.

    Examples
    --------
    >>> import numpy as np, hibiost as hb
    >>> mask = np.zeros((4, 6), dtype=bool)
    >>> mask[:, 3:] = True
    >>> places, share = hb.images.tissue_grid(mask, spacing=2)
    >>> places.tolist(), share.tolist()
    ([[1, 0], [2, 0], [1, 1], [2, 1]], [0.5, 1.0, 0.5, 1.0])
    """
    if not 0 < spacing < np.inf:
        raise DataError(f"spacing is {spacing}; expected pixels of the mask, a positive number.")
    if not 0 <= min_tissue <= 1:
        raise DataError(f"min_tissue is {min_tissue}; expected a share from 0 to 1.")
    area = np.asarray(mask, dtype=np.float64)
    for axis in (0, 1):
        area = _within(area, spacing, axis)
    share = np.minimum(area / spacing**2, 1.0)
    rows, columns = np.nonzero((share > 0) & (share >= min_tissue - 1e-9))
    return np.column_stack([columns, rows]), share[rows, columns]


def _within(values: np.ndarray, spacing: float, axis: int) -> np.ndarray:
    """Sums over intervals of ``spacing`` along an axis, pixels that a border cuts shared between both sides."""
    values = np.moveaxis(values, axis, 0)
    sums = np.concatenate([np.zeros((1, *values.shape[1:])), np.cumsum(values, axis=0)])
    borders = np.minimum(np.arange(np.ceil(len(values) / spacing) + 1) * spacing, len(values))
    before = np.minimum(borders.astype(np.int64), len(values) - 1)
    at_borders = sums[before] + (borders - before)[(...,) + (None,) * (values.ndim - 1)] * values[before]
    return np.moveaxis(np.diff(at_borders, axis=0), 0, axis)
