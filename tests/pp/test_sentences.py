from __future__ import annotations

import importlib
import logging
import tracemalloc
from pathlib import Path
from typing import Any

import anndata as ad
import dask.array as da
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from anndata.experimental import read_elem_lazy
from scipy import sparse

import hibiost as hb
from hibiost.errors import DataError, MissingSlotError
from hibiost.genes import Vocabulary

# anndata 0.13 asks pandas 3 for options that pandas has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:The '.*' option is deprecated")

GENES = [f"GENE{i}" for i in range(40)]


def make(counts: Any, genes: list[str] | None = None, **obs: list[str]) -> AnnData:
    adata = AnnData(sparse.csr_matrix(np.asarray(counts, dtype=np.float32)))
    adata.var_names = GENES[: adata.n_vars] if genes is None else genes
    adata.obs_names = [f"spot{i}" for i in range(adata.n_obs)]
    for column, values in obs.items():
        adata.obs[column] = pd.Categorical(values)
    return adata


def sample(n_obs: int = 30, n_vars: int = 40) -> AnnData:
    """Two slides; an empty spot, an empty gene and a gene in every other spot."""
    rng = np.random.default_rng(3)
    counts = rng.poisson(rng.gamma(0.4, 2, n_vars), (n_obs, n_vars))
    counts[:, 0] = rng.integers(1, 9, n_obs)
    counts[:, 1] = 0
    counts[4] = 0
    return make(counts, library_id=["s1"] * (n_obs // 2) + ["s2"] * (n_obs - n_obs // 2))


def book(counts: np.ndarray, df: np.ndarray, m: Any) -> np.ndarray:
    """Eqs 1-3 in double precision."""
    tf = np.log(1 + counts) / (np.log(1 + counts).sum(axis=1, keepdims=True) + 1e-8)
    return tf * np.log((1 + m) / (1 + df))


def ranked(weights: np.ndarray, n_genes: int) -> list[list[int]]:
    rows = []
    for row in weights:
        best = sorted((g for g in range(len(row)) if row[g] > 0), key=lambda g: (-row[g], g))
        rows.append((best + [-1] * n_genes)[:n_genes])
    return rows


def snapshot(adata: AnnData) -> dict[str, Any]:
    return {
        "X": adata.X.toarray().tobytes(),
        "slots": [list(getattr(adata, part)) for part in ("obs", "var", "obsm", "varm", "layers", "uns")],
    }


def check_against_the_book(adata: AnnData, n_genes: int) -> None:
    counts = adata.X.toarray().astype(np.float64)
    df = (counts > 0).sum(axis=0)
    weights = adata.layers["tfidf"]
    np.testing.assert_allclose(weights.toarray(), book(counts, df, len(counts)), rtol=1e-6, atol=1e-12)
    assert adata.obsm["gene_sentence"].tolist() == ranked(weights.toarray(), n_genes)
    np.testing.assert_array_equal(adata.var["n_spots"], df)
    np.testing.assert_allclose(adata.var["idf"], np.log((1 + len(counts)) / (1 + df)), rtol=1e-14)


def test_slots() -> None:
    adata = sample()
    before = adata.X.copy()
    assert hb.pp.tfidf_sentences(adata, n_genes=12) is None
    check_against_the_book(adata, 12)
    assert (before != adata.X).nnz == 0
    assert isinstance(adata.layers["tfidf"], sparse.csr_matrix)
    assert adata.layers["tfidf"].dtype == np.float32
    assert adata.obsm["gene_sentence"].dtype == np.int32
    assert adata.obsm["gene_sentence"].shape == (30, 12)
    assert (adata.obsm["gene_sentence"][4] == -1).all()
    assert adata.var["idf"].dtype == np.float64
    assert adata.var["n_spots"].dtype == np.int64
    assert list(adata.uns["gene_sentence"]["genes"]) == GENES
    assert adata.uns["gene_sentence"]["params"] == {
        "n_genes": 12,
        "min_spots": 1,
        "selection": "tfidf",
        "vocabulary": "fitted",
        "library_key": "library_id",
    }


def test_defaults_pad_to_250() -> None:
    adata = sample()
    hb.pp.tfidf_sentences(adata)
    check_against_the_book(adata, 250)


@pytest.mark.data
@pytest.mark.parametrize("section", ["C2", "C3"])
def test_real_section(her2st_dir: Path, section: str) -> None:
    """Every spot of a real section, among them spots with one or two counts."""
    table = pd.read_csv(her2st_dir / f"data/ST-cnts/{section}.tsv.gz", sep="\t", index_col=0)
    adata = make(table.to_numpy(), list(table.columns))
    assert adata.X.sum(axis=1).min() <= 2
    hb.pp.tfidf_sentences(adata)
    check_against_the_book(adata, 250)
    lengths = (adata.obsm["gene_sentence"] >= 0).sum(axis=1)
    assert lengths.min() <= 2
    assert np.median(lengths) == 250


@pytest.mark.data
def test_real_sections_that_measured_other_genes(her2st_dir: Path) -> None:
    tables = [
        pd.read_csv(her2st_dir / f"data/ST-cnts/{section}.tsv.gz", sep="\t", index_col=0) for section in ("C2", "C3")
    ]
    adata = hb.datasets.her2st(["C2", "C3"], image=False)
    hb.pp.tfidf_sentences(adata)
    genes = adata.var_names
    df = sum((table > 0).sum().reindex(genes, fill_value=0).to_numpy() for table in tables)
    spots = [int(adata.obs["library_id"].eq(section).sum()) for section in ("C2", "C3")]
    m = sum(genes.isin(table.columns) * n for table, n in zip(tables, spots, strict=True))
    assert len(set(m)) == 3
    assert spots[0] == len(tables[0])
    lost = tables[1].drop(index=[name.split("_")[1] for name in adata.obs_names if name.startswith("C3")])
    df = df - (lost > 0).sum().reindex(genes, fill_value=0).to_numpy()
    np.testing.assert_array_equal(adata.var["n_spots"], df)
    np.testing.assert_allclose(adata.var["idf"], np.log((1 + m) / (1 + df)), rtol=1e-14)


@pytest.mark.parametrize(
    "matrix",
    [
        np.array([[3, 1, 0]]),
        np.array([[3, 1, 0], [0, 0, 0], [3, 1, 2]], dtype=np.int64),
        sparse.csc_matrix(np.array([[3.0, 1, 0], [0, 1, 0], [0, 0, 0]])),
        sparse.csr_array(np.array([[3, 1, 0], [0, 1, 0], [1, 1, 1]], dtype=np.uint16)),
    ],
    ids=["one spot", "dense int64", "csc float64", "csr_array uint16"],
)
def test_layouts(matrix: Any) -> None:
    adata = make(sparse.csr_matrix(matrix).toarray())
    adata.layers["raw"] = matrix
    adata.X = None
    hb.pp.tfidf_sentences(adata, n_genes=2, layer="raw")
    assert type(adata.layers["raw"]) is type(matrix)
    adata.X = sparse.csr_matrix(adata.layers["raw"])
    check_against_the_book(adata, 2)
    assert adata.uns["gene_sentence"]["params"]["layer"] == "raw"


def test_min_spots_keeps_weights_but_not_words() -> None:
    adata = sample()
    hb.pp.tfidf_sentences(adata, n_genes=12)
    weights = adata.layers["tfidf"].toarray()
    hb.pp.tfidf_sentences(adata, n_genes=12, min_spots=10)
    np.testing.assert_array_equal(adata.layers["tfidf"].toarray(), weights)
    rare = ((adata.X.toarray() > 0).sum(axis=0) < 10).nonzero()[0]
    assert rare.size > 3
    weights[:, rare] = 0
    assert adata.obsm["gene_sentence"].tolist() == ranked(weights, 12)


def test_top_expressed_genes() -> None:
    adata = sample()
    hb.pp.tfidf_sentences(adata, n_genes=6, selection="top")
    assert adata.obsm["gene_sentence"].tolist() == ranked(adata.X.toarray(), 6)
    assert "tfidf" in adata.layers


def test_highly_variable_genes_by_slide() -> None:
    adata = sample()
    hb.pp.tfidf_sentences(adata, n_genes=6, selection="hvg")
    counts = adata.X.toarray().astype(np.float64)
    picked = []
    for slide in ("s1", "s2"):
        rows = (adata.obs["library_id"] == slide).to_numpy()
        variance = np.log1p(counts[rows]).var(axis=0)
        best = np.argsort(-variance, kind="stable")[:6]
        picked.append(set(best))
        rest = np.setdiff1d(np.arange(adata.n_vars), best)
        counts[np.ix_(rows, rest)] = 0
    assert picked[0] != picked[1]
    assert adata.obsm["gene_sentence"].tolist() == ranked(counts, 6)


def test_idf_counts_the_slides_that_measured_the_gene() -> None:
    adata = make(
        [[1, 0, 2], [0, 3, 1], [0, 1, 0], [0, 2, 0], [0, 0, 0]],
        library_id=["a", "a", "b", "b", "b"],
    )
    adata.varm["measured"] = pd.DataFrame(
        {"a": [True, True, True], "b": [False, True, False], "c": False}, index=adata.var_names
    )
    hb.pp.tfidf_sentences(adata, n_genes=3)
    df, m = np.array([1, 3, 2]), np.array([2, 5, 2])
    assert adata.var["n_spots"].tolist() == df.tolist()
    np.testing.assert_allclose(adata.layers["tfidf"].toarray(), book(adata.X.toarray(), df, m), rtol=1e-6)
    assert hb.get.sentences(adata).tolist() == ["GENE0", "GENE1", "GENE1", "GENE1", ""]

    part = adata[2:].copy()
    hb.pp.tfidf_sentences(part, n_genes=3)
    np.testing.assert_allclose(part.var["idf"], [0, np.log(4 / 3), 0], rtol=1e-14)


def test_another_library_key() -> None:
    adata = make([[1, 0], [0, 1]], slide=["a", "b"])
    adata.varm["measured"] = pd.DataFrame({"a": [True, False], "b": [True, True]}, index=adata.var_names)
    hb.pp.tfidf_sentences(adata, n_genes=1, library_key="slide")
    np.testing.assert_allclose(adata.var["idf"], np.log([3 / 2, 2 / 2]), rtol=1e-14)


def test_given_vocabulary() -> None:
    adata = make([[5, 1, 0, 2], [5, 1, 1, 0]], ["ACTB", "NEW", "ERBB2", "MGP"])
    vocabulary = Vocabulary(("MGP", "ERBB2", "ACTB", "IGLL5"), [10, 2, 99, 3], [99, 99, 99, 50])
    hb.pp.tfidf_sentences(adata, n_genes=3, vocabulary=vocabulary)
    idf = np.log([100 / 100, 1, 100 / 3, 100 / 11])
    np.testing.assert_allclose(adata.var["idf"], idf, rtol=1e-14)
    assert adata.var["n_spots"].tolist() == [99, 0, 2, 10]
    tf = np.log1p(adata.X.toarray()) / np.log1p(adata.X.toarray()).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(adata.layers["tfidf"].toarray(), tf * idf, rtol=1e-6)
    assert hb.get.sentences(adata).tolist() == ["MGP", "ERBB2"]
    assert adata.uns["gene_sentence"]["params"]["vocabulary"] == "given"
    for selection in ("top", "hvg"):
        hb.pp.tfidf_sentences(adata, n_genes=3, vocabulary=vocabulary, selection=selection)
        assert not hb.get.sentences(adata).str.contains("NEW").any()


def test_key_added_leaves_the_default_slots_alone() -> None:
    adata = sample()
    hb.pp.tfidf_sentences(adata, n_genes=5)
    one = adata.copy()
    vocabulary = Vocabulary(GENES, np.arange(1, 41), np.full(40, 90))
    hb.pp.tfidf_sentences(adata, n_genes=7, vocabulary=vocabulary, key_added="other")
    assert (adata.layers["tfidf"] != one.layers["tfidf"]).nnz == 0
    np.testing.assert_array_equal(adata.obsm["gene_sentence"], one.obsm["gene_sentence"])
    np.testing.assert_array_equal(adata.var["idf"], one.var["idf"])
    np.testing.assert_allclose(adata.var["other_idf"], vocabulary.idf)
    assert adata.var["other_n_spots"].tolist() == list(range(1, 41))
    assert adata.obsm["other"].tolist() == ranked(adata.layers["other_tfidf"].toarray(), 7)
    assert adata.uns["other"]["params"]["n_genes"] == 7


def test_copy() -> None:
    adata = sample()
    before = snapshot(adata)
    result = hb.pp.tfidf_sentences(adata, n_genes=5, copy=True)
    assert snapshot(adata) == before
    check_against_the_book(result, 5)


def test_subsets() -> None:
    adata = sample()
    hb.pp.tfidf_sentences(adata, n_genes=8)
    words = hb.get.sentences(adata)
    pd.testing.assert_series_equal(hb.get.sentences(adata[:, GENES[10:15]]), words)
    pd.testing.assert_series_equal(hb.get.sentences(adata[5:9, GENES[::-1]].copy()), words[5:9])


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_round_trip(tmp_path: Path, kind: str) -> None:
    adata = sample()
    hb.pp.tfidf_sentences(adata, n_genes=8, layer=None)
    path = tmp_path / f"a.{kind}"
    getattr(adata, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path)
    assert isinstance(back.layers["tfidf"], sparse.csr_matrix | sparse.csr_array)
    assert back.layers["tfidf"].dtype == np.float32
    assert (back.layers["tfidf"] != adata.layers["tfidf"]).nnz == 0
    assert back.obsm["gene_sentence"].dtype == np.int32
    np.testing.assert_array_equal(back.obsm["gene_sentence"], adata.obsm["gene_sentence"])
    pd.testing.assert_frame_equal(back.var, adata.var, check_index_type=False, check_column_type=False)
    assert back.uns["gene_sentence"]["params"] == adata.uns["gene_sentence"]["params"]
    assert list(back.uns["gene_sentence"]["genes"]) == GENES
    assert hb.get.sentences(back).tolist() == hb.get.sentences(adata).tolist()


def test_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hibiost"):
        hb.pp.tfidf_sentences(make([[1, 2], [0, 2], [0, 0]]), n_genes=2)
    info, warning = caplog.records
    assert info.getMessage() == "obsm['gene_sentence']: sentences of 2 genes for 3 spots, 2 of them shorter."
    assert warning.levelno == logging.WARNING
    assert "1 of 3 spots have an empty sentence; 1 have no counts" in warning.getMessage()


def log_normalised() -> np.ndarray:
    return np.log1p(sample().X.toarray())


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([[np.nan, 1.0]], "X holds 1 NaN or infinite"),
        ([[np.inf, 1.0]], "X holds 1 NaN or infinite"),
        ([[-1.0, 1.0]], "X holds negative values, such as -1"),
        (log_normalised(), "no counts, such as.*layer="),
        (np.zeros((0, 2)), "no spots"),
        (np.zeros((2, 0)), "no genes"),
        (np.zeros((2, 2)), "no gene is seen in 1 spots"),
    ],
    ids=["nan", "inf", "negative", "log-normalised", "no spots", "no genes", "all zero"],
)
def test_refused_counts(counts: Any, message: str) -> None:
    adata = make(counts)
    before = snapshot(adata)
    with pytest.raises(DataError, match=message):
        hb.pp.tfidf_sentences(adata)
    assert snapshot(adata) == before


def not_a_table(adata: AnnData) -> None:
    adata.varm["measured"] = np.ones((40, 2))


def half_a_table(adata: AnnData) -> None:
    adata.varm["measured"] = pd.DataFrame({"s1": True}, index=adata.var_names)


def duplicates(adata: AnnData) -> None:
    adata.var_names = ["GENE0", *GENES[:-1]]


@pytest.mark.parametrize(
    ("mend", "options", "error", "message"),
    [
        (None, {"n_genes": 0}, DataError, "n_genes is 0"),
        (None, {"min_spots": 0}, DataError, "min_spots is 0"),
        (None, {"min_spots": 31}, DataError, r"no gene is seen in 31 spots \(the most is 29\)"),
        (None, {"selection": "hgv"}, DataError, "'hgv'; expected one of.*Did you mean 'hvg'"),
        (None, {"layer": "raw"}, MissingSlotError, "no layer 'raw'"),
        (None, {"library_key": "library"}, MissingSlotError, "no obs.'library'.*Did you mean 'library_id'"),
        (None, {"vocabulary": ["GENE1"]}, DataError, "vocabulary is a list.*hibiost.genes.Vocabulary"),
        (None, {"vocabulary": Vocabulary(("ENSG00000141736",), [1], [2])}, DataError, "the vocabulary has Ensembl"),
        (not_a_table, {}, DataError, r"varm\['measured'\] is a ndarray; expected a DataFrame"),
        (half_a_table, {}, DataError, r"varm\['measured'\] has no column 's2'"),
        (duplicates, {}, DataError, r"1 gene names occur more than once .*GENE0.*var_names_make_unique"),
    ],
)
def test_refused_arguments(mend: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    adata = sample()
    if mend:
        mend(adata)
    before = snapshot(adata)
    with pytest.raises(error, match=message):
        hb.pp.tfidf_sentences(adata, **options)
    assert snapshot(adata) == before


def test_no_matrix() -> None:
    adata = sample()
    adata.X = None
    with pytest.raises(DataError, match="X is empty"):
        hb.pp.tfidf_sentences(adata)
    assert not adata.layers
    assert not adata.uns


def test_no_anndata() -> None:
    with pytest.raises(DataError, match="expected an AnnData, found ndarray"):
        hb.pp.tfidf_sentences(np.ones((2, 2)))


@pytest.mark.parametrize("selection", ["tfidf", "top", "hvg"])
def test_without_weights_the_sentences_are_the_same(selection):
    adata = hb.datasets.tissue(100)
    with_weights = hb.pp.tfidf_sentences(adata, n_genes=20, selection=selection, copy=True)
    without = hb.pp.tfidf_sentences(with_weights, n_genes=20, selection=selection, weights=False, copy=True)
    np.testing.assert_array_equal(without.obsm["gene_sentence"], with_weights.obsm["gene_sentence"])
    assert "tfidf" in with_weights.layers
    assert "tfidf" not in without.layers


STORED = {"sparse": sparse.csr_matrix, "dense": lambda x: x.toarray(), "csc": sparse.csc_matrix}


def elsewhere(adata: AnnData, path: Path, kind: str, form: str) -> AnnData:
    """The same AnnData with its counts in a file or as dask array, both in small blocks."""
    adata = adata.copy()
    adata.X = STORED[form](adata.X)
    if kind == "backed":
        adata.write_h5ad(path)
        return ad.read_h5ad(path, backed="r")
    chunks = (7, -1) if form == "sparse" else (7, 11)
    adata.X = da.from_array(adata.X, chunks=chunks, asarray=False)
    return adata


@pytest.mark.parametrize("measured", [False, True])
@pytest.mark.parametrize("selection", ["tfidf", "top", "hvg"])
@pytest.mark.parametrize(
    ("kind", "form"), [("backed", "sparse"), ("backed", "dense"), ("dask", "sparse"), ("dask", "dense")]
)
def test_counts_that_are_not_in_memory(tmp_path, monkeypatch, kind, form, selection, measured):
    monkeypatch.setattr(importlib.import_module("hibiost.inputs._counts"), "BLOCK", 100)
    adata = sample()
    if measured:
        adata.varm["measured"] = pd.DataFrame({"s1": np.arange(40) > 5, "s2": True}, index=adata.var_names)
    there = elsewhere(adata, tmp_path / "a.h5ad", kind, form)
    options = {"n_genes": 8, "selection": selection, "weights": False}
    hb.pp.tfidf_sentences(adata, **options)
    hb.pp.tfidf_sentences(there, **options)
    np.testing.assert_array_equal(there.obsm["gene_sentence"], adata.obsm["gene_sentence"])
    pd.testing.assert_frame_equal(there.var, adata.var, check_index_type=False, check_column_type=False)
    assert list(there.uns["gene_sentence"]["genes"]) == GENES
    pathways = hb.genes.GeneSets({"one": GENES[2:9], "two": GENES[20:30]})
    for each in (adata, there):
        hb.pp.pathway_overlap(each, pathways, min_genes=2)
    assert (there.obsm["pathway_overlap"] != adata.obsm["pathway_overlap"]).nnz == 0
    assert there.obsm["pathway_overlap"].nnz > 0


def test_backed_sentences_round_trip(tmp_path):
    adata = sample()
    there = elsewhere(adata, tmp_path / "a.h5ad", "backed", "sparse")
    hb.pp.tfidf_sentences(there, n_genes=8, weights=False)
    there.write_h5ad(tmp_path / "b.h5ad")
    back = ad.read_h5ad(tmp_path / "b.h5ad")
    hb.pp.tfidf_sentences(adata, n_genes=8, weights=False)
    np.testing.assert_array_equal(back.obsm["gene_sentence"], adata.obsm["gene_sentence"])
    assert (back.X != adata.X).nnz == 0


@pytest.mark.parametrize("kind", ["backed", "dask"])
def test_refused_where_not_in_memory(tmp_path, kind):
    good = elsewhere(sample(), tmp_path / "good.h5ad", kind, "sparse")
    with pytest.raises(DataError, match="X is not in memory.*weights=False.*to_memory"):
        hb.pp.tfidf_sentences(good)
    broken = sample()
    broken.X.data[200] = 0.5
    bad = elsewhere(broken, tmp_path / "bad.h5ad", kind, "sparse")
    with pytest.raises(DataError, match="X holds 1 values that are no counts, such as 0.5"):
        hb.pp.tfidf_sentences(bad, weights=False)
    assert "gene_sentence" not in bad.obsm


def test_backed_columns_are_refused(tmp_path):
    adata = elsewhere(sample(), tmp_path / "a.h5ad", "backed", "csc")
    with pytest.raises(DataError, match="X is a CSC matrix in a file.*as CSR.*to_memory"):
        hb.pp.tfidf_sentences(adata, weights=False)


@pytest.mark.parametrize("kind", ["backed", "dask"])
def test_memory_is_that_of_a_block(tmp_path, monkeypatch, kind):
    """Counts of 64 MB are read in blocks of 1 MB; sentences and gene names take less than 1 MB."""
    monkeypatch.setattr(importlib.import_module("hibiost.inputs._counts"), "BLOCK", 125_000)
    rng = np.random.default_rng(0)
    n_obs, n_vars = 2_000, 4_000
    values = rng.integers(1, 9, n_obs * n_vars).astype(np.float32)
    indices, indptr = np.tile(np.arange(n_vars, dtype=np.int32), n_obs), np.arange(0, values.size + 1, n_vars)
    adata = AnnData(sparse.csr_matrix((values, indices, indptr), (n_obs, n_vars)))
    adata.X.data[::3] = 0
    adata.X.eliminate_zeros()
    path = tmp_path / "a.h5ad"
    adata.write_h5ad(path)
    if kind == "backed":
        there = ad.read_h5ad(path, backed="r")
    else:
        there = AnnData(obs=adata.obs, var=adata.var)
        file = h5py.File(path)
        there.X = read_elem_lazy(file["X"], chunks=(40, n_vars))
    del adata, values, indices
    hb.pp.tfidf_sentences(sample(), n_genes=20, weights=False)  # compiled by now
    tracemalloc.start()
    hb.pp.tfidf_sentences(there, n_genes=20, weights=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12e6
    assert (there.obsm["gene_sentence"] >= 0).all()
