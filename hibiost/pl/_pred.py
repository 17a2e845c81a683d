from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .. import get, inputs, keys, metrics
from ..errors import DataError, MissingSlotError, nearest
from ._draw import axes_for, draw_values, finish, sections, value_limits

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@inputs.takes_spatialdata
def spatial_pred(
    adata: AnnData,
    *,
    gene: str,
    layer: str | None = None,
    use_rep: str = keys.PREDICTED,
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
    title: str | None = None,
    show: bool = False,
    save: str | Path | None = None,
) -> Figure | Axes | Sequence[Axes]:
    """Draw measured beside predicted expression of a gene over the H&E, one row per slide, with their correlation.

    Measured counts are brought to the scale of the prediction: log1p, after scaling to a common library size where the
    prediction was. The title of the predicted panel carries the Pearson correlation over the spots of that slide.
    Measured and predicted each have their own colour range, shared by all slides, since predictions vary less; set
    ``vmin`` and ``vmax`` for one common range. A gene that was not measured is drawn predicted only, with
    the correlation that cross-validation lets expect (:func:`hibiost.get.predicted_genes`) where it is known.

    Parameters
    ----------
    adata
        Spots with predicted expression (:func:`hibiost.tl.predict`) and ``obsm["spatial"]``; images and spot diameters
        come from ``uns["spatial"]`` in scanpy's layout, without which the background is plain.
    gene
        Symbol of the gene.
    layer
        Layer with the raw counts; by default ``X``.
    use_rep
        The predicted expression in ``obsm``.
    library_id
        The slides to draw; by default all.
    library_key
        ``obs`` column that tells the slides apart.
    cmap
        Matplotlib colormap.
    vmin, vmax
        Ends of the colour range; by default the 1st and 99th percentile.
    size
        Factor on the spot diameter.
    alpha
        Opacity of the spots.
    img_key
        Image to draw beneath, or ``None`` for none. ``"lowres"`` stands in for ``"hires"`` where that is absent.
    alpha_img
        Opacity of the image; below 1 it is paler, so that the spots stand out.
    ax
        One Axes per panel: measured and predicted of each slide, or predicted alone where the gene was not measured.
    figsize
        Width and height of the figure in inches.
    title
        Text in place of the gene's symbol in the titles.
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
        There is no prediction, none of this gene, or there are no coordinates.
    DataError
        The gene is unknown, ``X`` or ``layer`` holds no counts, a slide is not there, or ``ax`` has the wrong length.

    Examples
    --------
    >>> import hibiost as hb, numpy as np, pandas as pd
    >>> adata = hb.datasets.tissue(n_spots=100)
    >>> genes = adata.var_names[:5]
    >>> adata.obsm["predicted_expression"] = pd.DataFrame(
    ...     np.log1p(adata[:, genes].X.toarray()), adata.obs_names, genes
    ... )
    >>> figure = hb.pl.spatial_pred(adata, gene=genes[0])
    """
    inputs.check_spots(adata)
    predicted = _predicted(adata, gene, use_rep)
    measured, unit = _measured(adata, gene, layer, use_rep)
    expected = _expected(adata, gene, use_rep) if measured is None else None
    slides = sections(adata, library_id, library_key, img_key)
    drawn = np.concatenate([slide.rows for slide in slides])
    kinds = {"predicted": predicted} if measured is None else {"measured": measured, "predicted": predicted}
    limits = {kind: value_limits(values[drawn], vmin, vmax) for kind, values in kinds.items()}

    style = {"size": size, "alpha": alpha, "alpha_img": alpha_img}
    panels = [slide for slide in slides for _ in kinds]
    axes = axes_for(panels, ax, figsize=figsize, ncols=4 if measured is None else 2, beside=0.9)
    for i, (slide, kind) in enumerate((slide, kind) for slide in slides for kind in kinds):
        text = f"{title or gene} {kind}"
        text = text if len(slides) == 1 else f"{slide.library}: {text}"
        if kind == "predicted" and measured is not None:
            text += f", {_correlation(measured[slide.rows], predicted[slide.rows])}"
        elif expected is not None:
            text += f", expected PCC {expected:.2f}"
        draw_values(axes[i], slide, kinds[kind], limits[kind], cmap=cmap, unit=unit, title=text, **style)
    return finish(axes, ax, show=show, save=save)


def _predicted(adata: AnnData, gene: str, use_rep: str) -> NDArray[np.floating]:
    table = inputs.slot(adata, "obsm", use_rep, "hb.tl.predict(adata, reference)")
    if not isinstance(table, pd.DataFrame):
        raise DataError(
            f"obsm[{use_rep!r}] is a {type(table).__name__}; expected a DataFrame with one column per gene."
        )
    if gene not in table.columns:
        if gene in adata.var_names:
            raise MissingSlotError(
                f"gene {gene!r} was measured but is none of the {table.shape[1]} predicted genes in obsm[{use_rep!r}]; "
                f"call hb.tl.predict(adata, reference, genes=[{gene!r}])."
            )
        known = [*adata.var_names, *table.columns]
        raise DataError(f"gene {gene!r} was neither measured nor predicted.{nearest(gene, known)}")
    return table[gene].to_numpy(dtype=np.float64)


def _measured(adata: AnnData, gene: str, layer: str | None, use_rep: str) -> tuple[NDArray[np.floating] | None, str]:
    """Measured expression on the scale of the prediction (None where the gene was not measured), and that scale."""
    params = adata.uns.get(use_rep, {}).get("params", {})
    normalized = params.get("target", "raw") == "normalized"
    unit = f"log1p counts per {params['target_sum']:,.0f}" if normalized else "log1p counts"
    if gene not in adata.var_names:
        return None, unit
    expression = inputs.log_expression(
        inputs.counts(adata, layer), target_sum=float(params["target_sum"]) if normalized else None
    )
    return expression[:, [adata.var_names.get_loc(gene)]].toarray().ravel(), unit


def _expected(adata: AnnData, gene: str, use_rep: str) -> float | None:
    """The correlation to expect, where cross-validation told it."""
    entry = adata.uns.get(use_rep, {})
    if "expected_pcc" not in entry:
        return None
    value = get.predicted_genes(adata, key=use_rep)["expected_pcc"].get(gene, np.nan)
    return None if np.isnan(value) else float(value)


def _correlation(measured: NDArray[np.floating], predicted: NDArray[np.floating]) -> str:
    known = np.isfinite(predicted)
    value = metrics.pcc(measured[known], predicted[known])[0] if known.any() else np.nan
    return "PCC undefined" if np.isnan(value) else f"PCC {value:.2f}"
