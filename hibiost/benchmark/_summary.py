"""Scores of all slides and seeds -> the paper's tables."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from ..errors import DataError

POOLED = "pooled"
ROW = ["model", "method"]
WHAT = ["task", "target", "fraction", "metric"]


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Mean over slides, and over seeds their mean and spread.

    Parameters
    ----------
    results
        What :func:`hibiost.benchmark.run` returns.

    Returns
    -------
    A row for each ``task``, ``target``, ``fraction``, ``metric``, ``scope`` (``"slide"``: scored slide by slide;
    ``"pooled"``: over all held-out spots of a fold), ``model`` and ``method``, with ``mean`` and ``sd`` over the seeds
    of the mean over slides (or folds; a slide without a value is left out), ``n_seeds`` and ``n_slides``.

    Examples
    --------
    >>> import hibiost as hb, pandas as pd
    >>> row = {"task": "retrieval", "model": "a", "method": "retrieval", "target": "", "fraction": float("nan")}
    >>> row |= {"metric": "Recall@1%", "fold": 0, "note": ""}
    >>> cells = [("C2", 0, 2.0), ("C3", 0, 4.0), ("C2", 1, 4.0), ("C3", 1, 6.0)]
    >>> results = pd.DataFrame([row | {"slide": slide, "seed": seed, "value": value} for slide, seed, value in cells])
    >>> hb.benchmark.summary(results)[["mean", "sd", "n_seeds", "n_slides"]].round(2).values.tolist()
    [[4.0, 1.41, 2.0, 2.0]]
    """
    known = results[results["value"].notna()]
    known = known.assign(scope=np.where(known["slide"] == POOLED, POOLED, "slide"))
    what = [*WHAT, "scope", *ROW]
    grouped = {"sort": False, "dropna": False, "observed": True}
    seeds = known.groupby([*what, "seed"], **grouped)["value"].mean().reset_index()
    table = seeds.groupby(what, **grouped)["value"].agg(["mean", "std", "size"])
    table.columns = ["mean", "sd", "n_seeds"]
    table["n_slides"] = known.groupby(what, **grouped)["slide"].nunique()
    return table.reset_index()


def compare(
    results: pd.DataFrame,
    metric: str,
    *,
    task: str,
    target: str = "",
    fraction: float | None = None,
) -> pd.DataFrame:
    """Paired differences between all rows of a table, slide by slide.

    The value of a slide is its mean over the seeds. The p-value is that of Wilcoxon's signed-rank test over the slides,
    two-sided, corrected by Holm's method for the number of pairs. Few slides cannot be significant: with five, the
    smallest uncorrected p-value is 0.0625.

    Parameters
    ----------
    results
        What :func:`hibiost.benchmark.run` returns.
    metric
        Such as ``"pcc"`` or ``"Recall@5%"``.
    task
        Such as ``"prediction"``.
    target, fraction
        Of the prediction, where there are several.

    Returns
    -------
    A row for each pair: ``first`` and ``second`` (model and method), ``difference`` (mean of first minus second),
    ``wins`` (slides on which the first is higher), ``n_slides``, ``p`` and ``p_holm`` (NaN where no slide differs).

    Raises
    ------
    DataError
        There are fewer than two rows of such scores.

    Examples
    --------
    >>> import hibiost as hb, pandas as pd
    >>> row = {"task": "retrieval", "method": "retrieval", "target": "", "fraction": float("nan"), "seed": 0}
    >>> row |= {"metric": "Recall@1%"}
    >>> cells = [(model, f"C{i}", value + i) for model, value in (("a", 2.0), ("b", 1.0)) for i in range(5)]
    >>> results = pd.DataFrame([row | {"model": m, "slide": slide, "value": value} for m, slide, value in cells])
    >>> hb.benchmark.compare(results, "Recall@1%", task="retrieval")[["difference", "wins", "p"]].values.tolist()
    [[1.0, 5.0, 0.0625]]
    """
    from scipy.stats import wilcoxon

    chosen = results[
        (results["task"] == task)
        & (results["metric"] == metric)
        & (results["target"] == target)
        & (results["slide"] != POOLED)
        & (results["fraction"].isna() if fraction is None else results["fraction"] == fraction)
    ]
    by_slide = chosen.pivot_table(index="slide", columns=ROW, values="value", aggfunc="mean", sort=False)
    if by_slide.shape[1] < 2:
        raise DataError(f"{by_slide.shape[1]} rows have {metric!r} of {task!r}; two or more can be compared.")
    rows = []
    for first, second in combinations(by_slide, 2):
        differences = (by_slide[first] - by_slide[second]).dropna()
        p = wilcoxon(differences).pvalue if differences.any() else np.nan
        rows.append((_named(*first), _named(*second), differences.mean(), (differences > 0).sum(), len(differences), p))
    table = pd.DataFrame(rows, columns=["first", "second", "difference", "wins", "n_slides", "p"])
    return table.assign(p_holm=_holm(table["p"].to_numpy()))


def _named(model: str, method: str) -> str:
    return model if model == method else f"{model}, {method}"


def _holm(p: np.ndarray) -> np.ndarray:
    """Corrected for the number of tests that could be made (Holm, Scand. J. Statist. 6:65, 1979)."""
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1)
    return corrected
