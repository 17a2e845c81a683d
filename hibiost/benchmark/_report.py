"""The files that a run of the benchmark leaves."""

from __future__ import annotations

import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from .. import pl
from .._files import replacing
from ..errors import DataError
from ._summary import compare
from ._tables import html, latex, markdown, tables

COMPARED = (
    ("clustering", "ari", ""),
    ("prediction", "pcc", "raw"),
    ("prediction", "pcc", "normalized"),
    ("retrieval", "Recall@10%", ""),
)
_PACKAGES = ("hibiost", "torch", "anndata", "scikit-learn", "numpy")


def write_report(results: pd.DataFrame, folder: Path, *, about: list[str], paper: str | None) -> None:
    """Tables in Markdown, LaTeX and HTML, paired comparisons, and the figure.

    Parameters
    ----------
    results
        Scores of all slides and seeds.
    folder
        Where to write.
    about
        Sentences on data and protocol, for the head of the report.
    paper
        The dataset's name in the paper, where it is the same.
    """
    found = tables(results, paper=paper)
    comparisons = _comparisons(results)
    pl.benchmark(results, save=folder / "scores.png")
    about = [*about, f"{date.today()}, Python {platform.python_version()}, " + ", ".join(_versions()) + "."]
    head = ["# Benchmark", *about, "![](scores.png)"]
    texts = {
        "results.csv": results.to_csv(index=False),
        "comparisons.csv": comparisons.to_csv(index=False),
        "report.md": "\n\n".join([*head, *_sections(found), *_paired(comparisons)]) + "\n",
        "report.tex": "\n\n".join(latex(table, title) for title, table in found.items()) + "\n",
        "report.html": "\n".join(html(table, title) for title, table in found.items()) + "\n",
    }
    for name, text in texts.items():
        with replacing(folder / name) as part:
            part.write_text(text, encoding="utf-8")


def _versions() -> list[str]:
    return [f"{name} {version(name)}" for name in _PACKAGES]


def _sections(found: dict[str, pd.DataFrame]) -> list[str]:
    return [text for title, table in found.items() for text in (f"## {title}", markdown(table))]


def _comparisons(results: pd.DataFrame) -> pd.DataFrame:
    """All pairs of rows of the main scores."""
    parts = []
    for task, metric, target in COMPARED:
        chosen = results[(results["task"] != "clustering") | (results["method"] == "smoothed")]
        try:
            table = compare(chosen, metric, task=task, target=target)
        except DataError:
            continue
        parts.append(table.assign(task=task, metric=metric, target=target))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _paired(comparisons: pd.DataFrame) -> list[str]:
    """How the first model differs from each other row."""
    lines = []
    for (task, metric, target), part in comparisons.groupby(["task", "metric", "target"], sort=False):
        first = part["first"].iloc[0]
        own = part[part["first"] == first].set_index("second")
        shown = own.assign(
            difference=own["difference"].map("{:+.3f}".format),
            wins=[f"{wins} of {n}" for wins, n in zip(own["wins"], own["n_slides"], strict=True)],
            p=own["p"].map("{:.2g}".format),
            p_holm=own["p_holm"].map("{:.2g}".format),
        )[["difference", "wins", "p", "p_holm"]]
        lines += [
            f"## {first}, slide by slide: {task}, {metric} {target}".rstrip(),
            markdown(shown.rename_axis("minus")),
        ]
    return lines
