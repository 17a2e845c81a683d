"""What the paper prints: its numbers, its data sets, its genes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import pandas as pd

from ..errors import DataError, nearest

_FOLDER = resources.files(__package__)
GENE_LISTS = ("breast", "her2", "kidney")


def paper_results() -> pd.DataFrame:
    """The numbers of Tables 1 to 9 of the HiBio-ST paper, to stand beside one's own.

    Returns
    -------
    A tidy table with columns ``table`` (int), ``dataset`` (``"HER2"``, ``"Breast"``, ``"Kidney"``, ``"DLPFC"``,
    ``"Breast HD"``, ``"CRC HD"``; empty where a number belongs to none), ``task`` (``"clustering"``, ``"prediction"``,
    ``"retrieval"``), ``model`` (names as published: Hist2ST and mclSTExp, which the paper prints His2ST and mlxExpST),
    ``variant`` (ablation, resolution, token length; may be empty), ``metric`` (``"ARI"``, ``"NMI"``, ``"MSE"``,
    ``"MAE"``, ``"PCC"``, ``"Recall@1%"``, ...; recalls in per cent), ``value`` (float) and ``note``, which tells where
    text and table disagree.

    Examples
    --------
    >>> import hibiost as hb
    >>> table = hb.benchmark.paper_results()
    >>> here = (table["table"] == 2) & (table["dataset"] == "HER2") & (table["metric"] == "PCC")
    >>> float(table[here].set_index("model")["value"]["HiBio-ST"])
    0.3172
    """
    with resources.as_file(_FOLDER / "paper.csv") as path:
        return pd.read_csv(path, keep_default_na=False)


@dataclass(frozen=True)
class DatasetRecipe:
    """A data set of the paper: which slides, and how it divides them.

    Parameters
    ----------
    name
        Name in hibiost.
    title
        Name in :func:`paper_results`.
    reference
        The publication of the data.
    source
        ``"hest"``, or the function that gives the slides.
    ids
        Slides by their ids in HEST-1k (of ``her2st``: sections); ``None`` where the paper does not tell them.
    select
        Values of HEST's metadata that select the slides then.
    n_slides, n_patients, n_spots
        Numbers that the paper gives; ``None`` where it does not.
    spots_per_slide
        Fewest and most spots of a slide, as the paper gives them.
    spot_um
        Diameter of a spot in micrometres.
    group
        Column whose values stay in one fold; ``None`` where no patient is known.
    folds
        Number of folds in cross-validation; ``None`` where nothing is fitted.
    label
        Column of ``obs`` with the annotation that clusters are compared to.
    n_clusters
        Clusters per slide; ``None`` where the paper does not tell, or there are none.
    bins_um
        Bin sizes of Visium HD in micrometres.
    genes
        Name of the gene list, see :func:`genes`.
    tasks
        Tasks of the paper that are measured on it.
    note
        What is to be known beside.
    sections
        Name of a slide in its publication, by id, where it is another.
    """

    name: str
    title: str
    reference: str
    source: str
    ids: tuple[str, ...] | None
    select: dict[str, str] | None
    n_slides: int
    n_patients: int | None
    n_spots: int | None
    spots_per_slide: tuple[int, int] | None
    spot_um: int | None
    group: str | None
    folds: int | None
    label: str | None
    n_clusters: int | None
    bins_um: tuple[int, ...] | None
    genes: str | None
    tasks: tuple[str, ...]
    note: str
    sections: dict[str, str] | None = None


def recipes() -> list[str]:
    """Names of the data sets that :func:`recipe` knows.

    Returns
    -------
    The names, sorted.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.benchmark.recipes()
    ['breast', 'breast-hd', 'crc-hd', 'dlpfc', 'her2', 'her2st', 'kidney']
    """
    return sorted(_recipes())


def recipe(name: str) -> DatasetRecipe:
    """A data set of the paper (section 3, A.1, D.2): its slides, what is to be expected of them, and its folds.

    Parameters
    ----------
    name
        One of :func:`recipes`.

    Returns
    -------
    The recipe.

    Raises
    ------
    DataError
        No such data set.

    Examples
    --------
    >>> import hibiost as hb
    >>> kidney = hb.benchmark.recipe("kidney")
    >>> kidney.ids[0], kidney.n_slides, kidney.folds
    ('NCBI692', 23, 4)
    """
    known = _recipes()
    if name not in known:
        raise DataError(f"no data set {name!r} of the paper; there are {recipes()}.{nearest(name, known)}")
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in known[name].items()
    }
    return DatasetRecipe(name, **values)


@cache
def _recipes() -> dict[str, dict[str, Any]]:
    known: dict[str, dict[str, Any]] = json.loads((_FOLDER / "recipes.json").read_text(encoding="utf-8"))
    return known


def genes(name: str) -> list[str]:
    """The genes that the paper predicts on a data set (Figure 6), in its order: by falling variance.

    The figure names 300 a data set. Read from the page, some symbols are damaged: those that can be settled are
    corrected, the others left out, and :func:`gene_corrections` tells each. The list of DLPFC is not to be had: the
    kidney list stands in its place.

    Parameters
    ----------
    name
        ``"breast"``, ``"her2"`` or ``"kidney"``.

    Returns
    -------
    Symbols current in HGNC's table of February 2022: 292, 298 and 277.

    Raises
    ------
    DataError
        No such list.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.benchmark.genes("her2")[:3]
    ['IGKC', 'IGHG3', 'IGLC2']
    """
    if name not in GENE_LISTS:
        raise DataError(f"no gene list {name!r}; there are {list(GENE_LISTS)}.{nearest(name, GENE_LISTS)}")
    return (_FOLDER / "genes" / f"{name}.txt").read_text(encoding="utf-8").split()


def gene_corrections() -> pd.DataFrame:
    """Where :func:`genes` differs from what is printed in Figure 6, and why.

    Returns
    -------
    A table with columns ``dataset``, ``position`` (in the printed list, from 1), ``printed``, ``corrected`` (empty
    where a symbol was left out) and ``reason``.

    Examples
    --------
    >>> import hibiost as hb
    >>> table = hb.benchmark.gene_corrections()
    >>> table.loc[table["printed"] == "GADPH", "corrected"].unique().tolist()
    ['GAPDH']
    """
    with resources.as_file(_FOLDER / "genes" / "corrections.csv") as path:
        return pd.read_csv(path, keep_default_na=False)
