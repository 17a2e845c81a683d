"""Rows on a few axes, which bound their cosines with a whole group of others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numba
import numpy as np
from numpy.typing import NDArray

AXES = 8
"""Axes at most."""
ENDS = 4 * AXES
"""Ends of the axes at most, with those opposite to them."""
_SAMPLE, _ROUNDS = 512, 3
"""Rows that the axes are taken from, and rounds of iteration."""
_BLOCK = 512
"""Rows that are projected, or bounded, at a time."""


@dataclass
class Projected:
    """Unit rows on a few orthogonal axes along which they spread most, and the length of what the axes leave.

    Attributes
    ----------
    places
        float32, (n_axes + 1) x n: product of each row with each axis, and the length of the rest.
    slack
        More than what rounding adds to or takes from a bound.
    """

    places: NDArray[np.float32]
    slack: float

    @classmethod
    def of(cls, features: NDArray, inverse: NDArray[np.float64]) -> Self:
        """Project rows; ``inverse`` is 1 / length of each, 0 for a row of zeros.

        The square of the rest is told by sums of ``dims`` terms and off by less than ``dims * 2**-48``, the rest itself
        by less than the root of that. Where the places of two rows are off by ``e``, half the square of their distance
        is off by ``4e``, and so is their product; either sum, in single precision, by less than ``2**-18``.
        """
        axes = _leading_axes(features, inverse)
        places = np.empty((axes.shape[1] + 1, len(features)), dtype=np.float32)
        for start in range(0, len(features), _BLOCK):
            part = slice(start, start + _BLOCK)
            along = axes.T @ features[part].T.astype(np.float64) * inverse[part]
            places[:-1, part] = along
            places[-1, part] = np.sqrt(np.maximum(0, (inverse[part] > 0) - (along * along).sum(axis=0)))
        return cls(places, 4 * (np.sqrt((len(axes) + 8) * 2.0**-48) + 2.0**-22) + 2.0**-18)

    def __getitem__(self, part: NDArray[np.intp]) -> Projected:
        return Projected(np.take(self.places, part, axis=1), self.slack)

    def ends(self) -> NDArray[np.intp]:
        """The rows that lie farthest out on each axis, and the one most opposite to each of them."""
        axes = self.places[:-1]
        ends = np.concatenate([axes.argmin(axis=1), axes.argmax(axis=1)])
        opposite = [(axes[:, end] @ axes).argmin() for end in ends]
        return np.unique(np.concatenate([ends, opposite]))

    def rivals(self, start: int, stop: int, low: float, high: float) -> NDArray[np.intp]:
        """The rows from ``stop`` on that may have a cosine below ``low`` or above ``high`` with one of the group.

        The group are the rows from ``start`` to ``stop``. Its box bounds ``|u - v|^2 = 2 - 2 cos`` from below, with
        ``|p - q| >= ||p| - |q||`` for what the axes leave, and the product from below, with ``pq >= -|p||q|``.
        """
        group = self.places[:, start:stop]
        lows, highs = group.min(axis=1), group.max(axis=1)
        factors = np.stack([lows, highs])
        factors[:, -1] = -highs[-1]
        near, least = np.float32(2 * (1 - high + self.slack)), np.float32(low + self.slack)
        return stop + np.flatnonzero(_within(self.places, stop, lows, highs, factors, near, least))


def _leading_axes(features: NDArray, inverse: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal columns along which a sample spreads most, by subspace iteration; bounds hold for any such axes."""
    sample = np.arange(0, len(features), -(-len(features) // _SAMPLE))
    rows = features[sample] * inverse[sample, None]
    rows -= rows.mean(axis=0)
    axes = np.random.default_rng(0).normal(size=(rows.shape[1], AXES))
    for _ in range(_ROUNDS):
        axes = np.linalg.qr(rows.T @ (rows @ axes))[0]
    return axes


@numba.njit(cache=True)
def _within(
    places: np.ndarray,
    first: int,
    lows: np.ndarray,
    highs: np.ndarray,
    factors: np.ndarray,
    near: np.float32,
    least: np.float32,
) -> np.ndarray:
    """Which rows from ``first`` on have a squared distance to the box, or a least product, below these.

    The lower of a place's products with its two factors is its term of the least product.
    """
    n = places.shape[1] - first
    within = np.empty(n, dtype=np.bool_)
    for start in range(0, n, _BLOCK):
        found = within[start : start + _BLOCK]
        squares, products = np.zeros(found.size, dtype=np.float32), np.zeros(found.size, dtype=np.float32)
        for k in range(lows.size):
            place, low, high = places[k, first + start : first + start + found.size], lows[k], highs[k]
            one, other = factors[0, k], factors[1, k]
            for r in range(place.size):
                gap = max(np.float32(0), max(low - place[r], place[r] - high))
                squares[r] += gap * gap
                products[r] += min(place[r] * one, place[r] * other)
        for r in range(found.size):
            found[r] = (squares[r] < near) | (products[r] < least)
    return within
