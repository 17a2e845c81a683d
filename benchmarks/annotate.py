"""Signatures found by H&E alone (``hb.tl.annotate``) on a held-out section, against what was measured there.

``python benchmarks/annotate.py MODEL [FIGURE]``. MODEL is trained on her2st C2-C5 (``hibiost demo`` leaves one in
``hibiost-demo/model``), the section is C6. Spearman correlation over spots of each score with the mean log1p expression
of the signature, as counted and scaled to the median library size, comes out as Markdown, beside

- bare cosine: the genes in the order given as one sentence, without the random sentences that ``annotate`` takes off;
- predicted: the mean over the signature of expression predicted by ``hb.tl.predict`` from C2-C5;
- colour ridge: the mean expression of the signature, fitted on colour statistics of C2-C5: a floor, but supervised;
- chance: the 95th percentile of scores of random signatures of the same sizes, by ``annotate``.
"""

from __future__ import annotations

import logging
import sys

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import spearmanr

import hibiost as hb
from hibiost import inputs
from hibiost.genes.vocabulary import metadata_words

REFERENCE, SECTION = ["C2", "C3", "C4", "C5"], "C6"
SEEDS, N_RANDOM = (0, 1, 2), 100
SIGNATURES = {
    "plasma cells": "IGLL5 IGHG1 IGKC MZB1 JCHAIN IGHA1 IGHG3 XBP1",
    "fat": "ADIPOQ PLIN1 FABP4 PLIN4 CD36 LPL ADH1B G0S2",
    "HER2 tumour": "ERBB2 GRB7 KRT19 KRT8 KRT18 EPCAM MUC1 CD24",
    "stroma": "COL1A1 COL1A2 COL3A1 MGP FN1 SPARC DCN LUM",
    "T cells": "CD3D CD3E CD2 TRBC2 IL7R CD52 CCL5 GZMK",
    "endothelium": "VWF PECAM1 CLDN5 AQP1 ENG CDH5 PLVAP",
    "myoepithelium": "KRT5 KRT17 ACTA2 MYLK KRT15 OXTR",
}


def measured(adata: AnnData, genes: list[str], target_sum: float | None) -> np.ndarray:
    """Mean log1p expression of the genes, in each spot."""
    expression = inputs.log_expression(inputs.counts(adata), target_sum=target_sum)
    return np.asarray(expression[:, adata.var_names.get_indexer(genes)].mean(axis=1)).ravel()


def colours(adata: AnnData) -> np.ndarray:
    """Colour statistics of the patch of each spot."""
    rows, values = zip(
        *((rows, hb.benchmark.colour_statistics(patches)) for rows, patches in hb.pp.iter_patches(adata)), strict=True
    )
    return np.concatenate(values)[np.argsort(np.concatenate(rows))]


def bare_cosine(adata: AnnData, model: hb.model.HibioModel, genes: list[str]) -> np.ndarray:
    """Cosine of each image with one sentence."""
    words = metadata_words(adata.uns["spatial"][SECTION]["metadata"])
    sentence = model.embed_genes(model.tokenizer(model.vocabulary.index(genes)[None], words))[0]
    return adata.obsm["X_hibiost_image"] @ sentence


def random_scores(adata: AnnData, model: hb.model.HibioModel, sizes: set[int]) -> dict[int, np.ndarray]:
    """Scores of random signatures of each size, genes drawn by the number of spots that express them."""
    rng = np.random.default_rng(0)
    genes = np.array(model.vocabulary.genes)
    weights = model.vocabulary.n_spots / model.vocabulary.n_spots.sum()
    drawn = {
        f"{size} {i}": list(rng.choice(genes, size, replace=False, p=weights))
        for size in sizes
        for i in range(N_RANDOM)
    }
    scored = hb.tl.annotate(adata, hb.genes.GeneSets(drawn), model=model, copy=True).obsm["pathway_score"]
    return {size: scored[[f"{size} {i}" for i in range(N_RANDOM)]].to_numpy() for size in sizes}


def rho(score: np.ndarray, truth: np.ndarray) -> float:
    """Spearman correlation."""
    return float(spearmanr(score, truth).statistic)


def main(path: str, figure: str | None) -> None:
    """Score, compare and print."""
    model = hb.model.load(path)
    reference, test = hb.datasets.her2st(REFERENCE), hb.datasets.her2st(SECTION)
    hb.tl.embed(test, model=model, modality="image")
    known = set(model.vocabulary.genes) & set(test.var_names) & set(reference.var_names)
    signatures = {name: [gene for gene in genes.split() if gene in known] for name, genes in SIGNATURES.items()}
    scored = [
        hb.tl.annotate(test, hb.genes.GeneSets(signatures), model=model, rng=seed, copy=True).obsm["pathway_score"]
        for seed in SEEDS
    ]
    chance = random_scores(test, model, {len(genes) for genes in signatures.values()})
    at_reference, at_test = colours(reference), colours(test)
    rows = []
    all_genes = sorted({gene for genes in signatures.values() for gene in genes})
    for target in ("raw", "normalized"):
        hb.tl.predict(test, reference, model=model, target=target, genes=all_genes)
        target_sum = test.uns["predicted_expression"]["params"].get("target_sum")
        for name, genes in signatures.items():
            truth, training = (measured(adata, genes, target_sum) for adata in (test, reference))
            floor = hb.benchmark.ridge(at_reference, training[:, None], queries=at_test)[:, 0]
            zero_shot = [rho(scores[name].to_numpy(), truth) for scores in scored]
            rows.append(
                {
                    "target": target,
                    "signature": name,
                    "genes": len(genes),
                    "spots with a count": f"{np.mean(truth > 0):.0%}",
                    "annotate": f"{np.mean(zero_shot):.2f} ± {np.std(zero_shot):.2f}",
                    "chance (95 %)": f"{np.percentile([rho(s, truth) for s in chance[len(genes)].T], 95):.2f}",
                    "bare cosine": f"{rho(bare_cosine(test, model, genes), truth):.2f}",
                    "predicted": f"{rho(test.obsm['predicted_expression'][genes].mean(axis=1), truth):.2f}",
                    "colour ridge": f"{rho(floor, truth):.2f}",
                }
            )
    table = pd.DataFrame(rows)
    lines = [table.columns, ["---"] * table.shape[1], *table.to_numpy()]
    print("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))
    if figure:
        test.obsm["pathway_score"] = scored[0]
        hb.pl.spatial_score(test, list(signatures), save=figure)


if __name__ == "__main__":
    logging.getLogger("hibiost").setLevel(logging.ERROR)
    hb.settings.progress = False
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
