from __future__ import annotations

import csv
import gzip
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from PIL import Image
from scipy import sparse

import hibiost as hb
from hibiost.datasets import _her2st
from hibiost.errors import DataError, DownloadError
from hibiost.settings import settings


@pytest.fixture(scope="module")
def c2(her2st_dir: Path) -> AnnData:
    return hb.datasets.her2st("C2")


@pytest.fixture(scope="module")
def patient_a(her2st_dir: Path) -> AnnData:
    return hb.datasets.her2st(["A1", "A2", "A3"])


def table(path: Path) -> list[dict[str, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def test_counts_are_those_of_the_file(c2: AnnData, her2st_dir: Path) -> None:
    expected = pd.read_csv(her2st_dir / "data/ST-cnts/C2.tsv.gz", sep="\t", index_col=0)
    assert c2.shape == expected.shape == (187, 15706)
    assert isinstance(c2.X, sparse.csr_matrix)
    assert c2.X.dtype == np.float32
    assert c2.X.has_canonical_format
    assert list(c2.obs_names) == [f"C2_{spot}" for spot in expected.index]
    assert list(c2.var_names) == list(expected.columns)
    np.testing.assert_array_equal(c2.X.toarray(), expected.to_numpy())
    depth = np.asarray(c2.X.sum(axis=1)).ravel()
    assert (depth.min(), np.median(depth), depth.max()) == (1, 8508, 36331)


def test_the_default_sections(her2st_dir: Path) -> None:
    adata = hb.datasets.her2st(image=False)
    spots = adata.obs.groupby("library_id", observed=True).size()
    assert spots.to_dict() == {"C2": 187, "C3": 180, "C4": 184, "C5": 181, "C6": 178}
    assert adata.varm["measured"].sum().to_dict() == {
        "C2": 15706,
        "C3": 15821,
        "C4": 15842,
        "C5": 15721,
        "C6": 15772,
    }
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert adata.varm["measured"].any(axis=1).all()
    assert set(adata.obs["patient"]) == {"C"}


def test_outer_join(c2: AnnData, her2st_dir: Path) -> None:
    both = hb.datasets.her2st(["C6", "C2"], image=False)
    assert list(both.obs["library_id"].cat.categories) == ["C6", "C2"]
    part = both[both.obs["library_id"] == "C2"]
    measured = both.varm["measured"]["C2"].to_numpy()
    assert set(part.var_names[measured]) == set(c2.var_names)
    np.testing.assert_array_equal(part[:, c2.var_names].X.toarray(), c2.X.toarray())
    assert part[:, ~measured].n_vars > 100
    assert part[:, ~measured].X.nnz == 0
    assert both.X.has_canonical_format
    assert both[:, :7].varm["measured"].index.equals(both.var_names[:7])


def test_coordinates(c2: AnnData, her2st_dir: Path) -> None:
    spots = {f"C2_{row['x']}x{row['y']}": row for row in table(her2st_dir / "data/ST-spotfiles/C2_selection.tsv")}
    assert c2.obsm["spatial"].dtype == np.float64
    for name, xy, row, column in zip(
        c2.obs_names, c2.obsm["spatial"], c2.obs["array_row"], c2.obs["array_col"], strict=True
    ):
        assert tuple(xy) == (float(spots[name]["pixel_x"]), float(spots[name]["pixel_y"]))
        assert (column, row) == (int(spots[name]["x"]), int(spots[name]["y"]))


def test_image_and_scale(c2: AnnData) -> None:
    entry = c2.uns["spatial"]["C2"]
    path = Path(entry["metadata"]["source_image_path"])
    assert path.is_absolute()
    with pytest.warns(Image.DecompressionBombWarning), Image.open(path) as full:
        width, height = full.size
    assert (width, height) == (9274, 9911)
    mpp = (200 / (width / 32) + 200 / (height / 34)) / 2
    assert entry["metadata"]["mpp"] == pytest.approx(mpp, rel=1e-5)
    assert entry["scalefactors"]["spot_diameter_fullres"] == pytest.approx(100 / mpp, rel=1e-5)
    hires, scale = entry["images"]["hires"], entry["scalefactors"]["tissue_hires_scalef"]
    assert hires.dtype == np.uint8
    assert max(hires.shape) <= 1000
    np.testing.assert_allclose(hires.shape[:2], np.array([height, width]) * scale, atol=0.6)
    x, y = (c2.obsm["spatial"] * scale).astype(int).T
    assert hires[y, x].mean() < hires[:20].mean() - 30


def test_thumbnail_equals_a_plain_reduction(patient_a: AnnData, her2st_dir: Path) -> None:
    path = her2st_dir / "app/www/imgs/A1_HE_image_dark.png"
    entry = patient_a.uns["spatial"]["A1"]
    thumbnail, scale = entry["images"]["hires"], entry["scalefactors"]["tissue_hires_scalef"]
    with Image.open(path) as full:
        pixels = np.asarray(full, dtype=float)
    assert scale == pytest.approx(thumbnail.shape[1] / 2000, abs=0.0005)
    for x, y in [(300, 400), (500, 200), (640, 700)]:
        top, left = round(y / scale), round(x / scale)
        patch = pixels[top : top + 86, left : left + 86].mean(axis=(0, 1))
        np.testing.assert_allclose(thumbnail[y : y + 40, x : x + 40].mean(axis=(0, 1)), patch, atol=3)


def test_reduced_images(patient_a: AnnData) -> None:
    for name, width in (("A1", 2000), ("A2", 2000)):
        part = patient_a[patient_a.obs["library_id"] == name]
        entry = patient_a.uns["spatial"][name]
        with Image.open(entry["metadata"]["source_image_path"]) as image:
            assert image.width == width
            pixels = np.asarray(image)
        x, y = np.round(part.obsm["spatial"]).astype(int).T
        assert np.median(np.diff(np.unique(part.obs["array_col"]))) == 1
        assert (pixels[y, x].max(axis=1) > 40).mean() > 0.97
        assert entry["metadata"]["mpp"] == pytest.approx(3.2, abs=0.02)
    a1 = patient_a[patient_a.obs["library_id"] == "A1"]
    assert a1.n_obs == 346


def test_warped_coordinates(patient_a: AnnData, her2st_dir: Path) -> None:
    a2 = patient_a[patient_a.obs["library_id"] == "A2"]
    rows = table(her2st_dir / "res/ST-cluster/lbl/A2-cluster-annotation.tsv.gz")
    published = {f"A2_{r['x']}x{r['y']}": (float(r["warped_x"]), float(r["warped_y"])) for r in rows}
    known = a2.obs_names.isin(list(published))
    assert (a2.n_obs, known.sum()) == (325, 323)
    expected = np.array([published[name] for name in a2.obs_names[known]]) * 2000 / 6966
    np.testing.assert_allclose(a2.obsm["spatial"][known], expected, atol=0.01)
    lost = a2.obsm["spatial"][~known]
    columns = a2.obs[["array_col", "array_row"]].to_numpy()
    for place, xy in zip(columns[~known], lost, strict=True):
        beside = known & (np.abs(columns - place).sum(axis=1) == 1)
        assert beside.any()
        np.testing.assert_allclose(np.linalg.norm(a2.obsm["spatial"][beside] - xy, axis=1), 62.5, atol=12)


def test_sections_without_image(patient_a: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    entry = patient_a.uns["spatial"]["A3"]
    assert entry["images"] == {}
    assert set(entry["metadata"]) == {"mpp", "organ", "disease_state", "species", "st_technology"}
    assert entry["metadata"]["mpp"] == pytest.approx(0.92, abs=0.01)
    with caplog.at_level("INFO", logger="hibiost"):
        hb.datasets.her2st("A3")
    assert "section A3 has no public image" in caplog.text


def test_image_false_changes_nothing_else(c2: AnnData) -> None:
    bare = hb.datasets.her2st("C2", image=False)
    assert bare.uns["spatial"]["C2"]["images"] == {}
    assert "source_image_path" not in bare.uns["spatial"]["C2"]["metadata"]
    assert bare.obs.equals(c2.obs)
    np.testing.assert_array_equal(bare.obsm["spatial"], c2.obsm["spatial"])


@pytest.mark.parametrize(("section", "n_spots", "n_labelled"), [("C1", 176, 176), ("G2", 467, 467), ("F1", 691, 691)])
def test_pathologist_labels(her2st_dir: Path, section: str, n_spots: int, n_labelled: int) -> None:
    adata = hb.datasets.her2st(section)
    spots = table(her2st_dir / f"data/ST-spotfiles/{section}_selection.tsv")
    labels = table(her2st_dir / f"data/ST-pat/lbl/{section}_labeled_coordinates.tsv")
    by_place = {(float(r["x"]), float(r["y"])): r["label"] for r in labels if r["x"] not in ("", "NA", "NaN", "nan")}
    expected = {f"{section}_{r['x']}x{r['y']}": by_place.get((float(r["new_x"]), float(r["new_y"]))) for r in spots}
    assert isinstance(adata.obs["label"].dtype, pd.CategoricalDtype)
    assert (adata.n_obs, adata.obs["label"].notna().sum()) == (n_spots, n_labelled)
    found = adata.obs["label"].to_dict()
    assert all(found[name] == expected[name] for name in adata.obs_names)


def test_labels_only_where_they_exist(c2: AnnData, patient_a: AnnData) -> None:
    assert "label" not in c2.obs
    labelled = patient_a.obs["label"].notna().groupby(patient_a.obs["library_id"], observed=True).sum()
    assert labelled.to_dict() == {"A1": 346, "A2": 0, "A3": 0}
    assert patient_a.obs["transferred_label"][patient_a.obs["library_id"] == "A1"].isna().all()


def test_labels_of_the_nearest_spot_of_the_first_section(c2: AnnData, her2st_dir: Path) -> None:
    first = table(her2st_dir / "data/ST-spotfiles/C1_selection.tsv")
    labelled = table(her2st_dir / "data/ST-pat/lbl/C1_labeled_coordinates.tsv")
    label = {(r["x"], r["y"]): r["label"] for r in labelled}
    spots = [(float(r["pixel_x"]), float(r["pixel_y"]), label.get((r["new_x"], r["new_y"]))) for r in first]
    pitch = sum(float(r["pixel_x"]) for r in first) / sum(float(r["new_x"]) - 1 for r in first)
    far = 0
    for row in table(her2st_dir / "res/ST-cluster/lbl/C2-cluster-annotation.tsv.gz"):
        at = float(row["warped_x"]), float(row["warped_y"])
        distance, nearest = min((np.hypot(x - at[0], y - at[1]), name) for x, y, name in spots if name is not None)
        found = c2.obs.loc[f"C2_{row['x']}x{row['y']}", "transferred_label"]
        assert pd.isna(found) if distance > pitch else found == nearest
        far += distance > pitch
    assert far == 1


def test_published_clusters(c2: AnnData, her2st_dir: Path) -> None:
    rows = table(her2st_dir / "res/ST-cluster/lbl/C2-cluster-annotation.tsv.gz")
    expected = {f"C2_{r['x']}x{r['y']}": f"C-{r['label']}" for r in rows}
    clusters = c2.obs["published_cluster"]
    assert clusters.notna().sum() == 185
    assert list(clusters.cat.categories) == [f"C-{i}" for i in range(7)]
    assert clusters.dropna().to_dict() == {name: expected[name] for name in clusters.dropna().index}
    named = c2.obs.dropna(subset="published_cluster").set_index("published_cluster")["published_annotation"]
    assert set(named["C-5"]) == {"immune : APC, B-cell, T-cell"}
    assert set(named["C-2"]) == {"cancer 1"}
    assert set(named["C-6"]) == {"unknown"}


def test_every_cluster_has_a_name(her2st_dir: Path) -> None:
    names = _her2st._read_annotations()
    rows = (her2st_dir / "res/ST-cluster/motivation.csv").read_text().splitlines()[1:]
    assert len(names) == len([row for row in rows if row.strip()]) == 46
    assert all(name and "Marker" not in name and not name.endswith(",") for name in names.values())


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_round_trip(patient_a: AnnData, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    getattr(patient_a, f"write_{suffix}")(path)
    back = getattr(anndata, f"read_{suffix}")(path)
    assert (back.X != patient_a.X).nnz == 0
    pd.testing.assert_frame_equal(back.obs, patient_a.obs)
    pd.testing.assert_frame_equal(back.varm["measured"], patient_a.varm["measured"])
    np.testing.assert_array_equal(back.obsm["spatial"], patient_a.obsm["spatial"])
    for name in ("A1", "A2", "A3"):
        assert back.uns["spatial"][name]["metadata"] == patient_a.uns["spatial"][name]["metadata"]
        assert back.uns["spatial"][name]["scalefactors"] == patient_a.uns["spatial"][name]["scalefactors"]
        assert set(back.uns["spatial"][name]["images"]) == set(patient_a.uns["spatial"][name]["images"])


@pytest.mark.global_rng
@pytest.mark.filterwarnings(
    "ignore:The set_bad function:PendingDeprecationWarning",
    "ignore:.*spatial:FutureWarning",
    "ignore:The method obs_vector:FutureWarning",
)
def test_scanpy_and_squidpy(c2: AnnData, patient_a: AnnData) -> None:
    import scanpy as sc
    import squidpy as sq

    (axes,) = sc.pl.spatial(c2.copy(), color="ERBB2", show=False)
    assert axes.images
    axes = sq.pl.spatial_scatter(
        patient_a[patient_a.obs["library_id"] != "A3"].copy(),
        color="label",
        library_key="library_id",
        library_id=["A1", "A2"],
        return_ax=True,
    )
    assert all(ax.images for ax in axes)
    graph = c2.copy()
    sq.gr.spatial_neighbors(graph, coord_type="generic", delaunay=True)
    assert graph.obsp["spatial_connectivities"].nnz > 187


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ("C7", r"no her2st section 'C7'; expected A1-A6, .*, H1-H3"),
        (["C2", "c3"], r"no her2st section 'c3'.*Did you mean 'C3'"),
        (["C2", "C3", "C2"], r"'C2' is named 2 times"),
        ([], "no section given"),
        ([3], "no her2st section 3"),
    ],
)
def test_unknown_sections(sections: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        hb.datasets.her2st(sections)


def test_no_files_and_no_network(tmp_path: Path) -> None:
    settings.data_dir = tmp_path
    with pytest.raises(DownloadError, match=r"could not download https://.*/data/ST-cnts/C2\.tsv\.gz"):
        hb.datasets.her2st("C2")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def check_against_files(name: str, folder: Path) -> None:
    """Spots, genes, counts and three coordinates of a section, from its files by pandas."""
    part = hb.datasets.her2st(name, image=False)
    raw = pd.read_csv(folder / f"data/ST-cnts/{name}.tsv.gz", sep="\t", index_col=0)
    assert list(part.obs_names) == [f"{name}_{spot}" for spot in raw.index]
    assert list(part.var_names) == list(raw.columns)
    assert part.X.sum(dtype=np.float64) == raw.to_numpy().sum()
    if name not in ("A1", "A2"):  # whose images are reduced
        spots = {f"{row['x']}x{row['y']}": row for row in table(folder / f"data/ST-spotfiles/{name}_selection.tsv")}
        for i in (0, len(raw) // 2, -1):
            row = spots[raw.index[i]]
            assert part.obsm["spatial"][i].tolist() == [float(row["pixel_x"]), float(row["pixel_y"])]


@pytest.mark.parametrize("name", ["C3", "C4", "C5", "C6"])
def test_the_other_sections_of_the_demo(her2st_dir: Path, name: str) -> None:
    check_against_files(name, her2st_dir)


@pytest.mark.slow
def test_all_sections_at_hand(her2st_dir: Path) -> None:
    names = [name for name in _her2st.SECTIONS if (her2st_dir / f"data/ST-cnts/{name}.tsv.gz").exists()]
    adata = hb.datasets.her2st(names, image=False)
    assert len(_her2st.SECTIONS) == 36
    assert adata.n_obs == 13_620 - 283 * ("B4" not in names)
    assert np.isfinite(adata.obsm["spatial"]).all()
    assert list(adata.obs["patient"].cat.categories) == list("ABCDEFGH")
    for name in names:
        check_against_files(name, her2st_dir)
