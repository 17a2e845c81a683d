"""The least and the greatest cosine of the spots of a slide, by which eq 7 of HiBio-ST scales its second term."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from .._products import SINGLE, STRIP, Bits, RoughRows, dot, widen
from . import tiles
from .projected import ENDS, Projected
from .tiles import Spots, compact, spans, with_progress

ONE = 1 - 1e-13
"""Cosines beyond it, or below its negative, count as 1 or -1."""
_PROBED, _FEW = 8, 1 / 4
"""One group of so many tells whether a pair in so many, at most, may have the least or the greatest cosine."""


def cosine_range(spots: Spots) -> tuple[float, float]:
    """Least and greatest cosine of two spots."""
    found = _CosineRange(spots)
    if spots.kept is not None or not found.among_few():
        found.among_all()
    return found.low, found.high


class _CosineRange:
    """Least and greatest cosine of the pairs of spots that were compared."""

    def __init__(self, spots: Spots) -> None:
        self.spots, self.low, self.high = spots, np.inf, -np.inf
        self.room = spots.rough.room(max(tiles.TILE, ENDS), tiles.GROUP * tiles.TILE)

    def among_all(self) -> None:
        """Compare all pairs, tile by tile."""
        spots, order, rough = self.spots, self.spots.order, self.spots.rough
        for start, stop in with_progress(spans(spots.bounds), len(order), "range of cosines"):
            # kept products are looked at by whole rows, which lie in one piece
            for first in range(start if spots.kept is None else 0, len(order), tiles.GROUP * tiles.TILE):
                own, to = slice(start, stop), slice(first, first + tiles.GROUP * tiles.TILE)
                rows, columns = (order[own], rough[own]), (order[to], rough[to])
                self._compare(spots.products(own, to, self.room), rows, columns, spots.centre, start + 1 - first)

    def among_few(self) -> bool:
        """Compare the pairs whose cosine may be the least or the greatest, unless those are too many; say which.

        Groups of like embeddings, each by itself, and the ends of the axes tell nearly the whole range. Then each group
        is compared with the spots of later ones that may have a cosine beyond it.
        """
        n, projected = len(self.spots.order), Projected.of(self.spots.features, self.spots.inverse)
        groups = compact(projected.places[:-1].T)
        order, bounds = np.concatenate(groups), spans(np.cumsum([0, *map(len, groups)]))
        for group in [projected.ends(), *groups[::_PROBED]]:
            self._compare_like(group, group, 1)
        projected = projected[order]
        left = sum(len(projected.rivals(*group, *self._open())) for group in bounds[::_PROBED])
        if left > _FEW * sum(n - stop for _, stop in bounds[::_PROBED]):
            return False
        for group in groups:
            self._compare_like(group, group, 1)
        for start, stop in with_progress(bounds, n, "range of cosines"):
            rivals = order[projected.rivals(start, stop, *self._open())]
            # oneDNN keeps a kernel for each new shape
            whole = np.pad(rivals, (0, -len(rivals) % tiles.TILE), mode="edge")
            self._compare_like(order[start:stop], whole, -tiles.TILE)
        return True

    def _open(self) -> tuple[float, float]:
        """The range, without an end beyond which there is nothing."""
        return self.low if self.low > -ONE else -np.inf, self.high if self.high < ONE else np.inf

    def _compare_like(self, group: NDArray[np.intp], others: NDArray[np.intp], ahead: int) -> None:
        """Compare, having taken the centre of the group away, which leaves little of like rows, and little error."""
        features, inverse = self.spots.features, self.spots.inverse
        centre = inverse[group] @ features[group] / len(group)
        rows = group, RoughRows.of(features, centre, scale=inverse, order=group)
        for first in range(0, len(others), tiles.GROUP * tiles.TILE):
            part = others[first : first + tiles.GROUP * tiles.TILE]
            columns = part, RoughRows.of(features, centre, scale=inverse, order=part)
            bits = rows[1].times(columns[1], self.room)
            self._compare(bits, rows, columns, float(centre @ centre), ahead - first)

    def _compare(
        self,
        bits: Bits,
        rows: tuple[NDArray[np.intp], RoughRows],
        columns: tuple[NDArray[np.intp], RoughRows],
        centre: float,
        ahead: int,
    ) -> None:
        """Compare each row with the columns from ``ahead + row`` on; ``centre`` is the squared length of theirs."""
        (spots, own), (others, bank) = rows, columns
        farthest = max(np.abs(own.along).max(), np.abs(bank.along).max())
        error = own.error(bank) + SINGLE * (farthest + centre + own.length * bank.length.max())
        shift = (bank.along - centre).astype(np.float32)
        exact = self.spots.features, self.spots.inverse, self.low, self.high
        self.low, self.high = _extremes(bits, spots, own.along, error, ahead, others, shift, *exact)


@numba.njit(cache=True, inline="always")
def _beyond(low: float, high: float, along: float, error: float) -> tuple[np.float32, np.float32]:
    """Rough cosines that may be a new extreme: up to the first, from the second on."""
    below = np.float32(low - along + error) if low > -ONE else np.float32(-np.inf)
    return below, np.float32(high - along - error) if high < ONE else np.float32(np.inf)


@numba.njit(parallel=True, cache=True)
def _extremes(
    bits: np.ndarray,
    rows: np.ndarray,
    along: np.ndarray,
    error: np.ndarray,
    ahead: int,
    columns: np.ndarray,
    shift: np.ndarray,
    features: np.ndarray,
    inverse: np.ndarray,
    low: float,
    high: float,
) -> tuple[float, float]:
    """The range of cosines, ``low`` to ``high`` so far, of each row with the columns from ``ahead + row`` on.

    A cosine is computed where its rough value, ``along + bits + shift``, lies within its error of a new extreme.
    """
    lows, highs = np.full(rows.size, low), np.full(rows.size, high)
    for row in numba.prange(rows.size):
        judged = np.empty(STRIP, dtype=np.float32)
        below, above = _beyond(low, high, along[row], error[row])
        for start in range(max(0, ahead + row), columns.size, STRIP):
            strip, shifts = bits[row, start : start + STRIP], shift[start : start + STRIP]
            widen(strip, judged.view(np.uint32))
            for c in range(strip.size):
                judged[c] += shifts[c]
            found = False
            for c in range(strip.size):
                found |= (judged[c] <= below) | (judged[c] >= above)
            if not found:
                continue
            for c in range(strip.size):
                if judged[c] <= below or judged[c] >= above:
                    i, j = min(rows[row], columns[start + c]), max(rows[row], columns[start + c])
                    cosine = dot(features[i], features[j]) * inverse[i] * inverse[j]
                    lows[row], highs[row] = min(lows[row], cosine), max(highs[row], cosine)
                    below, above = _beyond(lows[row], highs[row], along[row], error[row])
    return lows.min(), highs.max()
