from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import sparse

import hibiost as hb
from hibiost.errors import DataError, ImageError
from hibiost.settings import logger

ROWS, COLUMNS, PITCH, MPP = 6, 8, 40, 2.5
GENES = ["ERBB2", "GAPDH", "BLANK_0012", "NegControlProbe_00042", "antisense_PDK4", "TBCE", "TBCE", "DEPRECATED_ENSG1",
         "UnassignedCodeword_0001", "NegControlCodeword_0500", "MT-CO1"]  # fmt: skip
REAL = ["ERBB2", "GAPDH", "TBCE", "TBCE-1", "MT-CO1"]
HEIGHT, WIDTH = PITCH * (ROWS + 1), PITCH * (COLUMNS + 1)
IMAGE = np.full((HEIGHT, WIDTH, 3), 245, np.uint8)
PINK = np.array([190, 110, 160])
IMAGE[20:-20, 20:-20] = PINK + np.random.default_rng(0).integers(-30, 30, (HEIGHT - 40, WIDTH - 40, 3))
METADATA = (
    '{"id": "TENX9", "image_filename": "TENX9.tif", "organ": "Breast", "disease_state": "Cancer", '
    '"oncotree_code": NaN, "species": "Homo sapiens", "patient": "Patient 1", "st_technology": "Xenium", '
    '"treatment_comment": null, "license": "CC BY 4.0", "pixel_size_um_embedded": 9.0, '
    f'"pixel_size_um_estimated": {MPP}, "Genes/Spot": 12, "spot_diameter": 100.0, "tissue": ""}}'
)


@pytest.fixture
def messages(monkeypatch, caplog):
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, "hibiost")
    return caplog


def centres() -> np.ndarray:
    row, column = np.divmod(np.arange(ROWS * COLUMNS), COLUMNS)
    return np.column_stack([PITCH * (column + 1.0), PITCH * (row + 1.0)])


def counts() -> np.ndarray:
    return np.random.default_rng(1).poisson(1.0, (ROWS * COLUMNS, len(GENES)))


def names() -> list[str]:
    return [f"{row:04d}x{column:04d}" for row in range(ROWS) for column in range(COLUMNS)]


@pytest.fixture(params=["dense", "csr", "csc"])
def storage(request):
    return request.param


def h5ad(path: Path, storage: str = "csr", genes=GENES, var=None, **obs) -> None:
    """The documented file, group by group, by h5py."""
    matrix = counts().astype(np.float32)

    def table(file, name, columns: dict, index: list[str]) -> None:
        group = file.create_group(name)
        group.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
        group.attrs["column-order"] = np.array(list(columns), dtype=h5py.string_dtype())
        for key, values in {"_index": index, **columns}.items():
            strings = isinstance(values[0], str)
            data = np.array(values, dtype=h5py.string_dtype()) if strings else np.asarray(values)
            group[key] = data
            kind = "string-array" if strings else "array"
            group[key].attrs.update({"encoding-type": kind, "encoding-version": "0.2.0"})

    def mapping(parent, name):
        group = parent.create_group(name)
        group.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        return group

    def value(group, name, data) -> None:
        group[name] = data
        kind = "numeric-scalar" if np.ndim(data) == 0 else "array"
        group[name].attrs.update({"encoding-type": kind, "encoding-version": "0.2.0"})

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        if storage == "dense":
            value(file, "X", matrix)
        else:
            held = sparse.csr_matrix(matrix) if storage == "csr" else sparse.csc_matrix(matrix)
            group = file.create_group("X")
            group.attrs.update({"encoding-type": f"{storage}_matrix", "encoding-version": "0.1.0"})
            group.attrs["shape"] = held.shape
            for part in ("data", "indices", "indptr"):
                group[part] = getattr(held, part)
        xy = centres()
        n = len(xy)
        columns = {
            "in_tissue": [1] * n,
            "pxl_col_in_fullres": xy[:, 0],
            "pxl_row_in_fullres": xy[:, 1],
            "array_row": np.arange(n) // 3,
            "array_col": np.arange(n) % 5,
            "total_counts": matrix.sum(axis=1),
            **obs,
        }
        table(file, "obs", columns, names())
        table(file, "var", var or {"n_cells_by_counts": (matrix > 0).sum(axis=0)}, genes)
        value(mapping(file, "obsm"), "spatial", xy)
        entry = mapping(mapping(mapping(file, "uns"), "spatial"), "ST")
        value(mapping(entry, "images"), "downscaled_fullres", IMAGE[::4, ::4])
        factors = mapping(entry, "scalefactors")
        value(factors, "spot_diameter_fullres", 40.0)
        value(factors, "tissue_downscaled_fullres_scalef", 0.25)


def patch_file(path: Path, spots: list[int]) -> np.ndarray:
    """The documented patch file: 16 px of 2.5 um, of some spots, in another order than the AnnData's."""
    corners = np.floor(centres()[spots] - 16 + 0.5).astype(int)
    patches = np.stack([IMAGE[y : y + 32 : 2, x : x + 32 : 2] for x, y in corners])
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("img", data=patches, chunks=(1, 16, 16, 3), maxshape=(None, 16, 16, 3))
        file["img"].attrs.update(patch_size_src=32, patch_size_target=16, downsample=2.0, pixel_size=MPP)
        file["coords"] = corners
        barcodes = np.array([names()[spot] for spot in spots], dtype=object)[:, None]
        file.create_dataset("barcode", data=barcodes, dtype=h5py.string_dtype())
    return patches


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder as HEST-1k's, with one sample: no image, patches of the even spots."""
    root = tmp_path / "hest größe"
    h5ad(root / "st" / "TENX9.h5ad")
    (root / "metadata").mkdir()
    (root / "metadata" / "TENX9.json").write_text(METADATA, encoding="utf-8")
    patch_file(root / "patches" / "TENX9.h5", list(range(0, ROWS * COLUMNS, 2))[::-1])
    return root


# ---- reading


def test_documented_sample(folder, storage, messages):
    h5ad(folder / "st" / "TENX9.h5ad", storage)
    adata = hb.io.read_hest(folder, "TENX9")
    assert list(adata.var_names) == REAL
    assert sparse.isspmatrix_csr(adata.X)
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.toarray(), counts()[:, [GENES.index("ERBB2"), 1, 5, 6, 10]])
    assert "6 control probes are left out" in messages.text
    assert "1 gene names occur again" in messages.text
    assert list(adata.obs_names) == names()
    np.testing.assert_array_equal(adata.obsm["spatial"], centres())
    assert adata.obsm["spatial"].dtype == np.float64
    assert adata.obs["library_id"].dtype == "category"
    assert set(adata.obs["library_id"]) == {"TENX9"}
    assert set(adata.obs["patient"]) == {"Patient 1"}
    np.testing.assert_array_equal(adata.obs["total_counts"], counts().sum(axis=1))
    entry = adata.uns["spatial"]["TENX9"]
    assert list(adata.uns["spatial"]) == ["TENX9"]
    np.testing.assert_array_equal(entry["images"]["hires"], IMAGE[::4, ::4])
    assert entry["scalefactors"] == {"spot_diameter_fullres": 40.0, "tissue_hires_scalef": 0.25}
    expected = {
        "mpp": MPP,
        "mpp_source": "pixel_size_um_estimated of the metadata",
        "patches_path": str(folder / "patches" / "TENX9.h5"),
        "species": "Homo sapiens",
        "organ": "Breast",
        "disease_state": "Cancer",
        "st_technology": "Xenium",
        "license": "CC BY 4.0",
        "patient": "Patient 1",
        "Genes_Spot": 12,
    }
    assert expected.items() <= entry["metadata"].items()
    assert not {"oncotree_code", "treatment_comment", "source_image_path", "Genes/Spot"} & set(entry["metadata"])


def test_survives_files(folder, tmp_path):
    adata = hb.io.read_hest(folder, "TENX9")
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for read in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        assert read.uns["spatial"]["TENX9"]["metadata"]["organ"] == "Breast"


def test_grid_of_pooled_spots(folder, messages):
    """Xenium's and Visium HD's columns are counted anew where they do not fit; others are left as they are."""
    adata = hb.io.read_hest(folder, "TENX9")
    np.testing.assert_array_equal(adata.obs["array_col"], np.tile(np.arange(COLUMNS), ROWS))
    np.testing.assert_array_equal(adata.obs["array_row"], np.repeat(np.arange(ROWS), COLUMNS))
    metadata = folder / "metadata" / "TENX9.json"
    metadata.write_text(METADATA.replace('"Xenium"', '"Visium"'))
    adata = hb.io.read_hest(folder, "TENX9")
    np.testing.assert_array_equal(adata.obs["array_row"], np.arange(ROWS * COLUMNS) // 3)
    metadata.write_text(METADATA.replace('"Xenium"', '"Visium HD"'))
    right = {"array_row": np.repeat(np.arange(ROWS), COLUMNS) + 7, "array_col": np.tile(np.arange(COLUMNS), ROWS) + 3}
    h5ad(folder / "st" / "TENX9.h5ad", **right)
    adata = hb.io.read_hest(folder, "TENX9")
    np.testing.assert_array_equal(adata.obs["array_row"], right["array_row"])
    swapped = {"array_row": right["array_col"], "array_col": right["array_row"]}
    h5ad(folder / "st" / "TENX9.h5ad", **swapped)
    adata = hb.io.read_hest(folder, "TENX9")
    np.testing.assert_array_equal(adata.obs["array_row"], right["array_row"] - 7)
    with h5py.File(folder / "st" / "TENX9.h5ad", "r+") as file:
        file["obsm/spatial"][:] = np.random.default_rng(0).uniform(40, 200, (ROWS * COLUMNS, 2))
    adata = hb.io.read_hest(folder, "TENX9", patches=False)
    assert "lie on no square grid" in messages.text
    assert not {"array_row", "array_col"} & set(adata.obs)


@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_gaps_in_the_grid(jitter):
    from hibiost.io._hest import _square_grid

    rng = np.random.default_rng(0)
    cells = rng.permutation(300 * 200)[:40_000]
    row, column = np.divmod(cells, 300)
    xy = np.column_stack([column, row]) * 73.3 + 1000 + np.rint(rng.uniform(-jitter, jitter, (len(cells), 2)))
    np.testing.assert_array_equal(_square_grid(xy), np.column_stack([column, row]))


ENSEMBL = [f"ENSG{i:011d}.{i % 3}" for i in range(len(GENES))]


def test_ensembl_identifiers(folder, messages):
    h5ad(folder / "st" / "TENX9.h5ad", genes=ENSEMBL)
    adata = hb.io.read_hest(folder, "TENX9")
    assert list(adata.var_names) == ENSEMBL
    assert "hb.pp.map_genes" in messages.text
    symbols = ["A", "B", "", "A", *(f"S{i}" for i in range(len(GENES) - 4))]
    h5ad(folder / "st" / "TENX9.h5ad", genes=ENSEMBL, var={"gene_symbols": symbols})
    adata = hb.io.read_hest(folder, "TENX9")
    assert list(adata.var_names[:5]) == ["A", "B", ENSEMBL[2], "A-1", "S0"]
    assert list(adata.var["gene_ids"]) == ENSEMBL


def test_spots_without_patches(folder, messages):
    adata = hb.io.read_hest(folder, "TENX9")
    assert adata.n_obs == ROWS * COLUMNS
    assert "24 of 48 spots have no patch" in messages.text
    with pytest.raises(DataError, match=r"24 of 48 spots have no patch.*'0000x0001'.*keep those that have"):
        hb.pp.iter_patches(adata, size=16, mpp=2 * MPP)
    adata = hb.io.read_hest(folder, "TENX9", patches=True)
    assert list(adata.obs_names) == names()[::2]
    rows, found = (np.concatenate(part) for part in zip(*hb.pp.iter_patches(adata, size=16, mpp=2 * MPP), strict=True))
    expected = patch_file(folder / "other.h5", list(range(0, ROWS * COLUMNS, 2)))
    np.testing.assert_array_equal(found, expected[rows])
    assert (
        hb.io.read_hest(folder, "TENX9", patches=False).uns["spatial"]["TENX9"]["metadata"].get("patches_path") is None
    )


def test_patches_of_another_sample(folder):
    with h5py.File(folder / "patches" / "TENX9.h5", "r+") as file:
        file["barcode"][:] = np.array([f"other{i}" for i in range(24)], dtype=object)[:, None]
    with pytest.raises(DataError, match=r"holds no patch of any spot of 'TENX9'.*another sample"):
        hb.io.read_hest(folder, "TENX9")


def test_whole_slide_image(folder):
    (folder / "wsis").mkdir()
    tifffile.imwrite(folder / "wsis" / "TENX9.tif", IMAGE, photometric="rgb", tile=(64, 64), compression="deflate")
    adata = hb.io.read_hest(folder, "TENX9")
    metadata = adata.uns["spatial"]["TENX9"]["metadata"]
    assert metadata["source_image_path"] == str(folder / "wsis" / "TENX9.tif")
    rows, patches = next(hb.pp.iter_patches(adata, size=20))
    for row, patch in zip(rows, patches, strict=True):
        x, y = centres()[row].astype(int) - 10
        np.testing.assert_array_equal(patch, IMAGE[y : y + 20, x : x + 20])
    alone = hb.io.read_hest(folder, "TENX9", image=False)
    assert "source_image_path" not in alone.uns["spatial"]["TENX9"]["metadata"]
    (folder / "wsis" / "TENX9.tif").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ImageError, match=r"TENX9\.tif"):
        hb.io.read_hest(folder, "TENX9")


@pytest.mark.parametrize(
    ("metadata", "mpp", "expected"),
    [
        (METADATA, 0.7, (0.7, "argument")),
        (METADATA.replace(f'_estimated": {MPP}', '_estimated": NaN'), None, (9.0, "pixel_size_um_embedded of the")),
        ("{}", None, (MPP, "patch file")),
        (None, None, (MPP, "patch file")),
    ],
)
def test_pixel_size(folder, metadata, mpp, expected):
    path = folder / "metadata" / "TENX9.json"
    path.unlink()
    if metadata is not None:
        path.write_text(metadata, encoding="utf-8-sig")
    found = hb.io.read_hest(folder, "TENX9", mpp=mpp).uns["spatial"]["TENX9"]["metadata"]
    assert found["mpp"] == expected[0]
    assert found["mpp_source"].startswith(expected[1])


def test_no_pixel_size(folder):
    (folder / "metadata" / "TENX9.json").unlink()
    (folder / "patches" / "TENX9.h5").unlink()
    metadata = hb.io.read_hest(folder, "TENX9").uns["spatial"]["TENX9"]["metadata"]
    assert not {"mpp", "patches_path"} & set(metadata)


@pytest.mark.global_rng
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")
def test_scanpy_and_squidpy_plot_it(folder, monkeypatch):
    import scanpy as sc
    import squidpy as sq
    from matplotlib import pyplot as plt

    adata = hb.io.read_hest(folder, "TENX9")
    (axes,) = sc.pl.spatial(adata, color="ERBB2", show=False)
    np.testing.assert_array_equal(np.asarray(axes.images[0].get_array()), IMAGE[::4, ::4])
    plt.close("all")
    sq.pl.spatial_scatter(adata, color="ERBB2", library_key="library_id")
    assert plt.gcf().axes[0].images


# ---- refusals when reading


def test_no_such_sample(folder, tmp_path):
    with pytest.raises(DataError, match=r"no sample 'TENX8' in .*holds 1: \['TENX9'\].*Did you mean 'TENX9'"):
        hb.io.read_hest(folder, "TENX8")
    with pytest.raises(DataError, match=r"is a file; expected a folder in HEST's layout"):
        hb.io.read_hest(folder / "st" / "TENX9.h5ad", "TENX9")
    with pytest.raises(DataError, match="is not there; expected a folder"):
        hb.io.read_hest(tmp_path / "nowhere", "TENX9")
    with pytest.raises(DataError, match=r"has no folder 'st' \(it holds \['TENX9"):
        hb.io.read_hest(folder / "patches", "TENX9")
    with pytest.raises(DataError, match=r"there is no .*TENX9\.tif.*fetch it first"):
        hb.io.read_hest(folder, "TENX9", image=True)
    (folder / "patches" / "TENX9.h5").unlink()
    with pytest.raises(DataError, match=r"there is no .*TENX9\.h5.*fetch it first"):
        hb.io.read_hest(folder, "TENX9", patches=True)


@pytest.mark.parametrize("damage", ["empty", "html", "truncated"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("st/TENX9.h5ad", r"TENX9\.h5ad cannot be read as an AnnData file"),
        ("metadata/TENX9.json", r"TENX9\.json cannot be read as a JSON file"),
        ("patches/TENX9.h5", r"TENX9\.h5 cannot be read as a patch file"),
    ],
)
def test_damaged_files(folder, name, message, damage):
    path = folder / name
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "html": b"<!DOCTYPE html><html>404", "truncated": data[: len(data) // 2]}[damage])
    with pytest.raises((DataError, ImageError), match=message):
        hb.io.read_hest(folder, "TENX9")


def test_a_kind_of_array_that_is_not_known(folder):
    with h5py.File(folder / "st" / "TENX9.h5ad", "r+") as file:
        file["obs"].attrs["encoding-type"] = "of-tomorrow"
    with pytest.raises(DataError, match=r"TENX9\.h5ad cannot be read as an AnnData file: .*of-tomorrow"):
        hb.io.read_hest(folder, "TENX9")
    path = folder / "st" / "TENX9.h5ad"
    with h5py.File(path, "r+") as file:
        file["obs"].attrs["encoding-type"] = "dataframe"
        file["var/_index"].attrs["encoding-type"] = "of-tomorrow"
    with pytest.raises(DataError, match=r"TENX9\.h5ad cannot be read as an AnnData .*of-tomorrow"):
        hb.io.fit_vocabulary(path)
    assert hb.io.Corpus([path, hb.datasets.tissue(60)]).problems["problem"].str.contains("of-tomorrow").any()


def test_a_folder_in_place_of_a_file(folder):
    path = folder / "metadata" / "TENX9.json"
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"TENX9\.json cannot be read.*it is a folder"):
        hb.io.read_hest(folder, "TENX9")
    path.rmdir()
    path.write_text("[1, 2]")
    with pytest.raises(DataError, match=r"holds a list; expected an object"):
        hb.io.read_hest(folder, "TENX9")


def test_counts_that_do_not_fit(folder):
    path = folder / "st" / "TENX9.h5ad"
    h5ad(path, "dense")
    with h5py.File(path, "r+") as file:
        matrix = file["X"][:]
        del file["X"]
        file["X"] = matrix.T
        file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    with pytest.raises(DataError, match=r"X has shape \(11, 48\) for 48 spots and 11 genes"):
        hb.io.read_hest(folder, "TENX9")
    with h5py.File(path, "r+") as file:
        del file["X"]
    with pytest.raises(DataError, match=r"holds no counts \(X\)"):
        hb.io.read_hest(folder, "TENX9")


def test_spots_that_do_not_fit(folder):
    path = folder / "st" / "TENX9.h5ad"
    with h5py.File(path, "r+") as file:
        del file["obsm/spatial"]
    np.testing.assert_array_equal(hb.io.read_hest(folder, "TENX9").obsm["spatial"], centres())
    with h5py.File(path, "r+") as file:
        file["obs/_index"][1] = "0000x0000"
    with pytest.raises(DataError, match="1 barcodes occur more than once, such as '0000x0000'"):
        hb.io.read_hest(folder, "TENX9")
    with h5py.File(path, "r+") as file:
        file["obs/_index"][1] = "0000x0001"
        del file["obs/pxl_row_in_fullres"]
        file["obs"].attrs["column-order"] = ["in_tissue", "pxl_col_in_fullres"]
    with pytest.raises(DataError, match=r"neither obsm\['spatial'\] nor obs\['pxl_row_in_fullres'\]"):
        hb.io.read_hest(folder, "TENX9")


# ---- writing


def assert_same(found: ad.AnnData, expected: ad.AnnData) -> None:
    assert (found.X != expected.X).nnz == 0
    assert list(found.obs_names) == list(expected.obs_names)
    assert list(found.var_names) == list(expected.var_names)
    for column in expected.obs:
        left, right = ([None if pd.isna(v) else v for v in a.obs[column]] for a in (found, expected))
        assert left == right, column
    for slot in ("layers", "obsm", "varm", "obsp"):
        mapping = getattr(expected, slot)
        assert set(mapping) == set(getattr(found, slot))
        for key, value in mapping.items():
            other = getattr(found, slot)[key]
            if sparse.issparse(value):
                assert (value != other).nnz == 0
            elif isinstance(value, pd.DataFrame):
                np.testing.assert_array_equal(value.to_numpy(), other.to_numpy())
            else:
                np.testing.assert_array_equal(value, other)
    for library, entry in expected.uns["spatial"].items():
        for name, pixels in entry["images"].items():
            np.testing.assert_array_equal(pixels, found.uns["spatial"][library]["images"][name])
        assert entry["scalefactors"] == found.uns["spatial"][library]["scalefactors"]
        assert entry["metadata"].items() <= found.uns["spatial"][library]["metadata"].items()


def test_slides_written_are_slides_read(tmp_path):
    adata = hb.datasets.tissue(80, n_genes=120, n_slides=2)
    adata.layers["logs"] = adata.X.log1p()
    adata.obsm["X_pca"] = np.random.default_rng(0).normal(size=(160, 3))
    adata.obsp["near"] = sparse.eye_array(160, format="csr")
    hb.pp.tfidf_sentences(adata, n_genes=20)
    hb.io.write_hest(adata, tmp_path / "corpus")
    for library in ("tissue_0", "tissue_1"):
        expected = adata[(adata.obs["library_id"] == library).to_numpy()].copy()
        expected.uns["spatial"] = {library: expected.uns["spatial"][library]}
        found = hb.io.read_hest(tmp_path / "corpus", library)
        assert_same(found, expected)
        assert hb.get.sentences(found).tolist() == hb.get.sentences(expected).tolist()
        with h5py.File(tmp_path / "corpus" / "st" / f"{library}.h5ad") as file:  # as HEST's own readers expect it
            assert list(file["uns/spatial"]) == ["ST"]
            assert list(file["uns/spatial/ST/images"]) == ["downscaled_fullres"]
            assert {"spot_diameter_fullres", "tissue_downscaled_fullres_scalef"} == set(
                file["uns/spatial/ST/scalefactors"]
            )
            np.testing.assert_array_equal(file["obs/pxl_col_in_fullres"][:], expected.obsm["spatial"][:, 0])
            np.testing.assert_array_equal(file["obs/in_tissue"][:], 1)
        content = json.loads((tmp_path / "corpus" / "metadata" / f"{library}.json").read_text())
        assert content["id"] == library
        assert content["pixel_size_um_estimated"] == 0.5
        assert content["patient"] == f"P{library[-1]}"
        assert (content["spots_under_tissue"], content["adata_nb_col"]) == (80, 120)
        assert content["spot_diameter"] == pytest.approx(0.55 * 112 * 0.5)


def test_written_with_patches(tmp_path):
    adata = hb.datasets.tissue(60, image_path=tmp_path / "images")
    expected = np.concatenate([batch for _, batch in hb.pp.iter_patches(adata, size=224, mpp=0.5)])
    hb.io.write_hest(adata, tmp_path / "corpus", patches=True)
    found = hb.io.read_hest(tmp_path / "corpus", "tissue_0")
    metadata = found.uns["spatial"]["tissue_0"]["metadata"]
    assert metadata["patches_path"] == str(tmp_path / "corpus" / "patches" / "tissue_0.h5")
    assert metadata["source_image_path"] == str(tmp_path / "images" / "tissue_0.tif")
    (tmp_path / "images" / "tissue_0.tif").unlink()
    alone = hb.io.read_hest(tmp_path / "corpus", "tissue_0", patches=True)
    assert "source_image_path" not in alone.uns["spatial"]["tissue_0"]["metadata"]
    stored = np.concatenate([batch for _, batch in hb.pp.iter_patches(alone, size=224, mpp=0.5)])
    np.testing.assert_array_equal(stored, expected)


def test_patches_extracted_into_a_corpus_are_found(tmp_path):
    adata = hb.datasets.tissue(60)
    hb.io.write_hest(adata, tmp_path)
    hb.pp.extract_patches(adata, tmp_path / "patches", size=64)
    found = hb.io.read_hest(tmp_path, "tissue_0", patches=True)
    assert found.uns["spatial"]["tissue_0"]["metadata"]["patches_path"] == str(tmp_path / "patches" / "tissue_0.h5")


def test_counts_of_a_layer(tmp_path):
    adata = hb.datasets.tissue(60)
    adata.layers["counts"], adata.X = adata.X.copy(), adata.X.log1p()
    with pytest.raises(DataError, match="no counts"):
        hb.io.write_hest(adata, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    hb.io.write_hest(adata, tmp_path / "a", layer="counts")
    assert (adata.layers["counts"] != hb.io.read_hest(tmp_path / "a", "tissue_0").X).nnz == 0


def test_samples_there_already(tmp_path):
    adata = hb.datasets.tissue(60)
    hb.io.write_hest(adata, tmp_path)
    with pytest.raises(DataError, match=r"holds 1 of these samples already \(\['tissue_0'\]\).*overwrite=True"):
        hb.io.write_hest(adata, tmp_path)
    adata.uns["spatial"]["tissue_0"]["metadata"]["organ"] = "Breast"
    hb.io.write_hest(adata, tmp_path, overwrite=True)
    assert hb.io.read_hest(tmp_path, "tissue_0").uns["spatial"]["tissue_0"]["metadata"]["organ"] == "Breast"


def test_writing_refused(tmp_path):
    adata = hb.datasets.tissue(60)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file is a file; expected a folder"):
        hb.io.write_hest(adata, tmp_path / "file")
    with pytest.raises(DataError, match="cannot be written .Not a directory.; .* choose another place"):
        hb.io.write_hest(adata, tmp_path / "file" / "corpus")
    adata.obs["library_id"] = adata.obs["library_id"].cat.rename_categories({"tissue_0": "a" * 300})
    with pytest.raises(DataError, match="cannot be written .File name too long."):
        hb.io.write_hest(adata, tmp_path / "long")
    adata.obs["library_id"] = adata.obs["library_id"].cat.rename_categories({"a" * 300: "a/b"})
    with pytest.raises(DataError, match="'a/b', which is no name for a file"):
        hb.io.write_hest(adata, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_barcodes_that_occur_twice_are_not_written(tmp_path):
    adata = hb.datasets.tissue(60, n_slides=2)
    names = [f"{i % 60}" for i in range(adata.n_obs)]
    names[1] = "0"
    adata.obs_names = names
    with pytest.raises(DataError, match=r"slide 'tissue_0': 1 barcodes occur more than once, such as '0'; rename them"):
        hb.io.write_hest(adata, tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


def test_spots_outside_the_image_leave_no_folder(tmp_path):
    adata = hb.datasets.tissue(60)
    adata.obsm["spatial"] *= 10
    with pytest.raises(DataError, match="60 of 60 spots .* lie outside"):
        hb.io.write_hest(adata, tmp_path / "corpus", patches=True)
    assert not (tmp_path / "corpus").exists()


FULL = """
import resource, sys
from pathlib import Path
import hibiost as hb
def files():
    return {path: path.read_bytes() for path in Path(sys.argv[1]).rglob("*") if path.is_file()}
before, adata = files(), hb.datasets.tissue(60)
assert len(before) == 2
adata.uns["spatial"]["tissue_0"]["metadata"]["organ"] = "Liver"
for size in (100, 20_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        hb.io.write_hest(adata, sys.argv[1], overwrite=True)
    except hb.errors.DataError as error:
        print(error)
    assert files() == before
"""


def test_full_disk_leaves_the_former_sample(tmp_path):
    """A limit on the size of files stands for the end of the disk, at the first file and within the counts."""
    hb.io.write_hest(hb.datasets.tissue(60), tmp_path)
    found = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("cannot be written (File too large); free some space") == 2


# ---- real data


@pytest.mark.data
def test_her2st_section(tmp_path):
    adata = hb.datasets.her2st("C6")
    expected = np.concatenate([batch for _, batch in hb.pp.iter_patches(adata, mpp=0.5)])
    hb.io.write_hest(adata, tmp_path, patches=True)
    found = hb.io.read_hest(tmp_path, "C6", image=False, patches=True)
    del adata.uns["spatial"]["C6"]["metadata"]["source_image_path"]
    assert_same(found, adata)
    stored = np.concatenate([batch for _, batch in hb.pp.iter_patches(found, mpp=0.5)])
    np.testing.assert_array_equal(stored, expected)
