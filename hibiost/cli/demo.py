"""The main job from raw files to figures, on public data."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import hibiost as hb

from ..errors import DataError, DownloadError
from ..settings import logger

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from ..genes import GeneSets
    from ..model import HibioModel

HELP = "train on sections C2-C5 of her2st, test on C6; figures, table, .h5ad and model"
DESCRIPTION = """
The main job on a real breast-tumour section: keyword-gene sentences, a small model trained on sections C2-C5 of the
her2st data, embeddings, clusters and predicted expression of section C6, beside floors. Where the data cannot be
reached, it runs on synthetic tissue and says so.
"""
TRAINING, TEST = ["C2", "C3", "C4", "C5"], "C6"
SYNTHETIC_SPOTS = 200
GENES = ("ERBB2", "MGP", "IGLL5")
"""Drawn: a tumour gene, a stroma gene, and the plasma-cell gene of the paper's Figure 4."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``hibiost demo``."""
    parser.add_argument("--out", type=Path, default=Path("hibiost-demo"), help="folder for the results (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random step (%(default)s)")
    parser.add_argument("--epochs", type=int, help="training epochs (default: the preset's)")
    parser.add_argument("--image-encoder", default="ResNet-10", help="model preset (%(default)s)")
    parser.add_argument("--synthetic", action="store_true", help="use synthetic tissue even where the data are there")


def run(arguments: argparse.Namespace) -> None:
    """Run the demo."""
    demo(
        arguments.out,
        seed=arguments.seed,
        epochs=arguments.epochs,
        image_encoder=arguments.image_encoder,
        synthetic=arguments.synthetic,
    )


def demo(out: Path, *, seed: int, epochs: int | None, image_encoder: str, synthetic: bool) -> None:
    """Train, embed, cluster, predict and compare; write figures, ``.h5ad``, model and tables to a folder."""
    import matplotlib as mpl

    mpl.use("Agg")
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    reference, test, truth = _sections(synthetic=synthetic, seed=seed)

    logger.info("\n1/5 pretrain on %s", ", ".join(reference.obs["library_id"].unique()))
    model = hb.tl.pretrain(
        reference, image_encoder=image_encoder, epochs=epochs, pathways=_pathways(reference), rng=seed
    )
    model.save(out / "model")
    training = time.perf_counter() - started

    logger.info("\n2/5 sentences and embeddings")
    for adata in (reference, test):
        hb.pp.tfidf_sentences(adata, vocabulary=model.vocabulary)
        hb.tl.embed(adata, model=model)

    logger.info("\n3/5 clusters of the images, regions of images and genes")
    n_clusters = test.obs[truth].nunique()
    hb.tl.cluster(test, n_clusters=n_clusters, rng=seed)
    hb.tl.regions(test, rng=seed)

    logger.info("\n4/5 predicted expression, and the floors beside it")
    untrained = hb.model.untrained(model, rng=seed)
    scores = hb.benchmark.spot_level(reference, test, untrained=untrained)
    hb.tl.predict(test, reference, model=model)

    logger.info("\n5/5 figures and tables")
    _figures(reference, test, truth, model, out)
    test.write_h5ad(out / "test.h5ad")
    scores = _with_clusters(scores, test, truth)
    scores.insert(0, "seed", seed)
    scores.to_csv(out / "scores.csv", index=False)
    seconds = time.perf_counter() - started
    text = _report(scores, reference, test, truth, seconds=seconds, training=training)
    (out / "report.md").write_text(text)
    print(f"\n{text}")
    print(f"Everything is in {out.resolve()}. To use the model: export HIBIOST_MODEL={(out / 'model').resolve()}")


def _sections(*, synthetic: bool, seed: int) -> tuple[AnnData, AnnData, str]:
    """Training sections, test section, and the column of ``obs`` that clusters are compared with."""
    if not synthetic:
        try:
            return hb.datasets.her2st(TRAINING), hb.datasets.her2st(TEST), "published_cluster"
        except DownloadError as error:
            logger.warning("%s\nThe real sections cannot be reached: this demo runs on synthetic tissue.", error)
    tissue = hb.datasets.tissue(SYNTHETIC_SPOTS, n_genes=600, n_slides=5, rng=seed)
    held_out = (tissue.obs["library_id"] == "tissue_4").to_numpy()
    parts = [tissue[~held_out].copy(), tissue[held_out].copy()]
    for part in parts:
        here = part.obs["library_id"].unique()
        part.uns["spatial"] = {name: entry for name, entry in part.uns["spatial"].items() if name in here}
    return parts[0], parts[1], "region_truth"


def _pathways(reference: AnnData) -> GeneSets | None:
    """Reactome, where it can be had and shares genes with the sections."""
    try:
        pathways = hb.datasets.gene_sets("reactome")
        pathways.membership(reference.var_names)
    except (DataError, DownloadError) as error:
        logger.warning("%s\nThe demo goes on without pathways.", error)
        return None
    return pathways


def _with_clusters(scores: pd.DataFrame, test: AnnData, truth: str) -> pd.DataFrame:
    import pandas as pd

    rows = [
        {
            "task": "clustering",
            "target": truth,
            "method": f"HiBio-ST, {name}",
            "metric": metric,
            "value": getattr(hb.metrics, metric)(test.obs[truth], test.obs[column]),
        }
        for name, column in (
            ("clusters, smoothed", "cluster"),
            ("clusters, raw", "cluster_raw"),
            ("regions of images and genes", "region"),
        )
        for metric in ("ari", "nmi")
    ]
    return pd.concat([scores, pd.DataFrame(rows)], ignore_index=True)


def _figures(reference: AnnData, test: AnnData, truth: str, model: HibioModel, out: Path) -> None:
    import matplotlib.pyplot as plt

    hb.pl.spatial_clusters(test, color=["cluster", "region", truth], save=out / "clusters.png")
    for gene in GENES:
        if gene in test.var_names:
            hb.pl.spatial_pred(test, gene=gene, save=out / f"predicted_{gene}.png")
    if "region_history" in reference.obsm:
        hb.pl.region_history(reference, save=out / "regions_in_training.png")
    hb.pl.training(model, save=out / "training.png")
    plt.close("all")


def _report(
    scores: pd.DataFrame, reference: AnnData, test: AnnData, truth: str, *, seconds: float, training: float
) -> str:
    parts = [
        "# hibiost demo",
        f"Trained on {', '.join(reference.obs['library_id'].unique())} ({reference.n_obs} spots), tested on "
        f"{', '.join(test.obs['library_id'].unique())} ({test.n_obs} spots).",
        "## Image-to-sentence retrieval (%)",
        _table(scores, "retrieval", ("method",)),
        "## Expression, mean over the 300 genes of highest variance in the training sections",
        _table(scores, "prediction", ("target", "method")),
        f"## Clusters against {truth.replace('_', ' ')}",
        _table(scores, "clustering", ("method",)),
        f"{seconds / 60:.1f} minutes, of which training {training / 60:.1f}; peak memory {_peak_gib():.1f} GiB.",
    ]
    return "\n\n".join(parts) + "\n"


def _table(scores: pd.DataFrame, task: str, index: tuple[str, ...]) -> str:
    """A Markdown table of one task, rows and columns in the order of the scores."""
    part = scores[scores["task"] == task]
    columns = list(dict.fromkeys(part["metric"]))
    lines = [f"| {' | '.join((*index, *columns))} |", f"|{'---|' * (len(index) + len(columns))}"]
    for names, rows in part.groupby(list(index), sort=False):
        values = dict(zip(rows["metric"], rows["value"], strict=True))
        digits = 1 if task == "retrieval" else 3
        lines.append(f"| {' | '.join((*names, *(f'{values[c]:.{digits}f}' for c in columns)))} |")
    return "\n".join(lines)


def _peak_gib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)
