from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

import hibiost as hb
from hibiost.errors import DataError, MissingSlotError
from hibiost.genes import GeneSets

GENES = [f"GENE{i}" for i in range(30)]
SETS = {
    "Signalling by A/B": GENES[:12],
    "small": [GENES[14], GENES[15], "ELSEWHERE1", "ELSEWHERE2"],
    "pair": GENES[20:22],
    "large": GENES[5:27],
    "strange": ["ELSEWHERE1", "ELSEWHERE2", "ELSEWHERE3"],
}


def sample(n_obs: int = 20) -> AnnData:
    """Sentences of up to 6 genes; the spot without counts has none."""
    rng = np.random.default_rng(1)
    counts = rng.poisson(rng.gamma(0.5, 2, len(GENES)), (n_obs, len(GENES)))
    counts[4] = 0
    adata = AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    adata.var_names, adata.obs_names = GENES, [f"spot{i}" for i in range(n_obs)]
    hb.pp.tfidf_sentences(adata, n_genes=6)
    return adata


def sets_of(sets: Mapping[str, list[str]] = SETS) -> GeneSets:
    return GeneSets(sets, source={"name": "made up", "version": "1", "licence": "CC0"})


def by_the_book(sentences: list[str], sets: Mapping[str, set[str]], threshold: float) -> np.ndarray:
    """Eq 5, read word for word, of sentences as strings."""
    omega = np.zeros((len(sentences), len(sets)))
    for s, words in enumerate(set(line.split()) for line in sentences):
        for p, pathway in enumerate(sets.values()):
            if words & pathway:
                omega[s, p] = len(pathway & words) / min(len(pathway), len(words))
    return np.where(omega > threshold, omega, 0).astype(np.float32)


def check_against_the_book(adata: AnnData, kept: list[str], threshold: float) -> None:
    cut = {name: set(SETS[name]) & set(GENES) for name in kept}
    expected = by_the_book(hb.get.sentences(adata).tolist(), cut, threshold)
    assert list(adata.uns["pathway_overlap"]["pathways"]) == kept
    np.testing.assert_array_equal(adata.obsm["pathway_overlap"].toarray(), expected)
    assert expected.any()


def snapshot(adata: AnnData) -> dict[str, list[str]]:
    return {part: list(getattr(adata, part)) for part in ("obs", "var", "obsm", "varm", "layers", "uns")}


def test_slots() -> None:
    adata = sample()
    assert hb.pp.pathway_overlap(adata, sets_of()) is None
    check_against_the_book(adata, ["Signalling by A/B", "large"], 0.2)
    matrix = adata.obsm["pathway_overlap"]
    assert isinstance(matrix, sparse.csr_matrix)
    assert matrix.dtype == np.float32
    assert matrix.has_sorted_indices
    assert not matrix[4].nnz
    assert adata.uns["pathway_overlap"]["pathways"].dtype == object
    assert adata.uns["pathway_overlap"]["params"] == {
        "source": "made up",
        "version": "1",
        "threshold": 0.2,
        "min_genes": 5,
        "sentence_key": "gene_sentence",
    }


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"min_genes": 1}, ["Signalling by A/B", "small", "pair", "large"]),
        ({"min_genes": 1, "max_genes": 12}, ["Signalling by A/B", "small", "pair"]),
        ({"min_genes": 3, "max_genes": 21}, ["Signalling by A/B"]),
        ({"min_genes": 22, "max_genes": 22}, ["large"]),
    ],
)
def test_sets_are_cut_before_they_are_counted(options: dict[str, int], kept: list[str]) -> None:
    adata = sample()
    hb.pp.pathway_overlap(adata, sets_of(), threshold=0.0, **options)
    check_against_the_book(adata, kept, 0.0)
    params = adata.uns["pathway_overlap"]["params"]
    assert {name: params[name] for name in options} == options


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.75])
def test_threshold(threshold: float) -> None:
    adata = sample()
    hb.pp.pathway_overlap(adata, sets_of(), threshold=threshold, min_genes=2)
    check_against_the_book(adata, ["Signalling by A/B", "small", "pair", "large"], threshold)


def test_other_keys_leave_the_default_slots_alone() -> None:
    adata = sample()
    hb.pp.pathway_overlap(adata, sets_of())
    before = adata.obsm["pathway_overlap"].copy()
    hb.pp.tfidf_sentences(adata, n_genes=3, key_added="short")
    hb.pp.pathway_overlap(adata, sets_of(), threshold=0.5, sentence_key="short", key_added="other")
    assert (adata.obsm["pathway_overlap"] != before).nnz == 0
    expected = by_the_book(
        hb.get.sentences(adata, key="short").tolist(),
        {name: set(SETS[name]) for name in adata.uns["other"]["pathways"]},
        0.5,
    )
    np.testing.assert_array_equal(adata.obsm["other"].toarray(), expected)
    assert adata.uns["other"]["params"]["sentence_key"] == "short"


def test_copy() -> None:
    adata = sample()
    before = snapshot(adata)
    result = hb.pp.pathway_overlap(adata, sets_of(), copy=True)
    assert snapshot(adata) == before
    check_against_the_book(result, ["Signalling by A/B", "large"], 0.2)


def test_gene_sets_of_any_kind(tmp_path: Path) -> None:
    """A dict, a file and a GeneSets of real symbols give the same; a dict has no version."""
    adata = hb.datasets.tissue(100, n_genes=60, image=False)
    hb.pp.tfidf_sentences(adata, n_genes=20)
    genes = list(adata.var_names[:40])
    sets = {"first": genes[:15], "last": genes[10:]}
    path = tmp_path / "sets.gmt"
    path.write_text("".join("\t".join([name, "", *of_set]) + "\n" for name, of_set in sets.items()))
    results = []
    for source in (sets, path, str(path), GeneSets(sets)):
        hb.pp.pathway_overlap(adata, source)
        results.append(adata.obsm["pathway_overlap"].toarray())
        assert list(adata.uns["pathway_overlap"]["pathways"]) == ["first", "last"]
    lines = hb.get.sentences(adata).tolist()
    np.testing.assert_array_equal(results[0], by_the_book(lines, {k: set(v) for k, v in sets.items()}, 0.2))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])
    assert "version" not in adata.uns["pathway_overlap"]["params"]


def test_subsets() -> None:
    """The genes of the sentences stay whole: after a cut by genes the overlaps come out the same."""
    adata = sample()
    hb.pp.pathway_overlap(adata, sets_of())
    matrix = adata.obsm["pathway_overlap"].toarray()
    part = adata[3:9, GENES[10:15]].copy()
    np.testing.assert_array_equal(part.obsm["pathway_overlap"].toarray(), matrix[3:9])
    hb.pp.pathway_overlap(part, sets_of(), key_added="again")
    np.testing.assert_array_equal(part.obsm["again"].toarray(), matrix[3:9])
    assert list(part.uns["again"]["pathways"]) == list(adata.uns["pathway_overlap"]["pathways"])


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_round_trip(tmp_path: Path, kind: str) -> None:
    adata = sample()
    hb.pp.pathway_overlap(adata, sets_of(), max_genes=25)
    path = tmp_path / f"a.{kind}"
    getattr(adata, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path)
    matrix = back.obsm["pathway_overlap"]
    assert isinstance(matrix, sparse.csr_matrix | sparse.csr_array)
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix.toarray(), adata.obsm["pathway_overlap"].toarray())
    assert back.uns["pathway_overlap"]["params"] == adata.uns["pathway_overlap"]["params"]
    assert list(back.uns["pathway_overlap"]["pathways"]) == ["Signalling by A/B", "large"]
    hb.pp.pathway_overlap(back, sets_of(), max_genes=25, key_added="again")
    np.testing.assert_array_equal(back.obsm["again"].toarray(), matrix.toarray())


def test_log(caplog: pytest.LogCaptureFixture) -> None:
    adata = sample()
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="hibiost"):
        hb.pp.pathway_overlap(adata, sets_of(), max_genes=25)
        hb.pp.pathway_overlap(adata, sets_of({"one": GENES[:12]}), threshold=0.99)
    cut, share, _, few = caplog.records
    assert cut.getMessage() == (
        "obsm['pathway_overlap']: 2 of 5 pathways; the other 3 are dropped, not having 5 to 25 of the 30 genes."
    )
    assert share.levelno == logging.INFO
    assert "19 of 20 spots (95.0%) have a pathway above threshold=0.2; the median spot has" in share.getMessage()
    assert few.levelno == logging.WARNING
    assert "above threshold=0.99" in few.getMessage()


def drop(attribute: str) -> Any:
    return lambda adata: getattr(adata, attribute).pop("gene_sentence")


def shorten(adata: AnnData) -> None:
    adata.uns["gene_sentence"]["genes"] = adata.uns["gene_sentence"]["genes"][:20]


def ensembl(adata: AnnData) -> None:
    adata.uns["gene_sentence"]["genes"] = np.array([f"ENSG{i:011d}" for i in range(30)], dtype=object)


def mouse(adata: AnnData) -> None:
    adata.uns["gene_sentence"]["genes"] = np.array([f"Gene{i}" for i in range(30)], dtype=object)


@pytest.mark.parametrize(
    ("mend", "options", "error", "message"),
    [
        (None, {"threshold": -0.1}, DataError, "threshold is -0.1"),
        (None, {"threshold": 1}, DataError, "threshold is 1; .* from 0 to below 1"),
        (None, {"min_genes": 0}, DataError, "min_genes is 0"),
        (None, {"max_genes": 4}, DataError, "max_genes is 4, below min_genes, 5"),
        (None, {"min_genes": 23}, DataError, r"none of the 5 gene sets has 23 to .*the most is 22\); change min_genes"),
        (None, {"sentence_key": "gene_sentences"}, MissingSlotError, "tfidf_sentences.*Did you mean 'gene_sentence'"),
        (drop("obsm"), {}, MissingSlotError, r"no obsm\['gene_sentence'\].*call hb.pp.tfidf_sentences\(adata\) first"),
        (drop("uns"), {}, MissingSlotError, r"no uns\['gene_sentence'\].*call hb.pp.tfidf_sentences\(adata\) first"),
        (shorten, {}, DataError, r"name gene 2\d \(counted from 0\) of 20 genes.*do not belong together"),
        (
            ensembl,
            {},
            DataError,
            r"(?s)the data have Ensembl.*hgnc_symbols.*those of uns\['gene_sentence'\]; where you.*tfidf_sentences",
        ),
        (mouse, {}, DataError, "the data have symbols in mouse case.*another species or case"),
    ],
)
def test_errors(mend: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    adata = sample()
    if mend:
        mend(adata)
    before = snapshot(adata)
    with pytest.raises(error, match=message):
        hb.pp.pathway_overlap(adata, sets_of(), **options)
    assert snapshot(adata) == before


def test_no_spots_and_no_anndata() -> None:
    with pytest.raises(DataError, match="no spots"):
        hb.pp.pathway_overlap(sample()[:0], sets_of())
    with pytest.raises(DataError, match="expected an AnnData, found ndarray"):
        hb.pp.pathway_overlap(np.ones((2, 2)), sets_of())


@pytest.fixture
def section(her2st_dir: Path) -> AnnData:
    for folder in ("genesets", "orthologs"):
        if not (her2st_dir.parent / folder).is_dir():
            pytest.skip(f"no {folder} beside the her2st data")
    adata = hb.datasets.her2st("C2", image=False)
    hb.pp.tfidf_sentences(adata)
    return adata


@pytest.mark.data
def test_real_section(section: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    """Reactome on C2: almost no positives at the paper's threshold; the warning names one for half of the spots."""
    options = {"min_genes": 15, "max_genes": 500}
    hb.pp.pathway_overlap(section, "reactome", **options)
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    words = section.uns["gene_sentence"]["genes"]
    names, members = hb.datasets.gene_sets("reactome").membership(words, **options)
    assert list(section.uns["pathway_overlap"]["pathways"]) == names
    sets = {name: set(words[row.indices]) for name, row in zip(names, members, strict=True)}
    lines = hb.get.sentences(section).tolist()
    np.testing.assert_array_equal(section.obsm["pathway_overlap"].toarray(), by_the_book(lines, sets, 0.2))

    n_positive = int((np.diff(section.obsm["pathway_overlap"].indptr) > 0).sum())
    assert 0 < n_positive < 0.1 * section.n_obs
    assert f"{n_positive} of {section.n_obs} spots" in warning.getMessage()
    named = float(warning.getMessage().split("With threshold=")[1].split(",")[0])
    share = [(by_the_book(lines, sets, threshold).any(axis=1)).mean() for threshold in (named, named + 0.01)]
    assert share[0] >= 0.5 > share[1]
    assert section.uns["pathway_overlap"]["params"]["source"] == "reactome"
