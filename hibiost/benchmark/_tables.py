"""Summaries as text: the paper's tables in Markdown, LaTeX and HTML."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ._paper import paper_results
from ._summary import POOLED, summary

NO_WEIGHTS = "weights not available"
TITLES = {
    "clustering": "Zero-shot clustering",
    "prediction": "Gene expression prediction",
    "pivotal": "Pivotal genes (PCC)",
    "few-shot": "Few-shot prediction (PCC)",
    "retrieval": "Image-to-sentence retrieval (%)",
}
MAIN_TABLES, RESOLUTIONS = (1, 2, 3, 6, 8, 9), (8, 9)
"""Of the paper; those with a row for each resolution."""
_PRINTED = {1: " smoothed", 2: " raw", 6: " raw", 8: " raw"}
"""What a metric is called here."""
_NAMES = {"mse": "MSE", "mae": "MAE", "pcc": "PCC", "ari": "ARI", "nmi": "NMI"}


def tables(results: pd.DataFrame, *, paper: str | None = None) -> dict[str, pd.DataFrame]:
    """The tables of the paper, filled with one's own results.

    Parameters
    ----------
    results
        What :func:`hibiost.benchmark.run` returns.
    paper
        A dataset of :func:`hibiost.benchmark.paper_results`, whose numbers are added below.

    Returns
    -------
    Tables of text by their title, a row for each model and method: the mean over slides (pooled: over folds), ± the
    standard deviation over seeds where there are several.

    Examples
    --------
    >>> import hibiost as hb, pandas as pd
    >>> row = {"task": "retrieval", "model": "a", "method": "retrieval", "target": "", "fraction": float("nan")}
    >>> row |= {"metric": "Recall@1%", "slide": "C2", "fold": 0, "note": ""}
    >>> results = pd.DataFrame([row | {"seed": seed, "value": value} for seed, value in [(0, 2.0), (1, 4.0)]])
    >>> hb.benchmark.tables(results)["Image-to-sentence retrieval (%)"].iloc[0].tolist()
    ['3.0 ± 1.4']
    """
    scores = summary(results)
    scores["table"] = scores["task"].where(~scores["metric"].str.startswith("pcc "), "pivotal")
    scores = scores[[_is_shown(*of) for of in scores[["task", "metric", "scope"]].to_numpy()]]
    absent = results.loc[results["note"] == NO_WEIGHTS, "model"].unique()
    known = None if paper is None else paper_results().query("dataset == @paper")
    found = {}
    for name, title in TITLES.items():
        part = scores[scores["table"] == name]
        if part.empty:
            continue
        table = _table(part)
        for model in absent:
            table.loc[model] = [NO_WEIGHTS] + [""] * (table.shape[1] - 1)
        if known is not None:
            table = _with_paper(table, known[known["task"] == name])
        found[title] = table.fillna("").rename_axis("model")
    return found


def _is_shown(task: str, metric: str, scope: str) -> bool:
    """Of the few shots, and of all spots together, the correlation alone."""
    if task == "few-shot":
        return metric == "pcc" and scope != POOLED
    return metric == "pcc" if scope == POOLED else metric != "n_constant"


def _table(part: pd.DataFrame) -> pd.DataFrame:
    rows: dict[str, dict[str, str]] = {}
    for score in part.to_dict("records"):
        digits = 1 if score["task"] == "retrieval" else 3
        spread = f" ± {score['sd']:.{digits}f}" if score["n_seeds"] > 1 else ""
        rows.setdefault(_row(score), {})[_column(score)] = f"{score['mean']:.{digits}f}{spread}"
    return pd.DataFrame.from_dict(rows, orient="index")


def _row(score: dict[str, Any]) -> str:
    one_method = score["task"] in ("clustering", "retrieval")
    return score["model"] if one_method else f"{score['model']}, {score['method']}"


def _column(score: dict[str, Any]) -> str:
    metric = _NAMES.get(score["metric"], score["metric"].removeprefix("pcc "))
    if score["task"] == "retrieval":
        return metric
    if score["task"] == "clustering":
        return f"{metric} {score['method']}"
    if score["task"] == "few-shot":
        return f"{score['fraction']:.0%} {score['target']}"
    return f"{metric} {score['target']}{' pooled' if score['scope'] == POOLED else ''}"


def _with_paper(table: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """The paper's rows below: its main tables, not the ablations."""
    own = known[known["table"].isin(MAIN_TABLES)]
    metric = own["metric"] + own["table"].map(_PRINTED).fillna("")
    variant = own["variant"].where(own["table"].isin(RESOLUTIONS), "")
    names = "paper: " + own["model"] + variant.where(variant == "", ", " + variant)
    printed = own.assign(row=names, column=metric).pivot_table(
        index="row", columns="column", values="value", sort=False
    )
    return pd.concat([table, printed[[c for c in table if c in printed]].astype(str)])


def markdown(table: pd.DataFrame) -> str:
    """A table in GitHub's Markdown."""
    rows = [[table.index.name, *table.columns], ["---"] * (table.shape[1] + 1), *_rows(table)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def latex(table: pd.DataFrame, title: str) -> str:
    """A table of the booktabs package."""
    head, *body = [
        " & ".join(map(_escaped, row)) + r" \\" for row in [[table.index.name, *table.columns], *_rows(table)]
    ]
    return "\n".join(
        [
            r"\begin{table}", rf"\caption{{{_escaped(title)}}}", rf"\begin{{tabular}}{{l{'r' * table.shape[1]}}}",
            r"\toprule", head, r"\midrule", *body, r"\bottomrule", r"\end{tabular}", r"\end{table}",
        ]
    )  # fmt: skip


def html(table: pd.DataFrame, title: str) -> str:
    """A table with a heading."""
    from html import escape

    return f"<h2>{escape(title)}</h2>\n{table.to_html()}"


def _rows(table: pd.DataFrame) -> list[list[str]]:
    return [[str(name), *map(str, values)] for name, values in zip(table.index, table.to_numpy(), strict=True)]


def _escaped(text: str) -> str:
    for character in r"%_&#$":
        text = text.replace(character, f"\\{character}")
    return text.replace("±", r"$\pm$")
