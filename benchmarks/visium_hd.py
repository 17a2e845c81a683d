"""A Visium HD section end to end: seconds and memory of each step, and how both grow.

``python benchmarks/visium_hd.py`` takes 500,000 synthetic bins of 8 um through sentences, overlaps, patches, embedding,
regions, clusters and a figure, and a tenth of them in a process of their own, and writes ``docs/speed/visium_hd.*``.
With another number of bins it only measures.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _bench import markdown, reset_peak, resident, write
from anndata import AnnData

import hibiost as hb
from hibiost import inputs, keys

N_BINS, N_GENES, N_SETS = 500_000, 2_000, 300
MPP, BIN_UM = 0.5, 8.0


class Step(NamedTuple):
    """What a step took: seconds, MiB at its peak beyond what was there before, and MiB of the process at the peak."""

    name: str
    seconds: float
    added_mib: float
    peak_mib: float


def section(n_bins: int, folder: Path) -> AnnData:
    """Bins 8 um apart, about 200 genes each, and a tiled TIFF of 0.5 um a pixel."""
    return hb.datasets.tissue(
        n_bins,
        n_genes=N_GENES,
        counts_per_gene=0.12,
        grid="square",
        pitch_px=BIN_UM / MPP,
        mpp=MPP,
        image_path=folder,
    )


def overlaps(adata: AnnData) -> None:
    """Sets of 10 to 100 of the synthetic genes."""
    rng = np.random.default_rng(0)
    names = adata.var_names.to_numpy()
    sets = {f"set {i}": rng.choice(names, rng.integers(10, 100), replace=False) for i in range(N_SETS)}
    hb.pp.pathway_overlap(adata, hb.genes.GeneSets(sets))


def patches(adata: AnnData) -> None:
    """Read all patches, as the model would get them, and let them go."""
    for _ in inputs.numbered_patches(inputs.slides(adata), size=224, mpp=MPP):
        pass


def figure(adata: AnnData, path: Path) -> None:
    """The clusters."""
    hb.pl.spatial_clusters(adata, color=keys.CLUSTER, save=path)


def steps(folder: Path) -> dict[str, Callable[[AnnData], object]]:
    """All steps but the first, in order."""
    return {
        "sentences": lambda adata: hb.pp.tfidf_sentences(adata, weights=False),
        "overlaps": overlaps,
        "patches": patches,
        "embed": lambda adata: hb.tl.embed(adata, model="hibiost-mini", modality="image", precision="auto"),
        "regions": lambda adata: hb.tl.regions(adata, use_rep=keys.IMAGE_EMBEDDING),
        "cluster": lambda adata: hb.tl.cluster(adata, n_clusters=7),
        "figure": lambda adata: figure(adata, folder / "clusters.png"),
    }


def measured(n_bins: int) -> list[Step]:
    """Each step on that many bins, once."""
    hb.settings.verbosity, hb.settings.progress = "error", False
    found: list[Step] = []

    def timed(name: str, way: Callable[[], object]) -> object:
        before, start = reset_peak(), time.perf_counter()
        result = way()
        seconds, peak = time.perf_counter() - start, resident("VmHWM")
        found.append(Step(name, seconds, (peak - before) / 2**10, peak / 2**10))
        print(f"{n_bins:,} bins | {name:12} {seconds:9.2f} s, {found[-1].added_mib:8,.0f} of {peak / 2**10:,.0f} MiB")
        return result

    with tempfile.TemporaryDirectory() as folder:
        small = section(4_000, Path(folder, "small"))
        for step in steps(Path(folder)).values():  # compiles and imports
            step(small)
        adata = timed("section", lambda: section(n_bins, Path(folder)))
        for name, step in steps(Path(folder)).items():
            timed(name, lambda step=step: step(adata))
    return found


def main() -> None:
    """Measure a tenth of the bins and all of them, each in a new process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("n_bins", type=int, nargs="?", default=N_BINS)
    options = parser.parse_args()
    sizes = (options.n_bins // 10, options.n_bins)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        few, many = (pool.apply(measured, (size,)) for size in sizes)
    head = ["step", f"seconds, {sizes[0]:,} bins", f"seconds, {sizes[1]:,} bins", "times", "memory added (MiB)"]
    lines = [
        [name, f"{less:.3g}", f"{more:.3g}", f"{more / less:.1f}", f"{added:,.0f}", f"{peak:,.0f}"]
        for (_, less, *_), (name, more, added, peak) in zip(few, many, strict=True)
    ]
    table = markdown([[*head, "memory at the peak (MiB)"], *lines])
    print(table)
    if options.n_bins == N_BINS:
        rows = [(size, *step) for size, found in zip(sizes, (few, many), strict=True) for step in found]
        write("visium_hd", ["bins", "step", "seconds", "added_mib", "peak_mib"], rows, table)


if __name__ == "__main__":
    main()
