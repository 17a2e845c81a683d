"""The paper's ablations (Tables 4, 5 and 7) on her2st: each row is one change of the training recipe.

``python benchmarks/ablation.py OUT [--epochs 40] [--batch-size 128] [--seeds 0 1 2] [--held-out C6] [--rows NAME ...]``
trains on the other sections of C2-C6, tests on the one held out, and writes a table of scores for each cell (row,
section, seed) into ``OUT``. Cells that are there are not run again, so a run can be interrupted, resumed, and shared
among processes; in the end all cells found are summarised as Markdown.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

import hibiost as hb

SECTIONS = ("C2", "C3", "C4", "C5", "C6")
PATHWAYS = "reactome"
FULL = "HiBio-ST"
ROWS: dict[str, dict[str, Any]] = {
    FULL: {},
    "spots only (lambda2 = lambda3 = 0)": {"lambda2": 0, "lambda3": 0},
    "w/o pathways (lambda2 = 0)": {"lambda2": 0},
    "w/o regions (lambda3 = 0)": {"lambda3": 0},
    "w/o TF-IDF (top expressed)": {"selection": "top"},
    "HVG selection": {"selection": "hvg"},
    "threshold 0.1": {"threshold": 0.1},
    "threshold 0.5": {"threshold": 0.5},
    "pathway temperature 0.07 at first": {"pathway_temperature": 0.07},
    "lambda3 = 0.1": {"lambda3": 0.1},
    "lambda2 = lambda3 = 0.5": {"lambda2": 0.5, "lambda3": 0.5},
    "sentence of 100 genes": {"n_genes": 100},
    "sentence of 500 genes": {"n_genes": 500},
    "min_spots = 20": {"min_spots": 20},
}
SCORES = {
    "Recall@1%": ("retrieval", "", "HiBio-ST", "Recall@1%"),
    "Recall@5%": ("retrieval", "", "HiBio-ST", "Recall@5%"),
    "Recall@10%": ("retrieval", "", "HiBio-ST", "Recall@10%"),
    "PCC raw": ("prediction", "raw", "HiBio-ST, retrieval", "pcc"),
    "PCC norm.": ("prediction", "normalized", "HiBio-ST, retrieval", "pcc"),
    "ridge raw": ("prediction", "raw", "HiBio-ST, ridge on features", "pcc"),
    "ridge norm.": ("prediction", "normalized", "HiBio-ST, ridge on features", "pcc"),
    "ARI": ("clustering", "", "smoothed", "ari"),
    "NMI": ("clustering", "", "smoothed", "nmi"),
    "colour raw": ("prediction", "raw", "ridge on colour statistics", "pcc"),
    "colour norm.": ("prediction", "normalized", "ridge on colour statistics", "pcc"),
}
"""Columns of the summary, and the entry of a cell's table that each shows."""


def configuration(n_genes: int) -> hb.model.ModelConfig:
    """The preset, with a context that holds the sentence."""
    config = hb.model.ModelConfig.preset("ResNet-10")
    length = max(config.context_length, n_genes + 30)
    return replace(config, text_cfg={**config.text_cfg, "context_length": length})


def run(change: dict[str, Any], held_out: str, seed: int, epochs: int) -> pd.DataFrame:
    """Scores of one cell; the schedule of the regions keeps its shares of the epochs."""
    reference = hb.datasets.her2st([name for name in SECTIONS if name != held_out])
    test = hb.datasets.her2st(held_out)
    recipe = {"region_start": max(1, epochs // 2), "region_every": max(1, epochs // 5), **change}
    started = time.perf_counter()
    config = configuration(recipe.get("n_genes", 250))
    model = hb.tl.pretrain(reference, image_encoder=config, epochs=epochs, pathways=PATHWAYS, recipe=recipe, rng=seed)
    seconds = time.perf_counter() - started
    for adata in (reference, test):
        hb.pp.tfidf_sentences(
            adata,
            vocabulary=model.vocabulary,
            n_genes=recipe.get("n_genes", 250),
            selection=recipe.get("selection", "tfidf"),
        )
        hb.tl.embed(adata, model=model)
    scores = hb.benchmark.spot_level(reference, test)
    hb.tl.cluster(test, n_clusters=test.obs["published_cluster"].nunique(), rng=seed)
    rows = [
        ("clustering", "", name, metric, getattr(hb.metrics, metric)(test.obs["published_cluster"], test.obs[column]))
        for name, column in (("smoothed", "cluster"), ("raw", "cluster_raw"))
        for metric in ("ari", "nmi")
    ]
    last = model.training_info["history"][-1]
    rows += [("training", "", "last epoch", name, value) for name, value in last.items()]
    for entry in model.training_info["regions"]:
        rows += [("regions", str(entry["epoch"]), "renewal", name, entry[name]) for name in ("n_regions", "coherence")]
    rows.append(("training", "", "time", "seconds", seconds))
    return pd.concat([scores, pd.DataFrame(rows, columns=scores.columns)], ignore_index=True)


def cell(out: Path, row: str, held_out: str, seed: int) -> Path:
    """The file of a cell."""
    name = "".join(letter if letter.isalnum() else "-" for letter in row)
    return out / held_out / str(seed) / f"{name}.csv"


def collect(out: Path) -> pd.DataFrame:
    """The scores of every cell found: one row a cell."""
    found = []
    for held_out in SECTIONS:
        for seed in sorted(int(folder.name) for folder in (out / held_out).glob("*") if folder.name.isdigit()):
            for row in ROWS:
                path = cell(out, row, held_out, seed)
                if path.is_file():
                    table = pd.read_csv(path, keep_default_na=False)
                    values = table.set_index(["task", "target", "method", "metric"])["value"].astype(float)
                    found.append({"row": row, "held out": held_out, "seed": seed, **_chosen(values)})
    return pd.DataFrame(found)


def _chosen(values: pd.Series) -> dict[str, float]:
    return {name: values[key] for name, key in SCORES.items()}


def summary(cells: pd.DataFrame) -> str:
    """Mean ± standard deviation of each row, and its mean difference to the full model over the cells both have."""
    parts = []
    for held_out, part in cells.groupby("held out"):
        parts.append(f"\n## {held_out} held out\n\n{_table(part)}")
    if cells["held out"].nunique() > 1:
        parts.append(f"\n## All sections held out in turn\n\n{_table(cells)}")
    return "\n".join(parts)


def _table(cells: pd.DataFrame) -> str:
    columns = list(SCORES)
    lines = [f"| row | cells | {' | '.join(columns)} |", f"|{'---|' * (len(columns) + 2)}"]
    full = cells[cells["row"] == FULL].set_index(["held out", "seed"])[columns]
    for row in ROWS:
        own = cells[cells["row"] == row].set_index(["held out", "seed"])[columns]
        if own.empty:
            continue
        shared = own.index.intersection(full.index)
        texts = []
        for name in columns:
            digits = 1 if name.startswith("Recall") else 3
            text = f"{own[name].mean():.{digits}f}"
            if len(own) > 1:
                text += f" ± {own[name].std():.{digits}f}"
            if row != FULL and len(shared):
                text += f" ({(own[name][shared] - full[name][shared]).mean():+.{digits}f})"
            texts.append(text)
        lines.append(f"| {row} | {len(own)} | {' | '.join(texts)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the cells that are missing, then print the summary of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--held-out", nargs="*", choices=SECTIONS, default=["C6"])
    parser.add_argument("--rows", nargs="*", choices=list(ROWS), default=list(ROWS))
    arguments = parser.parse_args()
    for held_out in arguments.held_out:
        for seed in arguments.seeds:
            for row in arguments.rows:
                path = cell(arguments.out, row, held_out, seed)
                if not path.is_file():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    change = {"batch_size": arguments.batch_size, **ROWS[row]}
                    beside = path.with_suffix(f".{os.getpid()}")
                    run(change, held_out, seed, arguments.epochs).to_csv(beside, index=False)
                    beside.replace(path)
    print(summary(collect(arguments.out)))


if __name__ == "__main__":
    main()
