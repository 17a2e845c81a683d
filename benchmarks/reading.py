"""Memory of reading a Visium HD section, and of its gene sentences.

``python benchmarks/reading.py [--bins 500000] [--genes-per-bin 100] [--pool-um 128] [--sentences] [--folder DIR]``
writes a synthetic section of 8 um bins as Space Ranger lays it out, reads it in a process of its own, and prints the
growth of that process's peak memory beside the size of the sparse counts. Imports are done before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

N_GENES, MPP, BIN_UM, BLOCK = 18_000, 0.2737, 8, 10_000

READER = """
import json, resource, sys, time
import hibiost as hb
path, pool_um, sentences = sys.argv[1], int(sys.argv[2]) or None, sys.argv[3] == "1"
hb.io, hb.pp.tfidf_sentences
if sentences:
    hb.pp.tfidf_sentences(hb.datasets.tissue())  # imports and compiles
def resident():
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before, start = resident(), time.perf_counter()
adata = hb.io.read_visium_hd(path, pool_um=pool_um)
size = adata.X.data.nbytes + adata.X.indices.nbytes + adata.X.indptr.nbytes
found = {"spots": adata.n_obs, "entries": adata.X.nnz, "sparse": size, "read": peak() - before,
         "seconds": time.perf_counter() - start}
if sentences:
    hb.pp.tfidf_sentences(adata, weights=False)
    found["sentences"] = peak() - before
print(json.dumps(found))
"""


def write_section(folder: Path, n_bins: int, genes_per_bin: int, rng: np.random.Generator) -> None:
    """``n_bins`` in-tissue bins of a square slide, the counts in compressed chunks, genes sorted within a bin."""
    side = int(np.ceil(np.sqrt(n_bins * 1.4)))
    row, col = (part.ravel() for part in np.mgrid[:side, :side])
    barcodes = np.char.add(np.char.add(np.char.mod("s_008um_%05d", row), np.char.mod("_%05d", col)), "-1")
    kept = np.arange(len(row))[-n_bins:]
    (folder / "spatial").mkdir(parents=True)
    pd.DataFrame(
        {
            "barcode": barcodes,
            "in_tissue": np.isin(np.arange(len(row)), kept).astype(np.int32),
            "array_row": row.astype(np.int32),
            "array_col": col.astype(np.int32),
            "pxl_row_in_fullres": 500 + row * BIN_UM / MPP,
            "pxl_col_in_fullres": 500 + col * BIN_UM / MPP,
        }
    ).to_parquet(folder / "spatial" / "tissue_positions.parquet")
    factors = {"spot_diameter_fullres": BIN_UM / MPP, "bin_size_um": BIN_UM, "microns_per_pixel": MPP}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    lengths = rng.poisson(genes_per_bin, n_bins)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    options = {"chunks": (80_000,), "compression": "gzip", "compression_opts": 1}
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
        group = file.create_group("matrix")
        group["barcodes"], group["shape"] = barcodes[kept].astype("S"), np.array([N_GENES, n_bins], np.int32)
        group["indptr"] = indptr
        names = np.array([f"Gene{number}" for number in range(N_GENES)], "S")
        ids = np.array([f"ENSMUSG{number:011d}" for number in range(N_GENES)], "S")
        for name, values in (("name", names), ("id", ids)):
            group[f"features/{name}"] = values
        group["features/feature_type"] = np.array(["Gene Expression"] * N_GENES, "S")
        group["features/genome"] = np.array(["mm10"] * N_GENES, "S")
        data = group.create_dataset("data", (indptr[-1],), np.int32, **options)
        indices = group.create_dataset("indices", (indptr[-1],), np.int64, **options)
        for start in range(0, n_bins, BLOCK):
            part = lengths[start : start + BLOCK]
            entries = slice(indptr[start], indptr[start + len(part)])
            data[entries] = rng.geometric(0.8, part.sum())
            step = np.repeat(N_GENES // np.maximum(part, 1), part)
            place = np.arange(part.sum()) - np.repeat(np.cumsum(part) - part, part)
            indices[entries] = place * step + rng.integers(0, step)


def main() -> None:
    """Write the section, read it and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bins", type=int, default=500_000)
    parser.add_argument("--genes-per-bin", type=int, default=100)
    parser.add_argument("--pool-um", type=int, default=0)
    parser.add_argument("--sentences", action="store_true")
    parser.add_argument("--folder", type=Path, help="kept, and read as it is where it is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "section"
        if not folder.exists():
            square = folder / "binned_outputs" / f"square_{BIN_UM:03d}um"
            write_section(square, options.bins, options.genes_per_bin, np.random.default_rng(0))
        command = [sys.executable, "-c", READER, str(folder), str(options.pool_um), str(int(options.sentences))]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"{found['spots']:,} spots, {found['entries']:,} entries, sparse counts {found['sparse'] / 1e6:,.0f} MB")
    for step in ("read", "sentences"):
        if step in found:
            times = found[step] / found["sparse"]
            print(f"{step}: peak {found[step] / 1e6:,.0f} MB above the imports, {times:.2f} x the sparse counts")
    print(f"read in {found['seconds']:.1f} s")


if __name__ == "__main__":
    main()
