from __future__ import annotations

import json
import logging
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import sparse

import hibiost as hb
from hibiost.errors import DataError
from hibiost.io import _tenx
from hibiost.settings import settings

FIXTURES = settings.cache / "visium_fixtures"
SEURAT = FIXTURES / "seurat" / "tests" / "testdata" / "visium_hd"
VISIUMIO = FIXTURES / "visiumio" / "inst" / "extdata"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="visium_fixtures not found: set HIBIOST_DATA_DIR")
N_ROWS, N_COLS, MPP = 21, 34, 0.25
GENES = [f"ENSMUSG{number:011d}" for number in range(7)]


def pixel(row: np.ndarray, col: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirrored and a little turned, as a slide lies under the microscope."""
    step = 8 / MPP
    return 1500 - step * col + 0.1 * row, 90 + 0.1 * col + step * row


@pytest.fixture
def outs(tmp_path: Path) -> Path:
    """A run with bins of 8 um: three in four hold counts, in any order; segmented cells lie beside them."""
    outs = tmp_path / "hd" / "outs"
    (outs / "segmented_outputs" / "spatial").mkdir(parents=True)
    (outs / "spatial").mkdir()
    folder = outs / "binned_outputs" / "square_008um"
    (folder / "spatial").mkdir(parents=True)
    rng = np.random.default_rng(0)
    row, col = (part.ravel() for part in np.mgrid[:N_ROWS, :N_COLS])
    x, y = pixel(row, col)
    barcodes = np.array([f"s_008um_{r:05d}_{c:05d}-1" for r, c in zip(row, col, strict=True)])
    kept = rng.permutation(len(row))[: len(row) * 3 // 4]
    in_tissue = np.isin(np.arange(len(row)), kept).astype(int)
    table = {"barcode": barcodes, "in_tissue": in_tissue, "array_row": row, "array_col": col}
    table |= {"pxl_row_in_fullres": y, "pxl_col_in_fullres": x}
    pd.DataFrame(table).to_parquet(folder / "spatial" / "tissue_positions.parquet")
    factors = {"spot_diameter_fullres": 8 / MPP, "bin_size_um": 8.0, "microns_per_pixel": MPP}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    counts = sparse.random(len(kept), len(GENES), 0.3, format="csr", rng=rng, data_rvs=lambda n: rng.integers(1, 9, n))
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
        group = file.create_group("matrix")
        group["barcodes"], group["shape"] = barcodes[kept].astype("S"), np.array(counts.shape[::-1])
        group["data"], group["indices"] = counts.data.astype(np.int32), counts.indices.astype(np.int64)
        group["indptr"] = counts.indptr.astype(np.int64)
        group["features/id"], group["features/name"] = np.array(GENES, "S"), np.array(GENES, "S")
        group["features/feature_type"] = np.array(["Gene Expression"] * len(GENES), "S")
    return outs


def squares(adata, factor: int) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """Counts, numbers of bins, and centres of the squares by a plain groupby."""
    frame = pd.DataFrame(adata.X.toarray(), columns=list(adata.var_names))
    row, col = (adata.obs[name].to_numpy() // factor for name in ("array_row", "array_col"))
    names = np.array([f"{r:04d}x{c:04d}" for r, c in zip(row, col, strict=True)])
    middle = (factor - 1) / 2
    centres = {n: pixel(r * factor + middle, c * factor + middle) for n, r, c in zip(names, row, col, strict=True)}
    return frame.groupby(names).sum(), pd.Series(names).value_counts(), centres


@pytest.mark.parametrize("block", [1, 37, _tenx.BLOCK])
@pytest.mark.parametrize("pool_um", [16, 40, 80])
def test_pooling_is_a_groupby(outs: Path, monkeypatch: pytest.MonkeyPatch, pool_um: int, block: int) -> None:
    bins = hb.io.read_visium_hd(outs)
    monkeypatch.setattr(_tenx.CountsFile.blocks, "__defaults__", (block,))
    pooled = hb.io.read_visium_hd(outs.parent, pool_um=pool_um)
    counts, n_bins, centres = squares(bins, pool_um // 8)
    assert list(pooled.obs_names) == list(counts.index)
    np.testing.assert_array_equal(pooled.X.toarray(), counts.to_numpy())
    np.testing.assert_array_equal(pooled.obs["n_bins"], n_bins[counts.index])
    np.testing.assert_allclose(pooled.obsm["spatial"], [centres[name] for name in counts.index], atol=1e-6)
    assert isinstance(pooled.X, sparse.csr_matrix)
    assert pooled.X.has_sorted_indices
    assert pooled.obs_names[1] == f"{pooled.obs['array_row'].iloc[1]:04d}x{pooled.obs['array_col'].iloc[1]:04d}"
    factors = pooled.uns["spatial"]["hd"]["scalefactors"]
    assert factors["spot_diameter_fullres"] == pytest.approx(pool_um / MPP)
    assert factors["bin_size_um"] == pool_um


def test_bins(outs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tenx.CountsFile.blocks, "__defaults__", (50,))
    adata = hb.io.read_visium_hd(outs, library_id="S")
    with h5py.File(outs / "binned_outputs" / "square_008um" / "filtered_feature_bc_matrix.h5") as file:
        group = file["matrix"]
        parts = [group[name][:] for name in ("data", "indices", "indptr")]
        barcodes = group["barcodes"][:].astype(str)
    assert (sparse.csr_matrix(tuple(parts), shape=adata.shape) != adata.X).nnz == 0
    np.testing.assert_array_equal(adata.obs_names, barcodes)
    row, col = np.array([name[:-2].split("_")[2:] for name in barcodes], int).T
    np.testing.assert_array_equal(adata.obs["array_row"], row)
    np.testing.assert_array_equal(adata.obs["array_col"], col)
    np.testing.assert_allclose(adata.obsm["spatial"], np.column_stack(pixel(row, col)))
    assert adata.obs["in_tissue"].all()
    metadata = adata.uns["spatial"]["S"]["metadata"]
    assert (metadata["mpp"], metadata["mpp_source"]) == (MPP, "scalefactors: microns_per_pixel")
    assert (metadata["st_technology"], metadata["species"]) == ("Visium HD", "Mus musculus")


def test_pixel_size_from_the_bins(outs: Path) -> None:
    path = outs / "binned_outputs" / "square_008um" / "spatial" / "scalefactors_json.json"
    path.write_text(json.dumps({"spot_diameter_fullres": 32.0}))
    metadata = hb.io.read_visium_hd(outs).uns["spatial"]["hd"]["metadata"]
    assert metadata["mpp"] == pytest.approx(MPP, rel=1e-3)
    assert metadata["mpp_source"] == "lattice: 8 um between bins"
    pooled = hb.io.read_visium_hd(outs, pool_um=16)
    assert pooled.uns["spatial"]["hd"]["scalefactors"] == {"spot_diameter_fullres": 64.0}


def test_bad_sizes(outs: Path) -> None:
    (outs / "binned_outputs" / "square_002um").mkdir()
    with pytest.raises(DataError, match=r"no bins of 16 um; expected bin_um= to be one of \[2, 8\]"):
        hb.io.read_visium_hd(outs, bin_um=16)
    for pool_um in (12, 4, 0):
        with pytest.raises(DataError, match=f"pool_um is {pool_um}; expected a multiple of the bins' 8 um"):
            hb.io.read_visium_hd(outs, pool_um=pool_um)
    with pytest.raises(DataError, match="no counts"):
        hb.io.read_visium_hd(outs, bin_um=2)
    with pytest.raises(DataError, match="no folder 'binned_outputs'"):
        hb.io.read_visium_hd(outs / "binned_outputs")
    with pytest.raises(DataError, match="Visium HD.*read_visium_hd"):
        hb.io.read_visium(outs / "binned_outputs" / "square_008um")
    (outs / "binned_outputs" / "x.txt").write_text("")
    with pytest.raises(DataError, match="is a file"):
        hb.io.read_visium_hd(outs / "binned_outputs" / "x.txt")


def test_bins_without_position(outs: Path) -> None:
    path = outs / "binned_outputs" / "square_008um" / "spatial" / "tissue_positions.parquet"
    pd.read_parquet(path).iloc[200:].to_parquet(path)
    with pytest.raises(DataError, match="have no position in .*missing='drop'"):
        hb.io.read_visium_hd(outs)
    bins = hb.io.read_visium_hd(outs, missing="drop")
    assert bins.obs["array_row"].min() == 200 // N_COLS
    counts, n_bins, _ = squares(bins, 5)
    pooled = hb.io.read_visium_hd(outs, pool_um=40, missing="drop")
    np.testing.assert_array_equal(pooled.X.toarray(), counts.to_numpy())
    np.testing.assert_array_equal(pooled.obs["n_bins"], n_bins[counts.index])


def test_bins_in_a_line_cannot_be_pooled(outs: Path) -> None:
    path = outs / "binned_outputs" / "square_008um" / "spatial" / "tissue_positions.parquet"
    pd.read_parquet(path).assign(array_row=0).to_parquet(path)
    with pytest.raises(DataError, match="do not span a plane"):
        hb.io.read_visium_hd(outs, pool_um=16)


@needs_fixtures
@pytest.mark.parametrize(
    ("path", "bin_um", "shape"), [(SEURAT, 8, (2695, 100)), (SEURAT, 16, (642, 100)), (VISIUMIO, 2, (10, 10))]
)
def test_real_bins(path: Path, bin_um: int, shape: tuple[int, int], caplog: pytest.LogCaptureFixture) -> None:
    folder = path / "binned_outputs" / f"square_{bin_um:03d}um"
    positions = {
        row["barcode"]: row for row in pq.read_table(folder / "spatial" / "tissue_positions.parquet").to_pylist()
    }
    with h5py.File(folder / "filtered_feature_bc_matrix.h5") as file:
        group = file["matrix"]
        barcodes, indptr, data = group["barcodes"][:].astype(str), group["indptr"][:].astype(int), group["data"][:]
        genes = group["features/name"][:].astype(str)
    known = [i for i, barcode in enumerate(barcodes) if barcode in positions]
    with caplog.at_level(logging.INFO, "hibiost"):
        adata = hb.io.read_visium_hd(path, bin_um=bin_um, missing="drop")
    assert adata.shape == shape == (len(known), len(genes))
    np.testing.assert_array_equal(adata.obs_names, barcodes[known])
    np.testing.assert_array_equal(adata.var_names, genes)
    sums = [data[indptr[i] : indptr[i + 1]].sum() for i in known]
    np.testing.assert_array_equal(np.asarray(adata.X.sum(axis=1)).ravel(), sums)
    for i in (0, len(known) // 2, -1):
        row = positions[barcodes[known[i]]]
        assert tuple(adata.obsm["spatial"][i]) == (row["pxl_col_in_fullres"], row["pxl_row_in_fullres"])
        assert adata.obs["array_row"].iloc[i] == row["array_row"]
    metadata = next(iter(adata.uns["spatial"].values()))["metadata"]
    factors = json.loads((folder / "spatial" / "scalefactors_json.json").read_text())
    assert metadata["mpp"] == factors["microns_per_pixel"]
    # the positions of seurat's 8 um bins are every second one of their 16 um bins
    assert ("check the files, or pass mpp=" in caplog.text) == (bin_um == 8)


@needs_fixtures
def test_matrix_market_of_a_real_run() -> None:
    folder = VISIUMIO / "binned_outputs" / "square_002um"
    h5, mtx = (_tenx.CountsFile(folder / f"filtered_feature_bc_matrix{end}") for end in (".h5", ""))
    assert h5.barcodes.equals(mtx.barcodes)
    pd.testing.assert_frame_equal(h5.var, mtx.var)
    assert (h5.read() != mtx.read()).nnz == 0


@needs_fixtures
def test_real_bins_are_pooled() -> None:
    bins, pooled = hb.io.read_visium_hd(SEURAT), hb.io.read_visium_hd(SEURAT, pool_um=128)
    counts, n_bins, _ = squares(bins, 16)
    assert list(pooled.obs_names) == list(counts.index)
    np.testing.assert_array_equal(pooled.X.toarray(), counts.to_numpy())
    np.testing.assert_array_equal(pooled.obs["n_bins"], n_bins[counts.index])


@needs_fixtures
def test_unplaced_real_bins_are_refused() -> None:
    with pytest.raises(DataError, match="2053 of 2695 barcodes"):
        hb.io.read_visium_hd(SEURAT, bin_um=16)
