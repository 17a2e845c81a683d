"""Expression predicted from H&E alone, on a grid of our own, against the measured spots of the same section.

``python benchmarks/virtual_st.py MODEL [FOLDER]``. MODEL is trained on her2st C2-C5 (``hibiost demo`` leaves one in
``hibiost-demo/model``). C6 is read as a bare image, spots are placed on its tissue, and what is predicted there is
compared, at the grid spot nearest to each measured one, with the counts of C6, which nothing before has seen. So is
what was said of each gene beforehand: its confidence, the correlation to expect, and whether it is to be trusted.
Scores come out as Markdown, maps go to FOLDER.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from scipy.spatial import KDTree

import hibiost as hb

REFERENCE, SECTION = ["C2", "C3", "C4", "C5"], "C6"
GENES = ["ERBB2", "IGLL5", "MGP", "KRT19"]
MIN_COUNTS = 50


def virtual(measured: ad.AnnData) -> ad.AnnData:
    """The section as a bare image with spots on its tissue."""
    metadata = measured.uns["spatial"][SECTION]["metadata"]
    slide = hb.io.read_image(metadata["source_image_path"], mpp=metadata["mpp"], library_id=SECTION)
    hb.pp.grid(slide, spacing_um=100)
    return slide


def colours(adata: ad.AnnData) -> np.ndarray:
    """Colour statistics of the patch of each spot."""
    rows, values = zip(
        *((rows, hb.benchmark.colour_statistics(patches)) for rows, patches in hb.pp.iter_patches(adata)), strict=True
    )
    return np.concatenate(values)[np.argsort(np.concatenate(rows))]


def log_counts(adata: ad.AnnData, genes: list[str], target_sum: float | None) -> np.ndarray:
    """log1p of counts, scaled to ``target_sum`` where it is given."""
    counts = adata.X.toarray()
    if target_sum is not None:
        counts = counts * (target_sum / counts.sum(axis=1, keepdims=True))
    return np.log1p(counts[:, adata.var_names.get_indexer(genes)])


def score(measured: ad.AnnData, slide: ad.AnnData, reference: ad.AnnData, model: hb.model.HibioModel) -> pd.DataFrame:
    """Mean PCC over the 300 genes of highest variance in the reference, of grid and of measured spots."""
    _, nearest = KDTree(slide.obsm["spatial"]).query(measured.obsm["spatial"])
    known, at_grid, at_spots = (colours(adata) for adata in (reference, slide, measured))
    hb.pp.tfidf_sentences(reference, vocabulary=model.vocabulary)
    for adata, modality in ((reference, "auto"), (slide, "image"), (measured, "image")):
        hb.tl.embed(adata, model=model, modality=modality)
    rows = []
    for target in ("raw", "normalized"):
        for adata in (slide, measured):
            hb.tl.predict(adata, reference, model=model, target=target)
        target_sum = slide.uns["predicted_expression"]["params"].get("target_sum")
        ranked = hb.benchmark.variable_genes(reference, reference.n_vars, target_sum=target_sum)
        genes = [gene for gene in ranked if gene in measured.var_names][:300]
        truth, training = (log_counts(adata, genes, target_sum) for adata in (measured, reference))
        ridges = (hb.benchmark.ridge(known, training, queries=queries) for queries in (at_grid, at_spots))
        retrieved = (adata.obsm["predicted_expression"][genes].to_numpy() for adata in (slide, measured))
        for name, (grid, spots) in {"retrieval": retrieved, "ridge on colour statistics": ridges}.items():
            for where, predicted in {"nearest grid spot": grid[nearest], "measured spot": spots}.items():
                pcc = np.nanmean(hb.metrics.pcc(truth, predicted))
                rows.append({"target": target, "method": f"{name}, {where}", "PCC": pcc})
    return pd.DataFrame(rows)


def trust(measured: ad.AnnData, slide: ad.AnnData, reference: ad.AnnData, model: hb.model.HibioModel) -> pd.DataFrame:
    """Rank correlation of what was said of each gene with its PCC on the grid, and PCC of trusted and other genes."""
    _, nearest = KDTree(slide.obsm["spatial"]).query(measured.obsm["spatial"])
    counts = np.asarray(reference.X.sum(axis=0)).ravel()
    shared = [gene for gene in reference.var_names[counts >= MIN_COUNTS] if gene in measured.var_names]
    rows = []
    for target in ("raw", "normalized"):
        hb.tl.predict(slide, reference, model=model, target=target)
        target_sum = slide.uns["predicted_expression"]["params"].get("target_sum")
        truth = log_counts(measured, shared, target_sum)
        pcc = hb.metrics.pcc(truth, slide.obsm["predicted_expression"][shared].to_numpy()[nearest])
        table = hb.get.predicted_genes(slide).loc[shared].assign(pcc=pcc)
        table["mean in the reference"] = log_counts(reference, shared, target_sum).mean(axis=0)
        variable = hb.benchmark.variable_genes(reference, reference.n_vars, target_sum=target_sum)
        variable = [gene for gene in variable if gene in table.index][:300]
        for name, part in {"300 of highest variance": table.loc[variable], f"{MIN_COUNTS} counts": table}.items():
            part = part.dropna()
            ranks = part.drop(columns="trusted").corr("spearman")["pcc"].drop("pcc").add_prefix("rho, ")
            groups = part.groupby("trusted")["pcc"]
            means = {f"PCC, {'trusted' if is_so else 'others'}": values.mean() for is_so, values in groups}
            scores = {"genes": len(part), "trusted": int(part["trusted"].sum()), "PCC": part["pcc"].mean(), **means}
            rows.append({"target": target, "of": name, "expected": part["expected_pcc"].mean(), **scores, **ranks})
    return pd.DataFrame(rows)


def draw(measured: ad.AnnData, slide: ad.AnnData, folder: Path) -> None:
    """Measured and predicted maps of a few genes, one file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for gene in GENES:
        figure, axes = plt.subplots(1, 3, figsize=(16, 4.5), layout="constrained")
        hb.pl.spatial_pred(measured, gene=gene, ax=axes[:2])
        hb.pl.spatial_pred(slide, gene=gene, ax=axes[2], title=f"{gene}, H&E alone:")
        figure.savefig(folder / f"virtual_{gene}.png", dpi=90)
        plt.close(figure)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    model = hb.model.load(sys.argv[1])
    sections = hb.datasets.her2st([*REFERENCE, SECTION])
    of_slide = (sections.obs["library_id"] == SECTION).to_numpy()
    measured, reference = sections[of_slide].copy(), sections[~of_slide].copy()
    slide = virtual(measured)
    scores = score(measured, slide, reference, model)
    distance, _ = KDTree(slide.obsm["spatial"]).query(measured.obsm["spatial"])
    mpp = slide.uns["spatial"][SECTION]["metadata"]["mpp"]
    print(
        f"{slide.n_obs} grid spots, {measured.n_obs} measured spots, {np.median(distance) * mpp:.0f} um to the nearest"
    )
    print(scores.pivot_table("PCC", "method", "target", sort=False)[["raw", "normalized"]].round(3).to_markdown())
    print("\n" + trust(measured, slide, reference, model).round(3).T.to_markdown())
    draw(measured, slide, Path(sys.argv[2] if len(sys.argv) > 2 else "virtual_st"))
