from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from .. import inputs, keys
from ..errors import DataError
from ._draw import MISSING, axes_for, draw_spots, finish, hex_colors, listed, sections

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEGEND_ROWS = 18


@inputs.takes_spatialdata
def spatial_clusters(
    adata: AnnData,
    *,
    color: str | Sequence[str] = keys.CLUSTER,
    library_id: str | Sequence[str] | None = None,
    library_key: str = keys.LIBRARY,
    palette: str | Sequence[str] | Mapping[str, str] | None = None,
    size: float = 1.0,
    alpha: float = 1.0,
    img_key: str | None = "hires",
    alpha_img: float = 0.7,
    ax: Axes | Sequence[Axes] | None = None,
    figsize: tuple[float, float] | None = None,
    title: str | Sequence[str] | None = None,
    show: bool = False,
    save: str | Path | None = None,
) -> Figure | Axes | Sequence[Axes]:
    """Draw clusters, or any labels, as spots of true size over the H&E, one panel per slide.

    Colours are read from ``uns[f"{color}_colors"]`` and kept there as scanpy does, where ``color`` is categorical and
    ``adata`` is no view. Spots without a label are grey.

    Parameters
    ----------
    adata
        Spots with ``obsm["spatial"]``; images and spot diameters come from ``uns["spatial"]`` in scanpy's layout.
        Without an image the background is plain; without a diameter it is half the distance between spots.
    color
        One or more ``obs`` columns of labels, such as ``["cluster", "label"]``: each has its panels and its legend.
    library_id
        The slides to draw; by default all.
    library_key
        ``obs`` column that tells the slides apart.
    palette
        Colours in the order of the categories, a mapping from labels to colours, or the name of a matplotlib colormap;
        by default the colours kept, else scanpy's.
    size
        Factor on the spot diameter.
    alpha
        Opacity of the spots.
    img_key
        Image to draw beneath, or ``None`` for none. ``"lowres"`` stands in for ``"hires"`` where that is absent.
    alpha_img
        Opacity of the image; below 1 it is paler, so that the spots stand out.
    ax
        One Axes per panel to draw into.
    figsize
        Width and height of the figure in inches.
    title
        Title of each panel; by default the slide, the labels, or both, whichever there are several of.
    show
        Call ``plt.show()``. In a notebook the returned figure shows itself.
    save
        File to write, its ending being the format.

    Returns
    -------
    ``ax`` where it was given, else the figure.

    Raises
    ------
    MissingSlotError
        ``color`` or the coordinates are not there.
    DataError
        ``color`` holds continuous values, a slide is not there, or palette, title or ax have the wrong length.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(n_spots=100)
    >>> adata.obs["cluster"] = (adata.obsm["spatial"][:, 0] > adata.obsm["spatial"][:, 0].mean()).astype(int)
    >>> figure = hb.pl.spatial_clusters(adata, palette=["tomato", "gold"])
    """
    from matplotlib.colors import to_rgba_array

    inputs.check_spots(adata)
    columns = listed(color)
    labels = {column: _labels(adata, column) for column in columns}
    colors = {column: _colors(adata, column, labels[column], palette) for column in columns}
    slides = sections(adata, library_id, library_key, img_key)
    panels = [(column, slide) for column in columns for slide in slides]
    titles = [_title(column, slide.library, len(columns), len(slides)) for column, slide in panels]
    titles = titles if title is None else listed(title)
    if len(titles) != len(panels):
        raise DataError(f"title holds {len(titles)} titles for {len(panels)} panels; give one each.")

    ncols = min(4, len(slides) if len(slides) > 1 else len(columns))
    axes = axes_for([slide for _, slide in panels], ax, figsize=figsize, ncols=ncols, beside=0.8)
    for panel, (column, slide), text in zip(axes, panels, titles, strict=True):
        codes = labels[column].codes[slide.rows]
        facecolors = to_rgba_array([*colors[column], MISSING])[codes]
        draw_spots(panel, slide, size=size, alpha=alpha, alpha_img=alpha_img, title=text, facecolors=facecolors)
        if slide is slides[-1]:
            _legend(panel, labels[column], colors[column])
    for column in columns:
        if isinstance(adata.obs[column].dtype, pd.CategoricalDtype) and not adata.is_view:
            adata.uns[f"{column}_colors"] = colors[column]
    return finish(axes, ax, show=show, save=save)


def _title(column: str, library: str, n_columns: int, n_slides: int) -> str:
    if n_slides == 1:
        return column
    return library if n_columns == 1 else f"{library}: {column}"


def _labels(adata: AnnData, column: str) -> pd.Categorical:
    values = inputs.slot(adata, "obs", column, "hb.tl.cluster(adata, n_clusters=...)")
    if pd.api.types.is_float_dtype(values):
        raise DataError(f"obs[{column!r}] holds continuous values ({values.dtype}); expected labels.")
    return pd.Categorical(values)


def _colors(
    adata: AnnData, column: str, labels: pd.Categorical, palette: str | Sequence[str] | Mapping[str, str] | None
) -> list[str]:
    """One hexadecimal colour per category."""
    names = labels.categories
    if palette is None:
        kept = list(adata.uns.get(f"{column}_colors", []))
        palette = kept if len(kept) >= len(names) else None
    elif isinstance(palette, Mapping):
        lacking = [name for name in names if name not in palette]
        if lacking:
            raise DataError(f"palette has no colour for the labels {lacking} of obs[{column!r}].")
        palette = [palette[name] for name in names]
    return hex_colors(palette, len(names), f"labels of obs[{column!r}]")


def _legend(ax: Axes, labels: pd.Categorical, colors: list[str]) -> None:
    from matplotlib.lines import Line2D

    entries = [(str(name), color) for name, color in zip(labels.categories, colors, strict=True)]
    if (labels.codes < 0).any():
        entries.append(("unlabelled", MISSING))
    handles = [Line2D([], [], marker="o", linestyle="", markersize=8, color=c, label=name) for name, c in entries]
    ax.legend(
        handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False,
        ncols=-(-len(handles) // _LEGEND_ROWS), handletextpad=0.2,
    )  # fmt: skip
