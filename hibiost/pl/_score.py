from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from .. import inputs, keys
from ..errors import DataError, nearest
from ._draw import axes_for, draw_values, finish, listed, sections, value_limits

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@inputs.takes_spatialdata
def spatial_score(
    adata: AnnData,
    signature: str | Sequence[str],
    *,
    use_rep: str = keys.SCORE,
    library_id: str | Sequence[str] | None = None,
    library_key: str = keys.LIBRARY,
    cmap: str = "viridis",
    vmin: float | None = None,
    vmax: float | None = None,
    size: float = 1.0,
    alpha: float = 1.0,
    img_key: str | None = "hires",
    alpha_img: float = 0.7,
    ax: Axes | Sequence[Axes] | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool = False,
    save: str | Path | None = None,
) -> Figure | Axes | Sequence[Axes]:
    """Draw the scores of signatures over the H&E, one panel for each signature and slide.

    Parameters
    ----------
    adata
        Spots with scores (:func:`hibiost.tl.annotate`) and ``obsm["spatial"]``; images and spot diameters come from
        ``uns["spatial"]`` in scanpy's layout, without which the background is plain.
    signature
        One signature or several.
    use_rep
        The scores in ``obsm``: any DataFrame with a column for each signature.
    library_id
        The slides to draw; by default all.
    library_key
        ``obs`` column that tells the slides apart.
    cmap
        Matplotlib colormap.
    vmin, vmax
        Ends of the colour range; by default the 1st and 99th percentile of the signature over all slides drawn.
    size
        Factor on the spot diameter.
    alpha
        Opacity of the spots.
    img_key
        Image to draw beneath, or ``None`` for none. ``"lowres"`` stands in for ``"hires"`` where that is absent.
    alpha_img
        Opacity of the image; below 1 it is paler, so that the spots stand out.
    ax
        One Axes per panel.
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
        There are no scores or no coordinates.
    DataError
        A signature or a slide is not there, or ``ax`` has the wrong length.

    Examples
    --------
    >>> import hibiost as hb, pandas as pd
    >>> adata = hb.datasets.tissue(n_spots=100)
    >>> adata.obsm["pathway_score"] = pd.DataFrame({"left": -adata.obsm["spatial"][:, 0]}, index=adata.obs_names)
    >>> figure = hb.pl.spatial_score(adata, "left")
    """
    inputs.check_spots(adata)
    table = inputs.slot(adata, "obsm", use_rep, "hb.tl.annotate(adata, signatures)")
    if not isinstance(table, pd.DataFrame):
        raise DataError(f"obsm[{use_rep!r}] is a {type(table).__name__}; expected a DataFrame, a column per signature.")
    names = listed(signature)
    for name in names:
        if name not in table:
            raise DataError(f"no signature {name!r} in obsm[{use_rep!r}].{nearest(name, table)}")
    slides = sections(adata, library_id, library_key, img_key)
    drawn = np.concatenate([slide.rows for slide in slides])
    panels = [(name, slide) for name in names for slide in slides]
    ncols = min(4, len(slides) if len(slides) > 1 else len(names))
    axes = axes_for([slide for _, slide in panels], ax, figsize=figsize, ncols=ncols, beside=0.9)
    for panel, (name, slide) in zip(axes, panels, strict=True):
        values = table[name].to_numpy(dtype=np.float64)
        draw_values(
            panel, slide, values, value_limits(values[drawn], vmin, vmax), cmap=cmap, unit="score",
            title=name if len(slides) == 1 else f"{slide.library}: {name}", size=size, alpha=alpha, alpha_img=alpha_img,
        )  # fmt: skip
    return finish(axes, ax, show=show, save=save)
