from __future__ import annotations

import csv
import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from PIL import Image
from scipy import sparse

import hibiost as hb
from hibiost.datasets import _dlpfc
from hibiost.datasets._registry import registry
from hibiost.errors import DataError
from hibiost.settings import settings

FOLDER = settings.cache / "dlpfc"
LAYERS = ["L1", "L2", "L3", "L4", "L5", "L6", "WM"]
SYMBOLS = {"ENSG09": "TWIN", "ENSG01": "NPY", "ENSG02": "TWIN", "ENSG03": "MBP"}
COUNTS = {
    "151673": pd.DataFrame([[1, 0, 2], [0, 3, 0]], ["ENSG01", "ENSG09"], ["CC-1", "AA-1", "BB-1"]),
    "151676": pd.DataFrame([[5, 0], [0, 7], [0, 0]], ["ENSG03", "ENSG02", "ENSG01"], ["AA-1", "DD-1"]),
}
SPOTS = {"AA-1": (0, 0), "BB-1": (0, 2), "CC-1": (1, 1), "DD-1": (2, 4), "EE-1": (3, 3)}


def r_file(name: str, matrix: pd.DataFrame) -> str:
    """``save(list(expression = matrix), ascii = TRUE)`` of R, by hand from the format's description."""

    def characters(words: list[str]) -> list:
        return [item for word in words for item in (262153, len(word), word)]

    def tagged(tag: str) -> list:
        return [1026, 1, *characters([tag])]

    def strings(words: list[str]) -> list:
        return [16, len(words), *characters(words)]

    dimnames = [19, 2, *strings(list(matrix.index)), *strings(list(matrix.columns))]
    attributes = [*tagged("dim"), 13, 2, *matrix.shape, *tagged("dimnames"), *dimnames, 254]
    values = [526, matrix.size, *matrix.to_numpy().ravel(order="F"), *attributes]
    listed = [531, 1, *values, *tagged("names"), *strings(["expression"]), 254]
    return "\n".join(["RDA2", "A", *map(str, [2, 263168, 131840, *tagged(name), *listed, 254])]) + "\n"


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two tiny sections in place of the public files; the paths that were asked for."""
    asked: list[str] = []

    def fetch(dataset: str, path: str) -> Path:
        assert path in registry(dataset)
        asked.append(path)
        return tmp_path / path

    monkeypatch.setattr(_dlpfc, "fetch", fetch)
    for path in registry("dlpfc"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"logFC": 0.5, "Symbol": pd.Series(SYMBOLS)})
    table.to_csv(tmp_path / "humanpilot/Analysis/Layer_Guesses/SupplementaryTableXX_spot_stats.csv")
    layers = ["AA-1\t151673\tL4", "BB-1\t151673\tWM", "AA-1\t151676\tL1", "DD-1\t151507\tL2"]
    (tmp_path / "humanpilot/10X/barcode_level_layer_map.tsv").write_text("\n".join(layers) + "\n")
    for name, counts in COUNTS.items():
        (tmp_path / f"banksy/data/dlpfc{name}.rda").write_text(r_file(f"dlpfc{name}", counts))
        folder = tmp_path / f"humanpilot/10X/{name}"
        places = [f"{spot},1,{row},{col},{100 + 173 * row},{7 + 100 * col}" for spot, (row, col) in SPOTS.items()]
        (folder / "tissue_positions_list.txt").write_text("\n".join(places) + "\n")
        (folder / "scalefactors_json.json").write_text(json.dumps({"tissue_lowres_scalef": 0.5}))
        Image.new("RGBA", (4, 3), (9, 8, 7, 255)).save(folder / "tissue_lowres_image.png")
    return asked


def test_tiny_sections(fetched: list[str]) -> None:
    adata = hb.datasets.dlpfc(["151676", "151673"])
    spots = ["151676_AA-1", "151676_DD-1", "151673_CC-1", "151673_AA-1", "151673_BB-1"]
    assert list(adata.obs_names) == spots
    expected = pd.DataFrame(0.0, spots, ["NPY", "TWIN", "TWIN-1", "MBP"])
    for spot, gene, count in [(0, "MBP", 5), (1, "TWIN", 7), (2, "NPY", 1), (4, "NPY", 2), (3, "TWIN-1", 3)]:
        expected.loc[spots[spot], gene] = count
    pd.testing.assert_frame_equal(
        adata.to_df()[expected.columns], expected, check_dtype=False, check_index_type=False, check_column_type=False
    )
    assert adata.var["gene_id"].to_dict() == {
        "NPY": "ENSG01", "TWIN": "ENSG02", "TWIN-1": "ENSG09", "MBP": "ENSG03",
    }  # fmt: skip
    assert adata.varm["measured"].T.to_dict("list") == {
        "NPY": [True, True], "TWIN": [True, False], "TWIN-1": [False, True], "MBP": [True, False],
    }  # fmt: skip
    assert list(adata.varm["measured"]) == list(adata.obs["library_id"].cat.categories) == ["151676", "151673"]
    assert adata.obs["layer"].astype(object).where(adata.obs["layer"].notna(), None).to_list() == [
        "L1", None, None, "L4", "WM",
    ]  # fmt: skip
    np.testing.assert_array_equal(adata.obs[["array_row", "array_col"]], [SPOTS[s[7:]] for s in spots])
    np.testing.assert_array_equal(
        adata.obsm["spatial"], [(7 + 100 * c, 100 + 173 * r) for r, c in map(SPOTS.get, (s[7:] for s in spots))]
    )
    entry = adata.uns["spatial"]["151673"]
    assert entry["images"]["lowres"].tolist() == [[[9, 8, 7]] * 4] * 3
    assert entry["scalefactors"] == {"tissue_lowres_scalef": 0.5}
    assert entry["metadata"]["mpp"] == pytest.approx(0.5, rel=1e-3)


def test_no_image_is_read_where_none_is_wanted(fetched: list[str]) -> None:
    adata = hb.datasets.dlpfc("151673", image=False)
    assert adata.uns["spatial"]["151673"]["images"] == {}
    assert not any(path.endswith(".png") for path in fetched)
    hb.datasets.dlpfc("151673")
    assert sum(path.endswith(".png") for path in fetched) == 1


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ([], "no section given"),
        ("15167", r"no dlpfc section '15167'; expected '151673', .*Did you mean '15167"),
        (151673, r"no dlpfc section 151673; .*'151673'.*\(str\)"),
        (["151674", 151673], r"no dlpfc section 151673"),
        (["151674", "151674"], r"'151674' is named 2 times"),
    ],
)
def test_refused(fetched: list[str], sections: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        hb.datasets.dlpfc(sections)
    assert fetched == []


needs_data = pytest.mark.skipif(
    not all((FOLDER / path).is_file() for path in registry("dlpfc")),
    reason="dlpfc data not found: set HIBIOST_DATA_DIR",
)


@pytest.fixture(scope="module")
def adata() -> AnnData:
    return hb.datasets.dlpfc()


@needs_data
def test_spots_and_layers_as_published(adata: AnnData) -> None:
    assert adata.shape == (14364, 11089)
    labelled = adata.obs["layer"].notna().groupby(adata.obs["library_id"], observed=True).agg(["size", "sum"])
    assert labelled.T.to_dict("list") == {
        "151673": [3639, 3611], "151674": [3673, 3635], "151675": [3592, 3566], "151676": [3460, 3431],
    }  # fmt: skip
    assert list(adata.obs["layer"].cat.categories) == LAYERS
    assert set(adata.obs["patient"]) == {"Br8100"}
    with open(FOLDER / "humanpilot/10X/barcode_level_layer_map.tsv") as lines:
        layers = {f"{section}_{spot}": layer for spot, section, layer in csv.reader(lines, delimiter="\t")}
    known = adata.obs["layer"].dropna()
    assert known.astype(str).to_dict() == {name: layers[name] for name in known.index}
    assert not set(adata.obs_names[adata.obs["layer"].isna()]) & set(layers)


@needs_data
def test_counts(adata: AnnData) -> None:
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert adata.X.has_canonical_format
    assert (adata.X.data > 0).all()
    np.testing.assert_array_equal(adata.X.data, np.rint(adata.X.data))
    depth = pd.Series(np.asarray(adata.X.sum(axis=1)).ravel()).groupby(adata.obs["library_id"].to_numpy()).median()
    assert depth.to_dict() == {"151673": 1193, "151674": 1496, "151675": 893, "151676": 973}
    assert adata.varm["measured"].sum().to_list() == [5000] * 4
    for name, measured in adata.varm["measured"].items():
        assert adata[adata.obs["library_id"] == name, ~measured].X.nnz == 0


@needs_data
def test_genes(adata: AnnData) -> None:
    assert adata.var_names.is_unique
    assert adata.var["gene_id"].is_unique
    ids = adata.var["gene_id"]
    assert {g: ids[g] for g in ("MBP", "GFAP", "SNAP25", "HSPA14", "HSPA14-1")} == {
        "MBP": "ENSG00000197971",
        "GFAP": "ENSG00000131095",
        "SNAP25": "ENSG00000132639",
        "HSPA14": "ENSG00000187522",
        "HSPA14-1": "ENSG00000284024",
    }
    assert ids.str.fullmatch(r"ENSG\d{11}").all()
    assert ids.is_monotonic_increasing
    alone = hb.datasets.dlpfc("151675", image=False)
    assert list(alone.var_names) == list(adata.var_names[adata.varm["measured"]["151675"]])
    part = adata[adata.obs["library_id"] == "151675", alone.var_names]
    assert (part.X != alone.X).nnz == 0
    assert list(part.obs_names) == list(alone.obs_names)


@needs_data
def test_white_matter_is_where_myelin_is(adata: AnnData) -> None:
    share = np.asarray(adata[:, "MBP"].X.sum(axis=1)).ravel() / np.asarray(adata.X.sum(axis=1)).ravel()
    means = pd.Series(share).groupby([adata.obs["library_id"].to_numpy(), adata.obs["layer"].to_numpy()]).mean()
    assert (means.unstack().idxmax(axis=1) == "WM").all()


@needs_data
def test_coordinates_and_scale(adata: AnnData) -> None:
    for spot, xy in {
        "151673_AAACAAGTATCTCCCA-1": (9791, 8468),
        "151674_AAACAATCTACTAGCA-1": (5713, 2873),
        "151676_AAACAGGGTCTATATT-1": (3525, 8261),
    }.items():
        np.testing.assert_array_equal(adata.obsm["spatial"][adata.obs_names.get_loc(spot)], xy)
    for name, entry in adata.uns["spatial"].items():
        rows = (adata.obs["library_id"] == name).to_numpy()
        obs, xy = adata.obs[rows], adata.obsm["spatial"][rows]
        one_row = obs["array_row"].to_numpy() == 30
        steps = np.ptp(obs["array_col"].to_numpy()[one_row]) / 2
        across = np.linalg.norm(np.ptp(xy[one_row], axis=0)) / steps
        assert entry["metadata"]["mpp"] == pytest.approx(100 / across, rel=0.004)
        assert entry["metadata"]["organ"] == "Brain"
        lowres = entry["images"]["lowres"]
        assert lowres.shape == (600, 600, 3)
        assert lowres.dtype == np.uint8
        x, y = (xy * entry["scalefactors"]["tissue_lowres_scalef"]).astype(int).T
        assert lowres[y, x].mean() < lowres[:20].mean() - 15


@needs_data
@pytest.mark.skipif(not (FOLDER / "derived").is_dir(), reason="no independently derived dlpfc files")
@pytest.mark.parametrize("name", ["151673", "151674", "151675", "151676"])
def test_against_an_independent_reading(adata: AnnData, name: str) -> None:
    other = anndata.read_h5ad(FOLDER / "derived" / f"{name}.h5ad")
    part = adata[adata.obs["library_id"] == name]
    part = part[:, pd.Index(part.var["gene_id"]).get_indexer(other.var_names)]
    same = part.var_names == other.var["gene_symbol"]
    assert set(part.var_names[~same]) <= {"HSPA14-1"}
    assert list(part.obs_names) == [f"{name}_{spot}" for spot in other.obs_names]
    assert (part.X != other.X).nnz == 0
    np.testing.assert_array_equal(part.obsm["spatial"], other.obsm["spatial"])
    np.testing.assert_array_equal(part.obs[["array_row", "array_col"]], other.obs[["array_row", "array_col"]])
    np.testing.assert_array_equal(part.obs["layer"].cat.codes, pd.Categorical(other.obs["layer"], LAYERS).codes)
    entry, theirs = adata.uns["spatial"][name], other.uns["spatial"][name]
    assert entry["scalefactors"] == theirs["scalefactors"]
    np.testing.assert_array_equal(entry["images"]["lowres"], theirs["images"]["lowres"])


@needs_data
def test_survives_a_file(tmp_path: Path) -> None:
    adata = hb.datasets.dlpfc("151676")
    adata.write_h5ad(tmp_path / "dlpfc.h5ad")
    back = anndata.read_h5ad(tmp_path / "dlpfc.h5ad")
    pd.testing.assert_frame_equal(back.obs, adata.obs)
    assert (back.X != adata.X).nnz == 0
    assert back.uns["spatial"]["151676"]["metadata"] == adata.uns["spatial"]["151676"]["metadata"]
    np.testing.assert_array_equal(
        back.uns["spatial"]["151676"]["images"]["lowres"], adata.uns["spatial"]["151676"]["images"]["lowres"]
    )
