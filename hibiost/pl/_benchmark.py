from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..errors import DataError
from ._draw import finish, hex_colors, panel_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = {
    ("clustering", "", "ari"): "ARI, smoothed clusters",
    ("prediction", "raw", "pcc"): "PCC, raw counts",
    ("prediction", "normalized", "pcc"): "PCC, normalised counts",
    ("retrieval", "", "Recall@10%"): "Recall@10% (%)",
    ("few-shot", "raw", "pcc"): "PCC of few shots, raw",
    ("few-shot", "normalized", "pcc"): "PCC of few shots, normalised",
}
_WIDTH, _ROW, _FEWEST = 4.6, 0.3, 4
"""Inches of a panel and of a row; rows that a panel has room for at least."""


def benchmark(
    results: pd.DataFrame,
    *,
    ax: Axes | Sequence[Axes] | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool = False,
    save: str | Path | None = None,
) -> Figure | Axes | Sequence[Axes]:
    """Draw the scores of models and floors, slide by slide.

    A panel for each of: ARI of smoothed clusters, PCC of predicted expression (raw and normalised), Recall@10 %, where
    a dot is a slide (mean over seeds) and a bar the mean over slides; and PCC against the share of training spots,
    where a line is the mean over slides.

    Parameters
    ----------
    results
        What :func:`hibiost.benchmark.run` returns.
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
    DataError
        There is nothing to draw, or ``ax`` has the wrong length.

    Examples
    --------
    >>> import hibiost as hb, pandas as pd
    >>> row = {"task": "retrieval", "method": "retrieval", "target": "", "fraction": float("nan"), "seed": 0}
    >>> row |= {"metric": "Recall@10%", "fold": 0, "note": "", "slide": "C2"}
    >>> results = pd.DataFrame([row | {"model": "a", "value": 20.0}, row | {"model": "chance", "value": 10.0}])
    >>> hb.pl.benchmark(results).axes[0].get_title()
    'Recall@10% (%)'
    """
    known = results[results["value"].notna() & (results["slide"] != "pooled")]
    smoothed = (known["task"] != "clustering") | (known["method"] == "smoothed")
    known = known[smoothed].assign(
        row=[_row(*names) for names in known.loc[smoothed, ["task", "model", "method"]].to_numpy()]
    )
    parts = {title: _part(known, *which) for which, title in _PANELS.items()}
    parts = {title: part for title, part in parts.items() if len(part)}
    if not parts:
        raise DataError("the results hold no score that is drawn: clustering, prediction, few-shot or retrieval.")
    models = list(dict.fromkeys(known["model"]))
    colors = dict(zip(models, hex_colors(None, len(models), "models"), strict=True))
    most = max(part["row"].nunique() for part in parts.values())
    axes = panel_axes(len(parts), ax, figsize=figsize, ncols=3, size=(_WIDTH, 1.2 + _ROW * max(most, 6)))
    for panel, (title, part) in zip(axes, parts.items(), strict=True):
        (_lines if part["fraction"].notna().any() else _bars)(panel, part, colors)
        panel.set_title(title)
        panel.spines[["top", "right"]].set_visible(False)
    return finish(axes, ax, show=show, save=save)


def _row(task: str, model: str, method: str) -> str:
    return model if task in ("clustering", "retrieval") or model == "chance" else f"{model}, {method}"


def _part(known: pd.DataFrame, task: str, target: str, metric: str) -> pd.DataFrame:
    return known[(known["task"] == task) & (known["target"] == target) & (known["metric"] == metric)]


def _bars(ax: Axes, part: pd.DataFrame, colors: dict[str, str]) -> None:
    """Best on top."""
    slides = part.groupby(["model", "row", "slide"], sort=False)["value"].mean().reset_index()
    means = slides.groupby(["model", "row"], sort=False)["value"].mean().sort_values()
    for y, ((model, row), mean) in enumerate(means.items()):
        of_slides = slides.loc[slides["row"] == row, "value"]
        ax.barh(y, mean, color=colors[model], alpha=0.55, height=0.7)
        ax.plot(of_slides, [y] * len(of_slides), "o", color=colors[model], markersize=3.5, markeredgecolor="white")
    ax.set_yticks(range(len(means)), [row for _, row in means.index], fontsize="small")
    ax.set_ylim(len(means) - max(len(means), _FEWEST) - 0.5, len(means) - 0.5)


def _lines(ax: Axes, part: pd.DataFrame, colors: dict[str, str]) -> None:
    means = part.groupby(["model", "row", "fraction"], sort=False)["value"].mean().reset_index()
    for (model, row), of_row in means.groupby(["model", "row"], sort=False):
        of_row = of_row.sort_values("fraction")
        ax.plot(100 * of_row["fraction"], of_row["value"], marker="o", markersize=4, color=colors[model], label=row)
    ax.set(xlabel="share of the training spots (%)", xlim=(0, 105 * means["fraction"].max()))
    ax.legend(fontsize="x-small", frameon=False)
