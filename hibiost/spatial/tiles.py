"""The spots of a slide in tiles that are looked at together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._products import Bits, RoughRows
from ..settings import settings

if TYPE_CHECKING:
    import torch

TILE = 512
"""Spots at most that are looked at together."""
GROUP = 8
"""Tiles that a tile is compared with at a time."""
_LONG = 50_000
"""Spots from which on progress is shown."""


@dataclass
class Spots:
    """The spots of a slide; ``order``, ``rough`` and ``rough_xy`` tell them tile by tile."""

    xy: NDArray[np.float64]
    features: NDArray[Any]
    inverse: NDArray[np.float64]
    """1 / length of each row of the features; 0 for a row of zeros."""
    order: NDArray[np.intp]
    """The spots, tile by tile."""
    bounds: NDArray[np.intp]
    """Where each tile begins, and where the last one ends."""
    boxes: NDArray[np.float64]
    """Lowest and highest x and y of each tile, n_tiles x 2 x 2."""
    rough: RoughRows
    rough_xy: NDArray[np.float32]
    """2 x n, from the middle of the slide."""
    centre: float
    """Squared length of the centre of the rough rows."""
    kept: NDArray[Any] | None
    """Rough products of all spots, where they are few."""

    def products(self, rows: slice, columns: slice | NDArray[np.intp], room: torch.Tensor) -> Bits:
        """Rough products of some spots with others, those kept or new ones in ``room``."""
        if self.kept is not None:
            return self.kept[rows, columns]
        return self.rough[rows].times(self.rough[columns], room)


def tiled(xy: NDArray[np.float64], features: NDArray) -> Spots:
    """The spots, with what a search needs beside them."""
    features = floats(features)
    inverse = inverse_lengths(features)
    centre = np.einsum("i,ij->j", inverse, features) / len(features)
    tiles = compact(xy)
    order = np.concatenate(tiles)
    bounds = np.cumsum([0, *map(len, tiles)])
    middle = (xy.min(axis=0) + xy.max(axis=0)) / 2
    rough = RoughRows.of(features, centre, scale=inverse, order=order)
    return Spots(
        xy=xy,
        features=features,
        inverse=inverse,
        order=order,
        bounds=bounds,
        boxes=np.array([[xy[tile].min(axis=0), xy[tile].max(axis=0)] for tile in tiles]),
        rough=rough,
        rough_xy=(xy - middle)[order].T.astype(np.float32, order="C"),
        centre=float(centre @ centre),
        kept=_all_products(rough, bounds) if len(tiles) <= GROUP else None,
    )


def _all_products(rough: RoughRows, bounds: NDArray[np.intp]) -> Bits:
    """Rough products of all rows with one another; half are multiplied, the others are their mirror image."""
    n, room = len(rough), rough.room(TILE, len(rough))
    found = np.empty((n, n), dtype=f"i{room.itemsize}")
    for start, stop in spans(bounds):
        found[start:stop, start:] = rough[start:stop].times(rough[start:], room)
        found[stop:, start:stop] = found[start:stop, stop:].T
    return found


def compact(places: NDArray[Any]) -> list[NDArray[np.intp]]:
    """Spots in compact groups by their places, n x dims: halves along the longest side."""
    parts, tiles = [np.arange(len(places))], []
    while parts:
        part = parts.pop()
        if len(part) <= TILE:
            tiles.append(part)
            continue
        half = len(part) // 2
        split = np.argpartition(places[part, np.ptp(places[part], axis=0).argmax()], half)
        parts += [part[split[half:]], part[split[:half]]]
    return tiles


def spans(bounds: NDArray[np.intp]) -> list[tuple[int, int]]:
    """Where each tile begins and ends."""
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


def members(tiles: NDArray[np.intp], bounds: NDArray[np.intp]) -> slice | NDArray[np.intp]:
    """Where the spots of some tiles stand; those of all tiles in their own order."""
    if len(tiles) == len(bounds) - 1:
        return slice(0, int(bounds[-1]))
    return np.concatenate([np.arange(bounds[tile], bounds[tile + 1]) for tile in tiles])


def with_progress(tiles: Sequence[Any], n_spots: int, desc: str) -> Iterable[Any]:
    """Tiles one after the other, with a bar where the spots are many."""
    from tqdm.auto import tqdm

    return tqdm(tiles, desc=desc, unit="tile", leave=False, disable=n_spots < _LONG or not settings.progress)


def unit_rows(features: NDArray) -> NDArray[Any]:
    """Rows of length 1, in single precision where they come in it; rows of zeros stay."""
    features = floats(features)
    return np.multiply(features, inverse_lengths(features)[:, None], out=np.empty_like(features), casting="same_kind")


def floats(features: NDArray) -> NDArray[Any]:
    """In single precision what comes in it or in half, all else in double."""
    single = features.dtype in (np.float16, np.float32)
    return np.ascontiguousarray(features, dtype=np.float32 if single else np.float64)


def inverse_lengths(features: NDArray) -> NDArray[np.float64]:
    """1 / length of each row; 0 for a row of zeros."""
    squares = np.einsum("ij,ij->i", features, features, dtype=np.float64)
    return np.divide(1, np.sqrt(squares), out=np.zeros(len(features)), where=squares > 0)
