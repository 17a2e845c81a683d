"""Synthetic H&E: hidden regions, and pixels as a pure function of position and seed.

Everything is drawn in square blocks of a fixed grid, so that any part of a section of any size can be drawn alone and
joins its neighbours without a seam.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from tqdm.auto import tqdm

from ..settings import settings

BLOCK = 512
"""Side of a block, in pixels."""
STEP = 16
"""Pixels between the points at which regions are evaluated; between them they are interpolated."""

HEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
EOSIN = np.array([0.14, 0.92, 0.28], np.float32)
"""Optical density of the stains in red, green and blue (Ruifrok and Johnston 2001; eosin a little less pure)."""

NUCLEUS_UM, LUMEN_UM = 7.0, 62.0
"""Spacing of the jittered lattices that nuclei and lumina sit on, in micrometres."""


class Look(NamedTuple):
    """How a kind of tissue looks and how much RNA it holds."""

    name: str
    cellularity: float
    """RNA of a spot, relative to the mean."""
    nuclei: float
    """Share of the lattice places that hold a nucleus."""
    radius: float
    """Radius of a nucleus, micrometres."""
    elongation: float
    darkness: float
    hematoxylin: float
    eosin: float
    fibres: float
    lumen: float
    """Radius of the empty spaces (fat, ducts), micrometres."""


LOOKS = (
    Look("tumour", 1.3, 0.60, 4.2, 1.2, 0.75, 0.34, 0.42, 0.1, 0.0),
    Look("stroma", 0.7, 0.10, 2.6, 2.6, 0.90, 0.03, 0.62, 0.7, 0.0),
    Look("immune", 1.5, 0.95, 2.7, 1.0, 1.15, 0.20, 0.24, 0.1, 0.0),
    Look("adipose", 0.4, 0.08, 2.2, 1.6, 0.90, 0.04, 0.50, 0.2, 29.0),
    Look("gland", 1.1, 0.75, 3.2, 1.4, 0.95, 0.22, 0.40, 0.3, 17.0),
    Look("necrosis", 0.5, 0.12, 1.5, 1.0, 1.30, 0.12, 0.80, 0.0, 0.0),
)
"""The kinds of tissue, in the order in which regions take them."""


@dataclass(frozen=True)
class Section:
    """One section: its size, its hidden regions and its stain.

    Parameters
    ----------
    height, width
        Size, pixels.
    mpp
        Micrometres per pixel.
    margin
        Mean width of the empty glass along the border, pixels.
    looks
        The looks of the regions, one each.
    stain
        Strength of hematoxylin and eosin, around 1.
    key
        Seed of everything that is hashed from pixel positions.
    centres, owners
        Centres of the patches of tissue (x, y), pixels, and the region that each belongs to.
    waves
        Wave vector (x, y), phase and weight of the waves behind smooth fields: 3 fields x waves x 4.
    """

    height: int
    width: int
    mpp: float
    margin: float
    looks: tuple[Look, ...]
    stain: tuple[float, float]
    key: int
    centres: np.ndarray
    owners: np.ndarray
    waves: np.ndarray

    @classmethod
    def random(
        cls, height: int, width: int, *, mpp: float, margin: float, looks: tuple[Look, ...], rng: np.random.Generator
    ) -> Section:
        """A section with random regions: warped Voronoi cells of centres on a jittered grid, every region present."""
        side = int(np.ceil(np.sqrt(4 * len(looks))))
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)
        centres = (grid + rng.uniform(0.15, 0.85, grid.shape)) / side * [width, height]
        owners = rng.permutation(np.arange(len(centres)) % len(looks))
        angle, phase = rng.uniform(0, 2 * np.pi, (2, 3, 8))
        frequency = 2 * np.pi * rng.uniform(1.0, 4.0, (3, 8)) / max(height, width)
        weight = rng.normal(size=(3, 8)) / np.sqrt(8)
        waves = np.stack([frequency * np.cos(angle), frequency * np.sin(angle), phase, weight], -1)
        stain = (float(rng.uniform(0.85, 1.15)), float(rng.uniform(0.85, 1.15)))
        return cls(height, width, mpp, margin, looks, stain, int(rng.integers(2**62)), centres, owners, waves)

    def _field(self, i: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Smooth random field, about standard normal."""
        field = np.zeros(np.shape(x))
        for kx, ky, phase, weight in self.waves[i]:
            field += weight * np.sqrt(2) * np.cos(kx * x + ky * y + phase)
        return field

    def weights(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Share of each region at some points (last axis): 1 inside a region, mixed within some 16 px of a border."""
        bend = 0.04 * max(self.height, self.width)
        u, v = x + bend * self._field(0, x, y), y + bend * self._field(1, x, y)
        nearest = np.full((*np.shape(x), len(self.looks)), np.inf)
        for (cx, cy), owner in zip(self.centres, self.owners, strict=True):
            np.minimum(nearest[..., owner], np.hypot(u - cx, v - cy), out=nearest[..., owner])
        weights = np.exp((nearest.min(-1, keepdims=True) - nearest) / STEP)
        return weights / weights.sum(-1, keepdims=True)

    def cellularity(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Density of cells relative to what is usual in the region, 0.6 to 1.4: it drives nuclei and RNA alike."""
        return 1 + 0.4 * np.tanh(self._field(2, x, y))

    def _tissue(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """1 on tissue, 0 on glass."""
        border = np.minimum(np.minimum(x, self.width - x), np.minimum(y, self.height - y))
        ragged = self._field(0, 7.3 * x, 7.3 * y)
        return np.clip((border - self.margin * (1 + 0.3 * np.tanh(ragged))) / STEP + 0.5, 0, 1)

    @property
    def blocks(self) -> tuple[int, int]:
        """Rows and columns of blocks that cover the section."""
        return -(-self.height // BLOCK), -(-self.width // BLOCK)

    def draw(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Row, column and pixels of every block, row by row; blocks at the far edges reach beyond the section."""
        rows, columns = self.blocks
        progress = tqdm(range(rows * columns), "image", delay=2, disable=not settings.progress)
        for row, column in (divmod(i, columns) for i in progress):
            yield row, column, self.block(row, column)

    def image(self) -> np.ndarray:
        """All pixels: height x width x 3, uint8."""
        pixels = np.empty((self.height, self.width, 3), np.uint8)
        for row, column, block in self.draw():
            _paste(pixels, row, column, block)
        return pixels

    def write(self, path: Path, thumbnail_px: int) -> tuple[np.ndarray, float]:
        """Write a tiled TIFF, one block in memory at a time.

        Returns
        -------
        The image at no more than ``thumbnail_px`` a side (but at least a pixel a block), and the scale of that.
        """
        shrink = min(BLOCK, 2 ** max(0, int(np.ceil(np.log2(max(self.height, self.width) / thumbnail_px)))))
        thumbnail = np.empty((-(-self.height // shrink), -(-self.width // shrink), 3), np.uint8)
        side = BLOCK // shrink

        def tiles() -> Iterator[np.ndarray]:
            for row, column, block in self.draw():
                means = block.reshape(side, shrink, side, shrink, 3).mean((1, 3), dtype=np.float32)
                _paste(thumbnail, row, column, means.astype(np.uint8))
                yield block

        per_cm = 1e4 / self.mpp
        tifffile.imwrite(
            path,
            tiles(),
            shape=(self.height, self.width, 3),
            dtype=np.uint8,
            tile=(BLOCK, BLOCK),
            photometric="rgb",
            resolution=(per_cm, per_cm),
            resolutionunit="CENTIMETER",
            bigtiff=self.height * self.width * 3 > 2**31,
        )
        return thumbnail, 1 / shrink

    def block(self, row: int, column: int) -> np.ndarray:
        """Pixels of one block: BLOCK x BLOCK x 3, uint8."""
        top, left = row * BLOCK, column * BLOCK
        ticks = np.arange(0, BLOCK + 1, STEP, dtype=np.float64)
        x, y = np.meshgrid(left + ticks, top + ticks)
        table = np.array([(look.hematoxylin, look.eosin, look.fibres) for look in self.looks])
        maps = ((self.weights(x, y) * self._tissue(x, y)[..., None]) @ table).astype(np.float32)
        hematoxylin, eosin, fibres = (_enlarge(maps[..., i]) for i in range(3))
        grain = sum(_enlarge(self._noise(top, left, step)) for step in (2, 8, 32)) / 3
        nuclei = self._nuclei(top, left)
        solid = 1 - self._lumina(top, left)
        strands = self._strands(top, left)
        eosin = eosin * (0.65 + 0.7 * grain + fibres * (strands - 0.5)) * (1 - 0.5 * np.minimum(nuclei, 1))
        hematoxylin = hematoxylin * (0.5 + grain) + nuclei * (0.8 + 0.4 * grain)
        density = solid[..., None] * (
            self.stain[0] * hematoxylin[..., None] * HEMATOXYLIN + self.stain[1] * eosin[..., None] * EOSIN
        )
        return (243 * np.exp(-density) + 0.5).astype(np.uint8)

    def _noise(self, top: int, left: int, step: int) -> np.ndarray:
        """Uniform noise on the lattice of a block, ``step`` pixels apart."""
        ticks = np.arange(BLOCK // step + 1)
        ix, iy = np.meshgrid(left // step + ticks, top // step + ticks)
        return _uniform(ix, iy, self.key, step)

    def _strands(self, top: int, left: int) -> np.ndarray:
        """Wavy fibres of two widths, 0 to 1."""
        bend = sum(_enlarge(self._noise(top, left, step)) * step for step in (32, 64, 128)) / 128
        ticks = np.arange(BLOCK, dtype=np.float32)
        along = (0.5 * (left + ticks) + 0.87 * (top + ticks[:, None])) * np.float32(self.mpp)
        return 0.5 + 0.3 * np.sin(0.8 * along + 14 * bend) + 0.2 * np.sin(2.1 * along + 31 * bend)

    def _nuclei(self, top: int, left: int) -> np.ndarray:
        """Nuclei of a block, as darkness."""
        ix, iy, x, y = self._lattice(top, left, NUCLEUS_UM / self.mpp, jitter=0.8, channels=(104, 105))
        look = self._look_at(x, y)
        chance, size, dark, turn = (_uniform(ix, iy, self.key, channel) for channel in range(100, 104))
        present = (chance < look["nuclei"] * self.cellularity(x, y)) & (self._tissue(x, y) > 0.5)
        radius = look["radius"] * (0.8 + 0.4 * size) / self.mpp
        darkness = look["darkness"] * (0.75 + 0.5 * dark)
        stretch = np.sqrt(look["elongation"])
        stamps = np.stack([x - left, y - top, radius * stretch, radius / stretch, np.pi * turn, darkness])
        return _stamp(stamps[:, present])

    def _lumina(self, top: int, left: int) -> np.ndarray:
        """Empty spaces of a block, 0 to 1."""
        ix, iy, x, y = self._lattice(top, left, LUMEN_UM / self.mpp, jitter=0.3, channels=(203, 204))
        size, shape, turn = (_uniform(ix, iy, self.key, channel) for channel in range(200, 203))
        radius = self._look_at(x, y)["lumen"] * (0.85 + 0.3 * size) / self.mpp
        stretch = 1 + 0.15 * shape
        stamps = np.stack([x - left, y - top, radius * stretch, radius / stretch, np.pi * turn, np.ones_like(radius)])
        return _stamp(stamps[:, radius > 0])

    def _look_at(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Fields of the prevailing look at some points."""
        fields = np.dtype([(name, np.float64) for name in Look._fields[1:]])
        table = np.array([tuple(look[1:]) for look in self.looks], fields)
        return table[self.weights(x, y).argmax(-1)]

    def _lattice(
        self, top: int, left: int, spacing: float, *, jitter: float, channels: tuple[int, int]
    ) -> tuple[np.ndarray, ...]:
        """Integer and pixel positions of the points of a jittered triangular lattice that can reach into a block."""
        ranges = (np.arange(start // spacing - 2, (start + BLOCK) // spacing + 3).astype(int) for start in (left, top))
        ix, iy = (i.ravel() for i in np.meshgrid(*ranges))
        shift_x, shift_y = (jitter * (_uniform(ix, iy, self.key, channel) - 0.5) for channel in channels)
        return ix, iy, (ix + 0.5 * (iy % 2) + shift_x) * spacing, (iy + shift_y) * spacing


def _paste(pixels: np.ndarray, row: int, column: int, block: np.ndarray) -> None:
    side = len(block)
    place = pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]
    place[...] = block[: place.shape[0], : place.shape[1]]


def _enlarge(lattice: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of a lattice over a block to its pixels."""
    step = BLOCK // (len(lattice) - 1)
    t = (np.arange(step, dtype=np.float32) / step)[None, :]
    rows = lattice[:-1, None] * (1 - t[..., None]) + lattice[1:, None] * t[..., None]
    rows = rows.reshape(BLOCK, -1)
    return (rows[:, :-1, None] * (1 - t) + rows[:, 1:, None] * t).reshape(BLOCK, BLOCK)


def _uniform(ix: np.ndarray, iy: np.ndarray, key: int, channel: int) -> np.ndarray:
    """Numbers in [0, 1), float32, hashed from integer positions (the finaliser of splitmix64)."""
    z = ix.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z ^= iy.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    z ^= np.uint64(key) ^ np.uint64(channel << 40)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / np.float32(2**24)


def _stamp(ellipses: np.ndarray) -> np.ndarray:
    """A block with ellipses on it; where they overlap the strongest counts.

    Parameters
    ----------
    ellipses
        6 x n: centre x and y, semi-axes and angle, strength.
    """
    block = np.zeros((BLOCK, BLOCK), np.float32)
    if ellipses.shape[1] == 0:
        return block
    x, y, a, b, angle, strength = ellipses[:, :, None, None]
    reach = int(np.ceil(max(a.max(), b.max())))
    ticks = np.arange(-reach, reach + 1)
    column, row = np.floor(x).astype(int) + ticks, np.floor(y).astype(int) + ticks[:, None]
    dx, dy = column - x, row - y
    u, v = (dx * np.cos(angle) + dy * np.sin(angle)) / a, (dy * np.cos(angle) - dx * np.sin(angle)) / b
    value = strength * np.clip((1 - np.hypot(u, v)) * np.sqrt(a * b) / 1.5, 0, 1)
    inside = (column >= 0) & (column < BLOCK) & (row >= 0) & (row < BLOCK) & (value > 0)
    np.maximum.at(block.reshape(-1), (row * BLOCK + column)[inside], value[inside].astype(np.float32))
    return block
