"""How much of eq 5 is chance: overlaps with pathways, and with pathways whose genes were exchanged for others alike.

``python benchmarks/pathway_chance.py [GMT ...]`` takes the sentences of her2st C2-C6, and Reactome, WikiPathways and
the GMT files given. The exchange permutes the genes that are in some pathway within 20 classes of like document
frequency: sizes and overlaps of the pathways, and how often their genes are seen, stay; what the genes have to do with
each other goes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
from scipy import sparse

import hibiost as hb

SECTIONS = ["C2", "C3", "C4", "C5", "C6"]
THRESHOLDS = (0.1, 0.2)
CLASSES, SEEDS = 20, 5


def exchanged(members: sparse.csr_matrix, n_spots: np.ndarray, seed: int) -> sparse.csr_matrix:
    """Members after a permutation of genes within classes of document frequency."""
    rng = np.random.default_rng(seed)
    genes = np.flatnonzero(members.getnnz(axis=0))
    genes = genes[np.argsort(n_spots[genes], kind="stable")]
    place = np.arange(members.shape[1])
    for part in np.array_split(genes, CLASSES):
        place[part] = rng.permutation(part)
    return sparse.csr_matrix((members.data, place[members.indices], members.indptr), members.shape)


def positives(sentences: np.ndarray, members: sparse.csr_matrix, threshold: float) -> tuple[float, float]:
    """Percent of the spots that have a positive, and positives a spot."""
    per_spot = np.diff(hb.genes.overlap_coefficients(sentences, members, threshold=threshold).matrix.indptr)
    return 100 * float(np.mean(per_spot > 0)), float(np.mean(per_spot))


def rows(sources: list[str]) -> Iterator[str]:
    """Lines of the table."""
    adata = hb.datasets.her2st(SECTIONS)
    tables = {}
    for selection in ("tfidf", "top", "hvg"):
        hb.pp.tfidf_sentences(adata, selection=selection)
        tables[selection] = adata.obsm["gene_sentence"]
    n_spots = adata.var["n_spots"].to_numpy()
    for source in sources:
        sets = hb.datasets.gene_sets(source)
        names, members = sets.membership(adata.var_names)
        shuffled = [exchanged(members, n_spots, seed) for seed in range(SEEDS)]
        for selection, sentences in tables.items():
            for threshold in THRESHOLDS:
                share, number = positives(sentences, members, threshold)
                chance = np.array([positives(sentences, other, threshold) for other in shuffled])
                (mean_share, mean_number), (sd_share, sd_number) = chance.mean(axis=0), chance.std(axis=0, ddof=1)
                yield (
                    f"| {sets.source['name']} ({len(names)}) | {selection} | {threshold} | {share:.1f} | "
                    f"{mean_share:.1f} ± {sd_share:.1f} | {number:.3g} | {mean_number:.3g} ± {sd_number:.2g} |"
                )


if __name__ == "__main__":
    hb.settings.verbosity = "error"
    print("| sets (kept) | sentences | threshold | % of spots | exchanged | positives a spot | exchanged |")
    print(f"|{'---|' * 7}")
    for line in rows(["reactome", "wikipathways", *sys.argv[1:]]):
        print(line, flush=True)
