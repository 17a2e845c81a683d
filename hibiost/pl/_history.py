from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .. import inputs, keys
from ..errors import DataError
from ._draw import MISSING, axes_for, draw_spots, finish, hex_colors, sections

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 3.0


@inputs.takes_spatialdata
def region_history(
    adata: AnnData,
    *,
    library_id: str | Sequence[str] | None = None,
    library_key: str = keys.LIBRARY,
    key: str = keys.REGION_HISTORY,
    palette: str | Sequence[str] | None = None,
    size: float = 1.0,
    alpha: float = 1.0,
    img_key: str | None = "hires",
    alpha_img: float = 0.3,
    ax: Axes | Sequence[Axes] | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool = False,
    save: str | Path | None = None,
) -> Figure | Axes | Sequence[Axes]:
    """Draw how the regions of training changed: one row per slide, one column per renewal (HiBio-ST, Figure 9).

    A region has the colour of that region of the renewal before with which it shares spots, pairs being chosen so that
    the spots shared by all of them are most; a region without a pair has a colour that neither renewal has. Spots left
    out of training are grey. Colours mean nothing from one slide to the next.

    Parameters
    ----------
    adata
        Spots with a region history and ``obsm["spatial"]``; images and spot diameters come from ``uns["spatial"]`` in
        scanpy's layout.
    library_id
        The slides to draw; by default all.
    library_key
        ``obs`` column that tells the slides apart.
    key
        The history in ``obsm``: an integer DataFrame with a column for each renewal, named by its epoch; -1 for spots
        left out.
    palette
        Colours, the first of them for the largest region, or the name of a matplotlib colormap; by default scanpy's.
    size
        Factor on the spot diameter.
    alpha
        Opacity of the spots.
    img_key
        Image to draw beneath, or ``None`` for none; where there is no ``"hires"``, ``"lowres"`` takes its place.
    alpha_img
        Opacity of the image; below 1 it is paler, so that the spots stand out.
    ax
        One Axes per panel, slide by slide.
    figsize
        Width and height of the figure in inches.
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
        There is no history, or there are no coordinates.
    DataError
        The history is no such table, a slide is not there, or palette or ax have the wrong length.

    Examples
    --------
    >>> import hibiost as hb, numpy as np, pandas as pd
    >>> adata = hb.datasets.tissue(n_spots=100)
    >>> halves = np.argsort(np.argsort(adata.obsm["spatial"][:, 0])) // 50
    >>> history = pd.DataFrame({"0": halves * 0, "20": halves}, index=adata.obs_names, dtype="int32")
    >>> adata.obsm["region_history"] = history
    >>> figure = hb.pl.region_history(adata)
    >>> figure.axes[1].get_title()
    'tissue_0, epoch 20: 2 regions'
    """
    history = _history(adata, key)
    slides = sections(adata, library_id, library_key, img_key)
    codes = [_followed(history.to_numpy()[slide.rows]) for slide in slides]
    colors = hex_colors(palette, 1 + max(int(found.max()) for found in codes), "regions to be told apart")
    facecolors = np.array([*colors, MISSING], dtype=object)

    panels = [slide for slide in slides for _ in history]
    axes = axes_for(panels, ax, figsize=figsize, ncols=history.shape[1], beside=0.1, width=_WIDTH)
    columns = [(epoch, column) for found in codes for epoch, column in zip(history, found.T, strict=True)]
    for panel, slide, (epoch, column) in zip(axes, panels, columns, strict=True):
        n = len(np.unique(column[column >= 0]))
        title = f"{slide.library}, epoch {epoch}: {n} region{'s' * (n != 1)}"
        shades = facecolors[column]
        draw_spots(panel, slide, size=size, alpha=alpha, alpha_img=alpha_img, title=title, facecolors=shades)
    return finish(axes, ax, show=show, save=save)


def _history(adata: AnnData, key: str) -> pd.DataFrame:
    inputs.check_spots(adata)
    table = inputs.slot(adata, "obsm", key, "hb.tl.pretrain(adata) with regions on")
    whole = isinstance(table, pd.DataFrame) and all(pd.api.types.is_integer_dtype(kind) for kind in table.dtypes)
    if not whole or table.shape[1] == 0:
        raise DataError(
            f"obsm[{key!r}] is no region history; expected a DataFrame of integers with a column for each renewal, as "
            "hb.tl.pretrain writes it."
        )
    return table


def _followed(regions: NDArray[np.integer]) -> NDArray[np.intp]:
    """Colours of the regions of a slide, spots x renewals: 0, 1, ... so that regions keep theirs; -1 stays."""
    found = np.full(regions.shape, -1, dtype=np.intp)
    for step, column in enumerate(regions.T):
        found[:, step] = _recolored(column, found[:, max(step - 1, 0)])
    return found


def _recolored(regions: NDArray[np.integer], before: NDArray[np.intp]) -> NDArray[np.intp]:
    """The colour of each spot's region, chosen from the colours ``before`` so that most spots keep theirs."""
    from scipy.optimize import linear_sum_assignment

    trained = regions >= 0
    names, codes, sizes = np.unique(regions[trained], return_inverse=True, return_counts=True)
    known = before[trained] >= 0
    shared = np.zeros((len(names), before.max() + 1), dtype=np.int64)
    np.add.at(shared, (codes[known], before[trained][known]), 1)
    pairs = np.column_stack(linear_sum_assignment(shared, maximize=True))
    pairs = pairs[shared[pairs[:, 0], pairs[:, 1]] > 0]
    colors = np.full(len(names), -1, dtype=np.intp)
    colors[pairs[:, 0]] = pairs[:, 1]
    new = np.argsort(-sizes, kind="stable")
    new = new[colors[new] < 0]
    colors[new] = np.setdiff1d(np.arange(shared.shape[1] + len(new)), before)[: len(new)]
    result = np.full(len(regions), -1, dtype=np.intp)
    result[trained] = colors[codes]
    return result
