from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import tifffile
from anndata import AnnData
from scipy import sparse
from scipy.spatial import cKDTree

import hibiost as hb
from hibiost.datasets import _histology, _tissue
from hibiost.datasets._histology import LOOKS, Section
from hibiost.errors import DataError, ImageError


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return hb.datasets.tissue()


def hires(adata: AnnData, name: str = "tissue_0") -> np.ndarray:
    return adata.uns["spatial"][name]["images"]["hires"]


def same(one: AnnData, other: AnnData) -> bool:
    return (
        (one.X != other.X).nnz == 0
        and one.obs.equals(other.obs)
        and one.var.equals(other.var)
        and all(np.array_equal(hires(one, name), hires(other, name)) for name in one.uns["spatial"])
    )


def test_slots(adata: AnnData) -> None:
    assert adata.shape == (400, 300)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert adata.X.has_canonical_format
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert (adata.X.data > 0).all()
    assert (adata.X.data == np.rint(adata.X.data)).all()
    assert {"ERBB2", "IGLL5", "MGP", "IFI27", "KRT19", "COL1A1", "CD3D", "ACTB", "GENE0001"} <= set(adata.var_names)
    assert adata.var.loc["ERBB2", "marker_of"] == "tumour"
    assert adata.var.loc["ACTB", "marker_of"] == "none"
    assert list(adata.obs["region_truth"].cat.categories) == ["tumour", "stroma", "immune", "adipose"]
    assert adata.obs["region_truth"].value_counts().min() > 20
    assert adata.obs["cellularity_truth"].between(0.6, 1.4).all()
    assert set(adata.obs["library_id"]) == {"tissue_0"}
    assert set(adata.obs["patient"]) == {"P0"}
    np.testing.assert_allclose(adata.varm["profile_truth"].sum(), 1)
    assert adata.uns["tissue"]["params"] == {
        "n_spots": 400,
        "n_genes": 300,
        "counts_per_gene": 2.0,
        "n_regions": 4,
        "n_slides": 1,
        "grid": "hex",
        "pitch_px": 112.0,
        "mpp": 0.5,
        "rng": 0,
    }
    entry = adata.uns["spatial"]["tissue_0"]
    assert entry["metadata"] == {"mpp": 0.5}
    assert entry["scalefactors"] == {"spot_diameter_fullres": pytest.approx(61.6), "tissue_hires_scalef": 1.0}


@pytest.mark.parametrize(("grid", "neighbours"), [("hex", 6), ("square", 4)])
@pytest.mark.parametrize("n_spots", [1, 7, 100, 333])
def test_grid(grid: str, neighbours: int, n_spots: int) -> None:
    adata = hb.datasets.tissue(n_spots, grid=grid, pitch_px=50, image=False, n_genes=20)
    xy = adata.obsm["spatial"]
    assert xy.shape == (n_spots, 2)
    assert xy.dtype == np.float64
    assert not adata.obs[["array_row", "array_col"]].duplicated().any()
    if n_spots >= 100:
        tree = cKDTree(xy)
        assert tree.query(xy, 2)[0][:, 1] == pytest.approx(50)
        assert max(map(len, tree.query_ball_point(xy, 51))) == neighbours + 1
        assert 0.8 < np.ptp(xy[:, 0]) / np.ptp(xy[:, 1]) < 1.25
    step = (25, 50 * np.sqrt(0.75)) if grid == "hex" else (50, 50)
    np.testing.assert_allclose(xy - 75, adata.obs[["array_col", "array_row"]].to_numpy() * step)


def test_patches_lie_inside_the_image(adata: AnnData) -> None:
    height, width, _ = hires(adata).shape
    xy = adata.obsm["spatial"]
    assert (xy >= 112).all()
    assert (xy <= [width - 112, height - 112]).all()


def test_same_seed_same_tissue(adata: AnnData) -> None:
    assert same(adata, hb.datasets.tissue(rng=0))
    assert same(hb.datasets.tissue(100, rng=np.random.default_rng(5)), hb.datasets.tissue(100, rng=5))
    other = hb.datasets.tissue(rng=1)
    assert (adata.X != other.X).nnz > 1000
    assert (hires(adata) != hires(other)).mean() > 0.5
    rng = np.random.default_rng(5)
    assert not same(hb.datasets.tissue(100, rng=rng), hb.datasets.tissue(100, rng=rng))


def test_slides_share_genes_and_differ_in_layout() -> None:
    three = hb.datasets.tissue(100, n_slides=3)
    assert three.obs["library_id"].value_counts().to_dict() == {"tissue_0": 100, "tissue_1": 100, "tissue_2": 100}
    assert list(three.obs.groupby("library_id", observed=True)["patient"].first()) == ["P0", "P1", "P2"]
    assert three.obs_names.is_unique
    assert (hires(three, "tissue_1") != hires(three, "tissue_2")).mean() > 0.5
    first = hb.datasets.tissue(100)
    assert (three.X[:100] != first.X).nnz == 0
    np.testing.assert_array_equal(hires(three), hires(first))
    pd.testing.assert_frame_equal(three.varm["profile_truth"], first.varm["profile_truth"])


@pytest.mark.parametrize("chunk", [1, 3000, 10**9])
def test_chunks_do_not_change_the_counts(adata: AnnData, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(_tissue, "CHUNK", chunk)
    assert (hb.datasets.tissue(image=False).X != adata.X).nnz == 0


def test_counts_are_negative_binomial() -> None:
    profile, depth = np.array([[0.01, 0.09, 0.9], [0.3, 0.3, 0.4]]), np.full(40_000, 100.0)
    region = np.repeat([0, 1], 20_000)
    counts = _tissue._counts(profile, region, depth, np.random.default_rng(0)).toarray()
    for i in range(2):
        part, mean = counts[region == i], 100 * profile[i]
        np.testing.assert_allclose(part.mean(axis=0), mean, rtol=0.03)
        np.testing.assert_allclose(part.var(axis=0), mean + mean**2 / 5, rtol=0.06)


def test_counts_per_gene() -> None:
    bins = hb.datasets.tissue(2_000, n_genes=500, counts_per_gene=0.12, image=False)
    assert bins.X.mean() == pytest.approx(0.12, rel=0.3)
    assert 30 < np.diff(bins.X.indptr).mean() < 60


def test_counts_follow_the_truth(adata: AnnData) -> None:
    dense = adata.X.toarray()
    for region in adata.obs["region_truth"].cat.categories:
        total = dense[adata.obs["region_truth"] == region].sum(axis=0)
        expected = adata.varm["profile_truth"][region]
        assert np.corrcoef(total / total.sum(), expected)[0, 1] > 0.98
        marks = (adata.var["marker_of"] == region).to_numpy()
        share = dense[:, marks].sum(axis=1) / dense.sum(axis=1)
        inside = adata.obs["region_truth"] == region
        assert share[inside].mean() > 2 * share[~inside].mean()


def colour_statistics(adata: AnnData) -> np.ndarray:
    image = hires(adata)
    rows = []
    for x, y in np.round(adata.obsm["spatial"]).astype(int):
        patch = image[y - 112 : y + 112, x - 112 : x + 112].reshape(-1, 3)
        rows.append([*patch.mean(axis=0), *patch.std(axis=0)])
    return np.array(rows)


@pytest.mark.parametrize("n_regions", [4, 6])
def test_truth_can_be_recovered(n_regions: int) -> None:
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import adjusted_rand_score
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    adata = hb.datasets.tissue(n_regions=n_regions, rng=3)
    truth = adata.obs["region_truth"].cat.codes.to_numpy()
    dense = adata.X.toarray()
    pcs = PCA(10, random_state=0).fit_transform(np.log1p(500 * dense / dense.sum(axis=1, keepdims=True)))
    assert adjusted_rand_score(truth, KMeans(n_regions, n_init=10, random_state=0).fit_predict(pcs)) > 0.9
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    assert cross_val_score(model, colour_statistics(adata), truth, cv=5).mean() > 0.8


def test_regions_are_coherent(adata: AnnData) -> None:
    region = adata.obs["region_truth"].cat.codes.to_numpy()
    _, nearest = cKDTree(adata.obsm["spatial"]).query(adata.obsm["spatial"], 7)
    assert (region[nearest[:, 1:]] == region[:, None]).mean() > 0.75


def test_blocks_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    section = Section.random(1000, 1400, mpp=0.5, margin=40, looks=LOOKS, rng=np.random.default_rng(2))
    expected = section.image().astype(int)
    for side in (256, 1024):
        monkeypatch.setattr(_histology, "BLOCK", side)
        difference = np.abs(section.image() - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-4


@pytest.mark.parametrize("mpp", [0.1, 0.5, 2.0])
def test_nuclei_scale_with_mpp(mpp: float) -> None:
    look = tuple(look for look in LOOKS if look.name == "immune")
    section = Section.random(512, 512, mpp=mpp, margin=0, looks=look, rng=np.random.default_rng(0))
    darkness = section._nuclei(0, 0)
    assert 0.2 < (darkness > 0.3).mean() < 0.6
    edges = np.abs(np.diff(darkness > 0.3, axis=1)).sum()
    assert edges == pytest.approx(512 * 512 * mpp * 0.13, rel=0.35)


def test_glass_surrounds_the_tissue(adata: AnnData) -> None:
    image = hires(adata)
    assert image[:5].min() > 225
    x, y = adata.obsm["spatial"].astype(int).T
    stroma = (adata.obs["region_truth"] == "stroma").to_numpy()
    assert image[y[stroma], x[stroma]].mean() < 210


def test_image_on_disk_equals_image_in_memory(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    disk = hb.datasets.tissue(100, n_slides=2, image_path=folder)
    memory = hb.datasets.tissue(100, n_slides=2)
    assert sorted(path.name for path in folder.iterdir()) == ["tissue_0.tif", "tissue_1.tif"]
    assert (disk.X != memory.X).nnz == 0
    for name in ("tissue_0", "tissue_1"):
        entry = disk.uns["spatial"][name]
        assert entry["metadata"] == {"mpp": 0.5, "source_image_path": str(folder / f"{name}.tif")}
        full = hires(memory, name)
        np.testing.assert_array_equal(tifffile.imread(folder / f"{name}.tif"), full)
        small = entry["images"]["hires"]
        assert max(small.shape) <= 1000
        assert entry["scalefactors"]["tissue_hires_scalef"] == 0.5
        rows, columns = np.array(full.shape[:2]) // 2
        means = full[: 2 * rows, : 2 * columns].reshape(rows, 2, columns, 2, 3).mean(axis=(1, 3))
        np.testing.assert_array_equal(small[:rows, :columns], means.astype(np.uint8))
    with tifffile.TiffFile(folder / "tissue_0.tif") as tiff:
        page = tiff.pages[0]
        assert page.is_tiled
        numerator, denominator = page.tags["XResolution"].value
        assert 1e4 / (numerator / denominator) == pytest.approx(0.5)


def test_image_false_changes_no_counts(adata: AnnData) -> None:
    bare = hb.datasets.tissue(image=False)
    assert bare.uns["spatial"]["tissue_0"]["images"] == {}
    assert (bare.X != adata.X).nnz == 0
    assert bare.obs.equals(adata.obs)


def test_many_spots_stay_sparse_and_small() -> None:
    import tracemalloc

    tracemalloc.start()
    adata = hb.datasets.tissue(50_000, n_genes=40, image=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    stored = adata.X.data.nbytes + adata.X.indices.nbytes
    assert peak < 2 * stored + 50e6 + 6 * 8 * _tissue.CHUNK


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.parametrize("image", [True, False])
def test_round_trip(tmp_path: Path, suffix: str, image: bool) -> None:
    adata = hb.datasets.tissue(30, n_slides=2, n_genes=60, image=image, pitch_px=20)
    path = tmp_path / f"a.{suffix}"
    getattr(adata, f"write_{suffix}")(path)
    back = getattr(anndata, f"read_{suffix}")(path)
    assert (back.X != adata.X).nnz == 0
    pd.testing.assert_frame_equal(back.obs, adata.obs)
    pd.testing.assert_frame_equal(back.var, adata.var)
    pd.testing.assert_frame_equal(back.varm["profile_truth"], adata.varm["profile_truth"])
    assert back.uns["tissue"] == adata.uns["tissue"]
    for name in ("tissue_0", "tissue_1"):
        assert back.uns["spatial"][name]["metadata"] == {"mpp": 0.5}
        assert ("hires" in back.uns["spatial"][name]["images"]) == image


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_spots": 0}, "n_spots is 0; expected a whole number"),
        ({"n_spots": 1e3}, r"n_spots is 1000\.0; expected a whole number"),
        ({"n_genes": 0}, "n_genes is 0"),
        ({"counts_per_gene": 0}, "counts_per_gene is 0; expected a positive number"),
        ({"n_slides": -1}, "n_slides is -1"),
        ({"n_regions": 7}, "n_regions is 7; expected at most 6"),
        ({"grid": "round"}, "grid is 'round'; expected 'hex' or 'square'"),
        ({"pitch_px": 0}, "pitch_px is 0; expected a number from 4"),
        ({"pitch_px": float("nan")}, "pitch_px is nan"),
        ({"mpp": 20.0}, r"mpp is 20\.0; expected 0\.1 to 2"),
        ({"n_spots": 1_000_000}, r"megapixels, more than the 100 .* pass image_path= .* pitch_px=, or image=False"),
        ({"image": False, "image_path": "folder"}, "image_path is given with image=False"),
    ],
)
def test_refusals(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        hb.datasets.tissue(**arguments)


def test_an_existing_image_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "tissue_1.tif").write_text("mine")
    with pytest.raises(DataError, match=r"tissue_1\.tif already exists; delete it"):
        hb.datasets.tissue(10, n_slides=2, image_path=tmp_path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block, calls = Section.block, []

    def full_disk(self: Section, row: int, column: int) -> np.ndarray:
        calls.append(row)
        if len(calls) > 5:
            raise OSError("no space left on device")
        return block(self, row, column)

    monkeypatch.setattr(Section, "block", full_disk)
    with pytest.raises(ImageError, match=r"could not write images to image_path .*no space left"):
        hb.datasets.tissue(10, n_slides=4, image_path=tmp_path)
    assert len(calls) == 6
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ImageError, match="could not write images"):
        hb.datasets.tissue(10, image_path=tmp_path / "file" / "images")
