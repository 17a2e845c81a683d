from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import hibiost as hb
from hibiost.datasets._hgnc import Hgnc
from hibiost.errors import DataError
from hibiost.pp import _map_genes
from hibiost.settings import settings

CACHE = settings.cache
ENSEMBL = CACHE / "orthologs" / "src" / "Gene" / "ensembl.mouse_human.tsv.gz"
SYMBOLS = CACHE / "mob_st" / "inst" / "extdata" / "mouse_genes.tsv.gz"
MOB = CACHE / "mob_st" / "inst" / "extdata" / "counts" / "MOB1.tsv"
EYE = CACHE / "visium_fixtures" / "cytassist_mouse_eye" / "filtered_feature_bc_matrix.h5"


def needs(*files: Path) -> pytest.MarkDecorator:
    absent = [file.name for file in files if not file.is_file()]
    return pytest.mark.skipif(bool(absent), reason=f"{absent} not found: set HIBIOST_DATA_DIR")


TABLE = Hgnc(
    frozenset({"TP53", "RIGI", "ERBB2", "SMR3A", "SMR3B", "CCL27", "SEPTIN4"}),
    {"ENSG00000107201": "RIGI", "ENSG00000141736": "ERBB2"},
    {"DDX58": "RIGI", "RIG-I": "RIGI", "SEPT4": "SEPTIN4"},
)
PAIRS = pd.DataFrame(
    [
        ("Trp53", "TP53", True, 80.0),
        ("Ddx58", "DDX58", True, 90.0),
        ("Erbb2", "ERBB2", True, 90.0),
        ("Smr2", "SMR3A", False, 30.0),
        ("Smr2", "SMR3B", False, 40.0),
        ("Ccl27a", "CCL27", False, 70.0),
        ("Ccl27b", "CCL27", False, 60.0),
    ],
    columns=["gene", "ortholog", "one_to_one", "similarity"],
)
IDS = {"ENSMUSG00000059552": "Trp53", "ENSMUSG00000062312": "Erbb2", "ENSMUSG00000000001": "Gnai3"}
MOUSE = ["ENSMUSG00000059552.13", "Ddx58", "Erbb2", "Gnai3", "Smr2", "Ccl27a", "Ccl27b"]
HUMAN = ["TP53", "DDX58", "RIG-I", "ENSG00000107201.12", "AC0001.1", "SEPT4", "ERBB2"]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_map_genes, "hgnc", lambda: TABLE)
    monkeypatch.setattr(_map_genes, "ortholog_pairs", lambda table: PAIRS)
    monkeypatch.setattr(_map_genes, "mouse_symbols", lambda: IDS)


def section(names: list[str], **species: str) -> ad.AnnData:
    """Four spots, of the slides given; the counts of gene i are powers of two, so that sums tell their parts."""
    counts = np.array([[2**i for i in range(len(names))]] * 4, dtype="float32") * np.arange(4)[:, None]
    adata = ad.AnnData(sparse.csr_matrix(counts), var=pd.DataFrame({"number": range(len(names))}, index=names))
    slides = list(species) or ["s"]
    adata.obs["library_id"] = pd.Categorical(np.resize(slides, 4))
    adata.uns["spatial"] = {name: {"metadata": {"species": each}} for name, each in species.items()}
    adata.obsm["spatial"] = np.arange(8.0).reshape(4, 2)
    return adata


def sums(adata: ad.AnnData) -> dict[str, int]:
    return dict(zip(adata.var_names, adata.X.toarray()[1].astype(int).tolist(), strict=True))


def report(adata: ad.AnnData) -> dict[str, int]:
    return {key: value for key, value in adata.uns["map_genes"].items() if isinstance(value, int)}


with_tables = pytest.mark.usefixtures("tables")


@with_tables
@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("drop", {"TP53": 1, "RIGI": 2, "ERBB2": 4}),
        ("sum", {"TP53": 1, "RIGI": 2, "ERBB2": 4, "CCL27": 32 + 64}),
        ("best", {"TP53": 1, "RIGI": 2, "ERBB2": 4, "SMR3B": 16, "CCL27": 32 + 64}),
    ],
)
def test_mouse(policy: str, expected: dict[str, int], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "hibiost"):
        mapped = hb.pp.map_genes(section(MOUSE), one_to_many=policy)
    assert sums(mapped) == expected
    n_dropped = 7 - len(expected) - ("CCL27" in expected)
    assert report(mapped) == {
        "n_before": 7,
        "n_after": len(expected),
        "kept": 0,
        "renamed": 7 - n_dropped,
        "merged": int("CCL27" in expected),
        "dropped": n_dropped,
        "no_ortholog": 1,
        "one_to_many": n_dropped - 1,
        "unknown": 0,
    }
    assert mapped.uns["map_genes"]["params"] == {
        "species": "mouse", "to": "human", "one_to_many": policy, "orthologs": "ensembl",
    }  # fmt: skip
    dropped = [name for name in MOUSE if name not in ";".join(mapped.var["original_name"]).split(";")]
    assert list(mapped.uns["map_genes"]["dropped_genes"]) == dropped
    assert (
        f"mouse to human: 7 genes, of which 0 keep their name (0 unknown), {7 - n_dropped} are renamed" in caplog.text
    )


@with_tables
def test_human() -> None:
    adata = section(HUMAN)
    mapped = hb.pp.map_genes(adata)
    assert sums(mapped) == {"TP53": 1, "RIGI": 2 + 4 + 8, "AC0001.1": 16, "SEPTIN4": 32, "ERBB2": 64}
    assert report(mapped) == {
        "n_before": 7, "n_after": 5, "kept": 3, "renamed": 4, "merged": 2,
        "dropped": 0, "no_ortholog": 0, "one_to_many": 0, "unknown": 1,
    }  # fmt: skip
    assert mapped.var["original_name"]["RIGI"] == "DDX58;RIG-I;ENSG00000107201.12"
    assert mapped.var["number"].tolist() == [0, 1, 4, 5, 6]
    assert list(adata.var_names) == HUMAN
    assert "map_genes" not in adata.uns
    assert list(adata.var) == ["number"]


@with_tables
def test_names_that_occur_twice_are_summed() -> None:
    adata = section(["TP53", "ERBB2", "X"])
    adata.var_names = ["TP53", "ERBB2", "TP53"]
    assert sums(hb.pp.map_genes(adata)) == {"TP53": 1 + 4, "ERBB2": 2}


@with_tables
def test_identifiers_beside_the_names() -> None:
    adata = section(["Trp53", "Erbb2-1", "Gnai3"])
    adata.var["gene_ids"] = ["ENSMUSG00000000001", "ENSMUSG00000062312.2", "ENSMUSG00000000001"]
    assert sums(hb.pp.map_genes(adata)) == {"TP53": 1, "ERBB2": 2}
    adata = section(["TP53", "ERBB2-1"])
    adata.var["gene_ids"] = ["ENSG00000107201", "ENSG00000141736"]
    assert sums(hb.pp.map_genes(adata)) == {"TP53": 1, "ERBB2": 2}


@with_tables
def test_what_follows_and_what_stays() -> None:
    adata = section(MOUSE, a="Mus musculus", b="mouse")
    adata.layers["raw"] = sparse.csc_matrix(adata.X * 2)
    adata.layers["dense"] = adata.X.toarray().astype("uint8")
    adata.varm["measured"] = pd.DataFrame(
        {"a": [True] * 5 + [False, False], "b": [False] * 5 + [False, True]}, index=adata.var_names
    )
    adata.raw = adata.copy()
    mapped = hb.pp.map_genes(adata, one_to_many="sum")
    assert mapped.layers["raw"].toarray()[1].tolist() == [2, 4, 8, 192]
    assert mapped.layers["dense"].toarray()[2].tolist() == [2, 4, 8, 192]
    assert mapped.varm["measured"].to_dict("list") == {"a": [True] * 3 + [False], "b": [False] * 3 + [True]}
    assert mapped.varm["measured"].index.equals(mapped.var_names)
    assert mapped.uns["spatial"] == adata.uns["spatial"]
    pd.testing.assert_frame_equal(mapped.obs, adata.obs)
    np.testing.assert_array_equal(mapped.obsm["spatial"], adata.obsm["spatial"])
    assert mapped.raw.shape == (4, 7)
    hb.pp.tfidf_sentences(mapped, n_genes=2)


@with_tables
def test_it_survives_files(tmp_path: Path) -> None:
    for names in (MOUSE, HUMAN):  # with genes dropped, and with none
        mapped = hb.pp.map_genes(section(names))
        mapped.write_h5ad(tmp_path / "a.h5ad")
        mapped.write_zarr(tmp_path / "a.zarr")
        for back in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
            assert report(mapped).items() <= back.uns["map_genes"].items()
            assert list(back.uns["map_genes"]["dropped_genes"]) == list(mapped.uns["map_genes"]["dropped_genes"])
            assert sums(back) == sums(mapped)
            assert sums(hb.pp.map_genes(back)) == sums(mapped)
        backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
        assert sums(hb.pp.map_genes(backed)) == sums(mapped)
        backed.file.close()


@with_tables
def test_twice_is_once() -> None:
    once = hb.pp.map_genes(section(MOUSE, a="Mus musculus"), one_to_many="best")
    twice = hb.pp.map_genes(once)
    assert sums(twice) == sums(once)
    assert twice.uns["map_genes"]["params"]["species"] == "human"
    assert twice.var["original_name"].tolist() == once.var["original_name"].tolist()
    assert twice.uns["spatial"]["a"]["metadata"]["species"] == "Mus musculus"


@with_tables
def test_sentences_of_the_former_names_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    adata = section([*MOUSE, "Actb"])
    for key in ("gene_sentence", "mine"):
        hb.pp.tfidf_sentences(adata, n_genes=2, key_added=key)
    hb.pp.pathway_overlap(adata, {"set": ["Actb", "Erbb2", "Trp53"]}, min_genes=1)
    adata.obsm["X_pca"], adata.uns["X_pca"] = np.ones((4, 2)), {"params": {}}
    mapped = hb.pp.map_genes(adata)
    assert set(mapped.obsm) == {"spatial", "X_pca"}
    assert set(mapped.uns) == {"spatial", "X_pca", "map_genes"}
    assert not mapped.layers
    assert set(mapped.var) == {"number", "original_name"}
    assert {"gene_sentence", "mine", "pathway_overlap"} <= set(adata.obsm)
    for key in ("gene_sentence", "mine", "pathway_overlap"):
        assert f"obsm['{key}'] is left out" in caplog.text


# -- species ---------------------------------------------------------------------------------------------------------


@with_tables
def test_where_the_species_comes_from() -> None:
    for adata, given in [
        (section(MOUSE, a="Mus musculus"), None),
        (section(MOUSE), None),
        (section(MOUSE, a="Homo sapiens"), "Mus musculus"),
    ]:
        assert hb.pp.map_genes(adata, species=given).uns["map_genes"]["params"]["species"] == "mouse"
    assert hb.pp.map_genes(section(HUMAN, a="mouse", b="human"), species="human").n_vars == 5
    odd = section(["Trp53", *map(str, range(5))], a="mouse")
    assert sums(hb.pp.map_genes(odd)) == {"TP53": 1}


@with_tables
@pytest.mark.parametrize(
    ("adata", "options", "message"),
    [
        (section(MOUSE + HUMAN), {}, "mixed species: of 14 genes, 7 are named as human and 7 as mouse"),
        (section(MOUSE + HUMAN), {"species": "mouse"}, "mixed species: of 14 genes"),
        (section(MOUSE, a="mouse", b="Homo sapiens"), {}, r"mixed species, in spots: \{'mouse': 2, 'human': 2\}"),
        (section(HUMAN), {"species": "mouse"}, "said to be of mouse .* 7 are named as human"),
        (section(HUMAN, a="Mus musculus"), {}, "said to be of mouse .*metadata.* 7 are named as human"),
        (section(MOUSE), {"species": "mose"}, "species 'mose' is unknown; .*Did you mean 'mouse'"),
        (section(MOUSE, a="rattus norvegicus"), {}, "species 'rattus norvegicus' is unknown"),
        (section(["1", "2"]), {}, "cannot tell the species"),
        (section(["Abc1", "Abc2"]), {}, "none of the 2 genes is known to the ensembl table of mouse orthologs"),
        (section(["1", "2"]), {"species": "human"}, "none of the 2 genes is known to HGNC: found names such as '1'"),
        (section(["Smr2"]), {}, "no gene is left: none has a one-to-one ortholog"),
        (section(MOUSE), {"to": "mouse"}, "to is 'mouse'; genes are given human names only"),
        (section(MOUSE), {"one_to_many": "all"}, "one_to_many is 'all'; expected one of"),
        (section(MOUSE)[:0], {}, "holds no spots"),
        (section(MOUSE)[:, :0], {}, "holds no genes"),
    ],
)
def test_refused(adata: ad.AnnData, options: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        hb.pp.map_genes(adata, **options)


@with_tables
def test_only_counts_are_summed() -> None:
    adata = section(HUMAN)
    adata.layers["log"] = adata.X.log1p()
    with pytest.raises(DataError, match=r"genes that become one are added up, but layers\['log'\] holds .*no counts"):
        hb.pp.map_genes(adata)
    adata.X = adata.layers.pop("log")
    with pytest.raises(DataError, match="added up, but X holds .*no counts"):
        hb.pp.map_genes(adata)
    apart = hb.pp.map_genes(adata[:, ["TP53", "DDX58"]])
    np.testing.assert_array_equal(apart.X.toarray(), adata.X.toarray()[:, :2])


# -- real data -------------------------------------------------------------------------------------------------------


def one_to_one() -> dict[str, str]:
    """Ensembl's one-to-one pairs that are one-to-one by name, read with pandas."""
    table = pd.read_csv(ENSEMBL, sep="\t", keep_default_na=False)
    pairs = table[["Gene name", "Human gene name", "Human homology type"]].set_axis(["mouse", "human", "type"], axis=1)
    pairs = pairs[(pairs["mouse"] != "") & (pairs["human"] != "")].drop_duplicates()
    single = pairs.groupby("mouse")["human"].transform("nunique").eq(1) & pairs.groupby("human")["mouse"].transform(
        "nunique"
    ).eq(1)
    pairs = pairs[single & pairs["type"].eq("ortholog_one2one")]
    return dict(zip(pairs["mouse"], pairs["human"], strict=True))


@needs(ENSEMBL, SYMBOLS, MOB)
@pytest.mark.data
def test_mouse_olfactory_bulb(her2st_dir: Path) -> None:
    table = pd.read_csv(MOB, sep="\t", index_col=0)
    adata = ad.AnnData(sparse.csr_matrix(table.to_numpy("float32")), var=pd.DataFrame(index=table.columns))
    symbols = pd.read_csv(SYMBOLS, sep="\t").assign(gene_id=lambda t: t["gene_id"].str.split(".").str[0])
    names = pd.Series(table.columns).str.split(".").str[0].map(symbols.set_index("gene_id")["gene_name"])
    assert names.notna().sum() == 1000
    human = names.map(one_to_one())
    assert human.notna().sum() == human.nunique() == 880
    of_her2st: set[str] = set()
    for file in (her2st_dir / "data" / "ST-cnts").glob("*.tsv.gz"):
        with gzip.open(file, "rt") as lines:
            of_her2st |= set(next(lines).rstrip("\n").split("\t")[1:])

    mapped = hb.pp.map_genes(adata)
    assert mapped.shape == (1934, 880)
    assert list(mapped.var["original_name"]) == list(table.columns[human.notna()])
    assert len(set(mapped.var_names) & of_her2st) == 843
    assert mapped.uns["map_genes"]["dropped"] == 120
    totals = table.loc[:, human.notna().to_numpy()].sum(axis=1)
    np.testing.assert_array_equal(np.asarray(mapped.X.sum(axis=1)).ravel(), totals)
    named = hb.pp.map_genes(ad.AnnData(np.ones((1, len(of_her2st))), var=pd.DataFrame(index=sorted(of_her2st))))
    assert named.uns["map_genes"]["renamed"] == 757
    assert len(set(mapped.var_names) & set(named.var_names)) > 843


@needs(ENSEMBL, SYMBOLS, EYE)
@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_mouse_eye() -> None:
    with h5py.File(EYE) as file:
        matrix = file["matrix"]
        names = matrix["features/name"].asstr()[:]
        parts = (matrix["data"][:].astype("float32"), matrix["indices"][:], matrix["indptr"][:])
        counts = sparse.csc_matrix(parts, shape=matrix["shape"][:]).T
    adata = ad.AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=names))
    human = pd.Series(names).map(one_to_one())
    assert human.notna().sum() == 15_104
    mapped = hb.pp.map_genes(adata)
    assert mapped.uns["map_genes"]["kept"] + mapped.uns["map_genes"]["renamed"] == 15_104
    assert mapped.shape == (2898, human.nunique())
    assert mapped.X.sum(dtype="float64") == counts.tocsc()[:, human.notna().to_numpy()].sum(dtype="float64")
    assert Counter(mapped.uns["map_genes"]["dropped_genes"]) == Counter(names[human.isna()])
