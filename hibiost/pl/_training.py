from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import get
from ._draw import finish, panel_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..get import Trained

_LOSSES = {"spot": "#2a6fb0", "pathway": "#c8641b", "region": "#3d8c40"}
_RECALL = {"recall_10": "#a78bc6", "recall_5": "#7a4fa8", "recall_1": "#46206e"}
_MACHINE = {"lr": "learning rate", "spots_per_second": "spots per second"}
_QUIET = "0.45"
"""Colour of what is not measured: chance, renewals."""
_SIZE, _COLUMNS = (3.7, 2.8), 3


def training(
    run: str | os.PathLike[str] | Trained,
    *,
    ax: Axes | Sequence[Axes] | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool = False,
    save: str | Path | None = None,
) -> Figure | Axes | Sequence[Axes]:
    """Draw how training went: the terms of the loss, retrieval on the validation slides, learning rate and speed.

    There is a panel for each term (spot, pathway, region), and one each for Recall@p%, learning rate and speed, where
    they were measured. Thin lines are single steps, thick ones the means of epochs, drawn at the end of each. Dashed is
    what a model that knows nothing reaches: ln(batch) for spots, ln(regions) for regions, p for Recall@p%. Dotted
    verticals are renewals of the regions.

    Parameters
    ----------
    run
        Folder of a run, finished or in progress; or a model, which remembers epochs only. See
        :func:`hibiost.get.training`, which gives the numbers.
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
    RunError
        There is no such run, or nothing was measured yet.
    DataError
        ``ax`` has the wrong length.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(100)
    >>> recipe = {"epochs": 2, "batch_size": 32, "lambda3": 0}
    >>> model = hb.tl.pretrain(adata, image_encoder="ResNet-10", recipe=recipe)
    >>> hb.pl.training(model).axes[0].get_title()
    'spot loss'
    """
    from matplotlib.ticker import MaxNLocator

    table = get.training(run)
    steps, epochs = (table[table["event"] == event] for event in ("step", "epoch"))
    renewals = table.loc[table["event"] == "regions", "epoch"]
    terms = [term for term in _LOSSES if term in table]
    machine = [name for name in _MACHINE if name in table]
    with_recall = "recall_5" in table
    n = len(terms) + with_recall + len(machine)
    axes = panel_axes(n, ax, figsize=figsize, ncols=2 if n == 4 else _COLUMNS, size=_SIZE)
    panels = iter(axes)
    for term in terms:
        _draw_term(next(panels), term, steps, epochs, renewals)
    if with_recall:
        _draw_recall(next(panels), epochs)
    for name in machine:
        _draw_machine(next(panels), name, steps)
    for panel in axes:
        panel.set(xlabel="epoch", xlim=(0, float(table["epoch"].max())))
        panel.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
        panel.spines[["top", "right"]].set_visible(False)
    return finish(axes, ax, show=show, save=save)


def _draw_term(ax: Axes, term: str, steps: pd.DataFrame, epochs: pd.DataFrame, renewals: pd.Series) -> None:
    """A term of the loss; of ``region``, from the first renewal on."""
    steps, epochs = (part[part[term].notna()] for part in (steps, epochs))
    color = _LOSSES[term]
    ax.plot(steps["epoch"], steps[term], color=color, linewidth=0.8, alpha=0.4, label="step")
    ax.plot(epochs["epoch"], epochs[term], color=color, linewidth=2.2, marker=_marker(epochs), label="epoch")
    if f"{term}_chance" in steps:
        _draw_chance(ax, f"{term}_chance", steps, epochs)
    for epoch in renewals if term == "region" else ():
        ax.axvline(epoch, color=_QUIET, linestyle="dotted", linewidth=0.9)
    if term == "spot" and len(steps) and len(epochs):
        ax.legend(handles=ax.lines[:2], loc="lower left", facecolor="white", edgecolor="none", framealpha=0.8)
    ax.set_title(f"{term} loss")


def _draw_chance(ax: Axes, name: str, steps: pd.DataFrame, epochs: pd.DataFrame) -> None:
    """Dashed: a line over epochs; a level where it is the same all along, or the first epochs are not over."""
    line: dict[str, Any] = {"color": _QUIET, "linestyle": "dashed", "linewidth": 1.1}
    chance = epochs[name]
    if len(epochs) > 1 and chance.nunique() > 1:
        ax.plot(epochs["epoch"], chance, **line)
    else:
        chance = pd.Series([pd.concat([steps, epochs])[name].mean()])
        ax.axhline(chance.iloc[0], **line)
    ax.annotate(
        "chance", (1, chance.max()), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points",
        ha="right", color=_QUIET, fontsize="small",
    )  # fmt: skip


def _draw_recall(ax: Axes, epochs: pd.DataFrame) -> None:
    """Recall@10, 5 and 1 %, each with its chance, which is as many percent."""
    epochs = epochs[epochs["recall_5"].notna()]
    for name, color in _RECALL.items():
        percent = int(name.removeprefix("recall_"))
        ax.plot(
            epochs["epoch"], epochs[name], color=color, linewidth=2.2, marker=_marker(epochs), label=f"@{percent} %"
        )
        ax.axhline(percent, color=color, linestyle="dashed", linewidth=1.1)
    ax.legend(frameon=False, loc="upper left", ncols=3, handlelength=1.2, columnspacing=1)
    ax.set_ylim(0, 1.25 * max(10, epochs[list(_RECALL)].max(axis=None)))
    ax.set_title("validation Recall@p% (%)")


def _draw_machine(ax: Axes, name: str, steps: pd.DataFrame) -> None:
    ax.plot(steps["epoch"], steps[name], color="0.25", linewidth=1.1)
    ax.set_ylim(0, 1.1 * np.nanmax(steps[name]))
    if name == "lr":
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    ax.set_title(_MACHINE[name])


def _marker(epochs: pd.DataFrame) -> str:
    """A single epoch is no line."""
    return "o" if len(epochs) == 1 else ""
