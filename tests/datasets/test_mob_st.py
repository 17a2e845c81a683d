from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from PIL import Image
from scipy import sparse

import hibiost as hb
from hibiost.errors import DataError, DownloadError
from hibiost.settings import settings

FOLDER = Path(settings.cache) / "mob_st/inst/extdata/counts"
real = pytest.mark.skipif(not (FOLDER / "MOB3.tsv").exists(), reason="mob_st is not in the data folder")
SPOTS = {"MOB1": 379, "MOB2": 407, "MOB3": 438}
MEDIANS = {"MOB1": 2268, "MOB2": 2424, "MOB3": 3344}


@pytest.fixture(scope="module")
def mob() -> AnnData:
    return hb.datasets.mob_st()


def on_tissue(name: str) -> dict[str, dict[str, str]]:
    with open(FOLDER / f"alignment_table_{name}.tsv") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    return {f"{row['x']}x{row['y']}": row for row in rows if row["selected"] == "1"}


@real
def test_counts_are_those_of_the_files(mob: AnnData) -> None:
    assert isinstance(mob.X, sparse.csr_matrix)
    assert mob.X.dtype == np.float32
    assert mob.X.has_canonical_format
    assert mob.obs.groupby("library_id", observed=True).size().to_dict() == SPOTS
    assert mob.varm["measured"].sum().to_dict() == dict.fromkeys(SPOTS, 1000)
    for name in SPOTS:
        raw = pd.read_csv(FOLDER / f"{name}.tsv", sep="\t", index_col=0)
        raw = raw.loc[raw.index.isin(list(on_tissue(name)))]
        part = mob[mob.obs["library_id"] == name]
        measured = mob.varm["measured"][name].to_numpy()
        assert list(part.obs_names) == [f"{name}_{spot}" for spot in raw.index]
        np.testing.assert_array_equal(part[:, list(raw.columns)].X.toarray(), raw.to_numpy())
        assert part[:, ~measured].X.nnz == 0
        assert np.median(np.asarray(part.X.sum(axis=1))) == MEDIANS[name]


@real
def test_coordinates(mob: AnnData) -> None:
    for name in SPOTS:
        rows = on_tissue(name)
        part = mob[mob.obs["library_id"] == name]
        for spot in (0, 100, part.n_obs - 1):
            row = rows[part.obs_names[spot].removeprefix(f"{name}_")]
            assert part.obsm["spatial"][spot].tolist() == [float(row["pixel_x"]), float(row["pixel_y"])]
            assert part.obs["array_col"].iloc[spot] == int(row["x"])
            assert part.obs["array_row"].iloc[spot] == int(row["y"])


@real
def test_image_and_scale(mob: AnnData) -> None:
    for name in SPOTS:
        entry = mob.uns["spatial"][name]
        with Image.open(entry["metadata"]["source_image_path"]) as image:
            assert image.size == (1905, 1905)
            pixels = np.asarray(image).mean(axis=2)
        xy = mob.obsm["spatial"][mob.obs["library_id"] == name]
        x, y = np.round(xy).astype(int).T
        assert pixels[y, x].mean() < np.median(pixels) - 25, "tissue is darker than glass"
        nearest = np.sort(np.linalg.norm(xy[:, None] - xy, axis=2), axis=1)[:, 1:5]
        assert entry["metadata"]["mpp"] == pytest.approx(150 / np.median(nearest), rel=0.01)
        assert "assumed" in entry["metadata"]["mpp_source"]
        assert entry["metadata"]["species"] == "Mus musculus"
        assert entry["metadata"]["organ"] == "Brain"
        assert max(entry["images"]["hires"].shape) <= 1000


@real
def test_genes_and_individuals(mob: AnnData) -> None:
    assert mob.var_names.str.fullmatch(r"ENSMUSG\d{11}\.\d+").all()
    assert list(mob.var["gene_ids"]) == list(mob.var_names)
    individuals = mob.obs.groupby("library_id", observed=True)["patient"].unique()
    assert {name: list(found) for name, found in individuals.items()} == {"MOB1": ["1"], "MOB2": ["1"], "MOB3": ["2"]}


@real
def test_one_section_without_image(mob: AnnData) -> None:
    one = hb.datasets.mob_st("MOB3", image=False)
    assert one.uns["spatial"]["MOB3"]["images"] == {}
    assert "source_image_path" not in one.uns["spatial"]["MOB3"]["metadata"]
    part = mob[mob.obs["library_id"] == "MOB3"]
    assert list(one.obs_names) == list(part.obs_names)
    np.testing.assert_array_equal(one.obsm["spatial"], part.obsm["spatial"])


@real
@pytest.mark.skipif((FOLDER / "MOB4.tsv").exists(), reason="MOB4 is there")
@pytest.mark.parametrize("sections", ["MOB4", "all"])
def test_the_section_that_is_not_in_the_folder(sections: str) -> None:
    with pytest.raises(DownloadError, match=r"could not download https://.*/MOB4\.tsv .*Put the file there by hand"):
        hb.datasets.mob_st(sections, image=False)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ("MOB5", "no mob_st section 'MOB5'; expected MOB1, MOB2, MOB3, MOB4"),
        (["MOB1", "mob2"], "no mob_st section 'mob2'.*Did you mean 'MOB2'"),
        (["MOB1", "MOB1"], "'MOB1' is named 2 times"),
        ([], "no section given"),
    ],
)
def test_unknown_sections(sections: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        hb.datasets.mob_st(sections)


def test_no_files_and_no_network(tmp_path: Path) -> None:
    settings.data_dir = tmp_path
    with pytest.raises(DownloadError, match=r"could not download https://.*/MOB1\.tsv"):
        hb.datasets.mob_st("MOB1")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
