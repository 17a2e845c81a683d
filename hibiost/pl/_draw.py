from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import inputs, keys
from ..errors import DataError, nearest

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection
    from matplotlib.figure import Figure

MISSING = "#d3d3d3"
"""Colour of spots without a value, as in scanpy."""

_MANY = 10_000
_PANEL = 4.2
_COLUMNS = 4


@dataclass(frozen=True)
class Section:
    """What is drawn of one slide: lengths in full-resolution pixels, ``scale`` takes them to pixels of ``image``."""

    library: str
    rows: NDArray[np.intp]
    xy: NDArray[np.float64]
    diameter: float
    image: NDArray | None
    scale: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, right, top and bottom of the spots with a margin of one spot."""
        (left, top), (right, bottom) = self.xy.min(axis=0) - self.diameter, self.xy.max(axis=0) + self.diameter
        return left, right, top, bottom


def sections(
    adata: AnnData, library_id: str | Sequence[str] | None, library_key: str, img_key: str | None
) -> list[Section]:
    """The slides asked for, all of them where ``library_id`` is None."""
    xy = inputs.coordinates(adata)
    libraries = inputs.libraries(adata, library_key)
    chosen = list(libraries) if library_id is None else listed(library_id)
    for library in chosen:
        if library not in libraries:
            raise DataError(f"no slide {library!r}; there are {list(libraries)}.{nearest(library, libraries)}")
    return [_section(adata, library, libraries[library], xy[libraries[library]], img_key) for library in chosen]


def listed(names: str | Sequence[str]) -> list[str]:
    """One or more names as a list, never an empty one."""
    found = [names] if isinstance(names, str) else list(names)
    if not found:
        raise DataError("found an empty list of names (color, library_id or title); expected at least one.")
    return found


def _section(
    adata: AnnData, library: str, rows: NDArray[np.intp], xy: NDArray[np.float64], img_key: str | None
) -> Section:
    entry = adata.uns.get(keys.SPATIAL, {}).get(library, {})
    factors, images = entry.get("scalefactors", {}), entry.get("images", {})
    diameter = factors.get("spot_diameter_fullres")
    if img_key == "hires" and "hires" not in images:
        img_key = "lowres"
    scale = factors.get(f"tissue_{img_key}_scalef")
    image = None if scale is None or img_key not in images else np.asarray(images[img_key])
    diameter = inputs.half_pitch(xy) if diameter is None else float(diameter)
    return Section(library, rows, xy, diameter, image, 1.0 if scale is None else float(scale))


def axes_for(
    panels: Sequence[Section],
    ax: Axes | Sequence[Axes] | None,
    *,
    figsize: tuple[float, float] | None,
    ncols: int = _COLUMNS,
    beside: float,
    width: float = _PANEL,
) -> list[Axes]:
    """One Axes per slide: the user's, or those of a new figure, ``width`` inches each and ``beside`` right of each."""
    heights = [(bottom - top) / (right - left) for left, right, top, bottom in (panel.box for panel in panels)]
    height = width * float(np.clip(np.median(heights), 0.3, 3))
    hint = "give one each, or choose library_id="
    return panel_axes(len(panels), ax, figsize=figsize, ncols=ncols, size=(width + beside, height + 0.4), hint=hint)


def panel_axes(
    n: int,
    ax: Axes | Sequence[Axes] | None,
    *,
    figsize: tuple[float, float] | None,
    ncols: int,
    size: tuple[float, float],
    hint: str = "give one each",
) -> list[Axes]:
    """One Axes for each of ``n`` panels: the user's, or those of a new figure, where a panel takes ``size`` inches."""
    if ax is not None:
        given = list(ax) if isinstance(ax, Sequence | np.ndarray) else [ax]
        if len(given) != n:
            raise DataError(f"ax holds {len(given)} Axes for {n} panels; {hint}.")
        return given
    from matplotlib import pyplot as plt

    ncols = min(ncols, n)
    nrows = -(-n // ncols)
    fig = plt.figure(figsize=figsize or (ncols * size[0], nrows * size[1]), layout="constrained")
    grid = fig.subplots(nrows, ncols, squeeze=False).ravel()
    for empty in grid[n:]:
        empty.remove()
    return list(grid[:n])


def draw_spots(
    ax: Axes, section: Section, *, size: float, alpha: float, alpha_img: float, title: str, **colors: Any
) -> EllipseCollection:
    """Draw the H&E and the spots as circles of ``size`` times their true diameter, coloured by ``colors``."""
    from matplotlib.collections import EllipseCollection

    left, right, top, bottom = section.box
    if section.image is not None:
        height, width = np.array(section.image.shape[:2]) / section.scale - 0.5
        ax.imshow(section.image, extent=(-0.5, width, height, -0.5), cmap="gray", alpha=alpha_img)
    diameters = np.full(len(section.xy), size * section.diameter)
    spots = EllipseCollection(
        diameters, diameters, np.zeros_like(diameters), units="xy", offsets=section.xy, offset_transform=ax.transData,
        linewidths=0, alpha=alpha, rasterized=len(diameters) > _MANY, **colors,
    )  # fmt: skip
    ax.add_collection(spots, autolim=False)
    ax.set(xlim=(left, right), ylim=(bottom, top), aspect="equal", xticks=[], yticks=[], title=title)
    ax.spines[:].set_visible(False)
    return spots


def value_limits(values: NDArray[np.floating], vmin: float | None, vmax: float | None) -> tuple[float, float]:
    """Ends of a colour range: those given, else the 1st and 99th percentile."""
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(finite, [1, 99])
    if low == high:
        low, high = finite.min(), finite.max()
    low, high = low if vmin is None else vmin, high if vmax is None else vmax
    return float(low), float(high) if high > low else float(low) + 1.0


def draw_values(
    ax: Axes,
    slide: Section,
    values: NDArray[np.floating],
    limits: tuple[float, float],
    *,
    cmap: str,
    unit: str,
    **drawing: Any,
) -> None:
    """Draw the spots in the colours of their values, grey where there is none, with a colour bar."""
    import matplotlib

    colors = matplotlib.colormaps[cmap].with_extremes(bad=MISSING)
    array = np.ma.masked_invalid(values[slide.rows])
    spots = draw_spots(ax, slide, array=array, cmap=colors, clim=limits, **drawing)
    bar = ax.figure.colorbar(spots, cax=ax.inset_axes((1.02, 0.2, 0.035, 0.6)), label=unit)
    bar.outline.set_visible(False)


def hex_colors(palette: str | Sequence[str] | None, n: int, things: str) -> list[str]:
    """``n`` hexadecimal colours: the first of a list, those of a matplotlib colormap, or by default scanpy's."""
    from matplotlib.colors import to_hex

    if palette is None:
        palette = _scanpy_palette(n)
    elif isinstance(palette, str):
        palette = _colormap(palette, n)
    if len(palette) < n:
        raise DataError(f"palette holds {len(palette)} colours for the {n} {things}.")
    return [to_hex(c, keep_alpha=False) for c in palette[:n]]


def _scanpy_palette(n: int) -> list[str]:
    from scanpy.plotting import palettes

    for colors in (palettes.vega_10_scanpy, palettes.default_20, palettes.default_28):
        if n <= len(colors):
            return list(colors)
    return [palettes.default_102[i % 102] for i in range(n)]


def _colormap(name: str, n: int) -> list:
    import matplotlib

    cmap = matplotlib.colormaps[name]
    return list(cmap(np.arange(n) % cmap.N)) if cmap.N < 256 else list(cmap(np.linspace(0, 1, n)))


def finish(
    axes: list[Axes], ax: Axes | Sequence[Axes] | None, *, show: bool, save: str | Path | None
) -> Figure | Axes | Sequence[Axes]:
    """Save, show and hand back: the user's Axes, or the figure, which pyplot then forgets."""
    from matplotlib import pyplot as plt

    figure: Figure = axes[0].figure.canvas.figure
    if save is not None:
        figure.savefig(save, bbox_inches="tight", dpi=200)
    if show:
        plt.show()
    if ax is not None:
        return ax
    plt.close(figure)
    return figure
