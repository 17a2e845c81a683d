from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hibiost as hb
from hibiost.datasets import _genesets, _registry
from hibiost.datasets._hgnc import Hgnc
from hibiost.datasets._registry import registry
from hibiost.errors import DataError, DownloadError
from hibiost.genes import GeneSets
from hibiost.settings import settings

FOLDER = settings.cache / "genesets"
FILES = {name: FOLDER / release.path for name, release in _genesets.RELEASES.items()}
TABLE = settings.cache / "orthologs" / "src" / "Gene" / "hgnc_complete_set.tsv.gz"
needs_files = pytest.mark.skipif(
    not all(file.is_file() for file in (*FILES.values(), TABLE)),
    reason="gene sets and HGNC's table not found: set HIBIOST_DATA_DIR",
)

NAMES = Hgnc(
    symbols=frozenset({"RIGI", "TLR3", "CCL2", "KRT5"}),
    ids={"ENSG00000107201": "RIGI", "23586": "RIGI", "7098": "TLR3", "6347": "CCL2"},
    former={"DDX58": "RIGI", "RIG-I": "RIGI", "MCP1": "CCL2", "Tirp": "TLR3"},
)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Hgnc:
    monkeypatch.setattr(_genesets, "hgnc", lambda: NAMES)
    return NAMES


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "hibiost"):
        yield caplog


@pytest.fixture
def no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def hgnc() -> Hgnc:
        raise DownloadError("no network")

    monkeypatch.setattr(_genesets, "hgnc", hgnc)


# -- sets of one's own ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("names")
def test_names_are_brought_up_to_date(told: pytest.LogCaptureFixture) -> None:
    given = {
        "sensors": ["DDX58", "RIG-I", "ENSG00000107201.3", "TLR3", "gag"],
        "chemokines": ["6347", "MCP1"],
    }
    sets = hb.datasets.gene_sets(given)
    assert dict(sets) == {"sensors": ("RIGI", "TLR3", "gag"), "chemokines": ("CCL2",)}
    counts = {"n_genes": 4, "n_renamed": 3, "n_identifiers": 2, "n_unknown": 1}
    assert sets.source == {"name": "dict", "hgnc": "2022-02-21", **counts}
    assert sets.aliases == NAMES.former
    assert told.messages == [
        "dict: 2 sets, 4 genes; 3 former names and 2 identifiers replaced by current symbols; 1 names unknown to HGNC "
        "(of 2022-02-21) and kept, such as gag."
    ]


@pytest.mark.usefixtures("names")
def test_aliases_are_those_of_the_genes_of_the_sets() -> None:
    sets = hb.datasets.gene_sets({"sensors": ["RIGI", "KRT5"]})
    assert sets.aliases == {"DDX58": "RIGI", "RIG-I": "RIGI"}
    _, members = sets.membership(["MCP1", "DDX58", "KRT5"], min_genes=2)
    np.testing.assert_array_equal(members.toarray(), [[0, 1, 1]])


@pytest.mark.usefixtures("names")
def test_a_gmt_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("my.gmt", "my.txt"):
        (tmp_path / name).write_text("sensors\t\tDDX58\tTLR3\n")
        for path in (tmp_path / name, str(tmp_path / name)):
            sets = hb.datasets.gene_sets(path)
            assert dict(sets) == {"sensors": ("RIGI", "TLR3")}
            assert sets.source["name"] == name
    monkeypatch.setenv("HOME", str(tmp_path))
    assert dict(hb.datasets.gene_sets("~/my.txt")) == dict(sets)


@pytest.mark.usefixtures("no_table")
def test_gene_sets_are_passed_through(told: pytest.LogCaptureFixture) -> None:
    sets = GeneSets({"one": ["DDX58"]})
    assert hb.datasets.gene_sets(sets) is sets
    assert told.messages == []


@pytest.mark.usefixtures("names")
def test_mouse_sets_are_taken_as_they_are(told: pytest.LogCaptureFixture) -> None:
    sets = hb.datasets.gene_sets({"toll": ["Tlr3", "Tirp", "Krt5"]})
    assert dict(sets) == {"toll": ("Tlr3", "Tirp", "Krt5")}  # Tirp is also an alias of a human gene
    assert sets.aliases == {}
    assert "dict: symbols in mouse case such as 'Krt5'" in told.text
    assert "another species than human: taken as they are" in told.text


@pytest.mark.usefixtures("names")
def test_mostly_unknown_names_are_warned_of(told: pytest.LogCaptureFixture) -> None:
    assert hb.datasets.gene_sets({"one": ["RIGI", "YAL001C", "YAL002W"]})["one"] == ("RIGI", "YAL001C", "YAL002W")
    (record,) = told.records
    assert record.levelname == "WARNING"
    assert "2 names unknown to HGNC (of 2022-02-21) and kept, such as YAL001C, YAL002W" in record.getMessage()


@pytest.mark.usefixtures("no_table")
def test_without_the_table_names_are_taken_as_they_are(told: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "my.gmt").write_text("sensors\t\tDDX58\tTLR3\n")
    for source in ({"sensors": ["DDX58", "TLR3"]}, tmp_path / "my.gmt"):
        told.clear()
        sets = hb.datasets.gene_sets(source)
        assert dict(sets) == {"sensors": ("DDX58", "TLR3")}
        (record,) = told.records
        assert record.levelname == "WARNING"
        assert "gene names are taken as they are" in record.getMessage()
        assert "no network" in record.getMessage()


def test_without_network(tmp_path: Path, told: pytest.LogCaptureFixture) -> None:
    settings.data_dir = tmp_path
    assert hb.datasets.gene_sets({"sensors": ["DDX58"]})["sensors"] == ("DDX58",)
    assert "HIBIOST_DATA_DIR" in told.text
    for source in ("reactome", "wikipathways", "kegg"):
        with pytest.raises(DownloadError, match="could not download .*hgnc_complete_set"):
            hb.datasets.gene_sets(source)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("reactom", "no gene sets 'reactom'; expected 'reactome', .* GMT file, or a dict. Did you mean 'reactome'"),
        ("KEGG", "no gene sets 'KEGG'.* Did you mean 'kegg'"),
        ("absent.gmt", "could not read the gene sets of absent.gmt"),
        ("absent.gmt.gz", "could not read the gene sets of absent.gmt.gz"),
        (Path("absent"), "could not read the gene sets of absent"),
        ({}, "there are no gene sets"),
        ({"one": []}, "hold no genes, such as 'one'"),
        ({"one": "RIGI"}, "genes of set 'one' are 'RIGI'; expected a list"),
        (3, "the source of gene sets is of type int; expected a name, path or dict"),
        (["RIGI"], "is of type list"),
        ({"one": ["ENSMUSG00000040296"]}, r"none of the 1 genes .* Ensembl identifiers such as 'ENSMUSG00000040296'"),
        ({"one": ["GENE1", "GENE2"]}, r"symbols in human case such as 'GENE1'.*as they are by hb\.genes\.GeneSets"),
        ({"one": ["rigi", "tlr3"]}, r"none of the 2 genes .* names such as 'rigi', 'tlr3'; expected HGNC symbols"),
    ],
)
def test_refused_sources(source: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        hb.datasets.gene_sets(source)


@pytest.mark.parametrize("source", ["reactome", {"one": ["RIGI"]}])
def test_refresh_concerns_kegg_alone(source: Any) -> None:
    with pytest.raises(DataError, match="refresh=True asks KEGG anew, but the source is not 'kegg'"):
        hb.datasets.gene_sets(source, refresh=True)


# -- releases ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("refresh", [False, True])
def test_kegg_gets_symbols(monkeypatch: pytest.MonkeyPatch, refresh: bool) -> None:
    asked = []

    def kegg(*, refresh: bool) -> GeneSets:
        asked.append(refresh)
        return GeneSets({"Sensing": ["23586", "7098", "999"]}, source={"name": "kegg", "version": "115.0"})

    monkeypatch.setattr(_genesets, "kegg", kegg)
    sets = hb.datasets.gene_sets("kegg", refresh=refresh)
    assert asked == [refresh]
    assert dict(sets) == {"Sensing": ("RIGI", "TLR3", "999")}
    assert sets.source["version"] == "115.0"
    assert (sets.source["n_identifiers"], sets.source["n_unknown"]) == (2, 1)


@pytest.mark.usefixtures("no_table")
def test_kegg_is_not_asked_without_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_genesets, "kegg", lambda **_: pytest.fail("asked KEGG"))
    with pytest.raises(DownloadError, match="no network"):
        hb.datasets.gene_sets("kegg")


@pytest.mark.usefixtures("names")
def test_wikipathways_names_and_identifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "wikipathways.gmt"
    file.write_text(
        "Sensing %WikiPathways_20230410%WP1%Homo sapiens\tlink\t23586\t7098\n"
        "Cytokines%WikiPathways_20230410%WP2%Homo sapiens\tlink\t6347\n"
        "Cytokines%WikiPathways_20230410%WP3%Homo sapiens\tlink\t6347\t7098\n"
    )
    monkeypatch.setattr(_genesets, "fetch", lambda dataset, path: file)
    sets = hb.datasets.gene_sets("wikipathways")
    assert dict(sets) == {
        "Sensing": ("RIGI", "TLR3"),
        "Cytokines (WP2)": ("CCL2",),
        "Cytokines (WP3)": ("CCL2", "TLR3"),
    }
    assert sets.source["licence"] == "CC0 1.0"


def test_the_registry_knows_the_releases() -> None:
    assert set(registry("genesets")) == {release.path for release in _genesets.RELEASES.values()}
    for dataset in ("genesets", "orthologs"):
        assert all(entry.url.startswith("https://") for entry in registry(dataset).values())
        assert all(entry.url.endswith(entry.path.partition("/")[2]) for entry in registry(dataset).values())
    assert not any("kegg" in path for path in registry("genesets"))


def raw(path: Path) -> dict[str, list[str]]:
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    return {line.split("\t")[0]: line.split("\t")[2:] for line in lines}


@needs_files
def test_reactome(told: pytest.LogCaptureFixture) -> None:
    sets = hb.datasets.gene_sets("reactome")
    plain = raw(FILES["reactome"])
    assert list(sets) == list(plain)
    assert len(sets) == 2694
    assert "FAM175A" in {gene for genes in plain.values() for gene in genes}
    assert "FAM175A" not in sets.genes
    assert sets.aliases["FAM175A"] == "ABRAXAS1"
    assert "gag" in sets["2-LTR circle formation"]
    assert sets.source["version"] == "2024-09-18"
    members = {gene for genes in plain.values() for gene in genes}
    counts = sets.source
    assert counts["n_genes"] == len(sets.genes) <= len(members) == 11_668
    assert counts["n_unknown"] == 302 + 12
    assert "314 names unknown to HGNC (of 2022-02-21) and kept" in told.text
    symbols = _genesets.hgnc().symbols
    assert sum(gene not in symbols for gene in sets.genes) == counts["n_unknown"]
    assert sum(gene not in symbols for gene in members) == counts["n_unknown"] + counts["n_renamed"]
    flu = "Entry of Influenza Virion into Host Cell via Endocytosis"
    assert set(sets[flu]) == set(plain[flu])  # NA and PB1 are of the virus, not XK and PBRM1
    assert _genesets.RELEASES["reactome"].viral <= sets.genes


@needs_files
def test_wikipathways() -> None:
    sets = hb.datasets.gene_sets("wikipathways")
    plain = raw(FILES["wikipathways"])
    assert len(sets) == len(plain) == 796
    titles = Counter(name.split("%")[0].strip() for name in plain)
    twice = {title for title, times in titles.items() if times > 1}
    assert len(twice) == 5
    assert len(set(sets) & set(titles)) == 796 - sum(titles[title] for title in twice)
    assert {name.rpartition(" (WP")[0] for name in set(sets) - set(titles)} == twice
    assert "Cholesterol metabolism (WP5304)" in sets
    assert all(len(sets[name]) <= len(genes) for name, genes in zip(sets, plain.values(), strict=True))


@needs_files
@pytest.mark.skipif(not (FOLDER / "derived").is_dir(), reason="the independently derived symbols are not there")
def test_wikipathways_symbols_against_an_independent_derivation() -> None:
    derived = (FOLDER / "derived" / "wikipathways_20230410_symbols.gmt").read_text().splitlines()
    expected = {line.split("\t")[1]: set(line.split("\t")[2:]) for line in derived}
    ids = [name.split("%")[2] for name in raw(FILES["wikipathways"])]
    symbols = _genesets.hgnc().symbols
    sets = hb.datasets.gene_sets("wikipathways")
    found = {key: set(genes) & symbols for key, genes in zip(ids, sets.values(), strict=True)}
    assert found == expected
    assert sum(sets.source[key] for key in ("n_identifiers", "n_unknown")) == 8251 + 25


@needs_files
def test_sets_are_found_by_path_and_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "_download", lambda target, entry: pytest.fail("asked for a download"))
    for name in _genesets.RELEASES:
        hb.datasets.gene_sets(name)


@needs_files
@pytest.mark.data
def test_genes_of_real_sections_are_found(her2st_dir: Path) -> None:
    data = hb.datasets.her2st("C2", image=False).var_names
    for name in _genesets.RELEASES:
        sets = hb.datasets.gene_sets(name)
        with_aliases = sets.membership(data, min_genes=1)[1].sum()
        without = GeneSets(sets).membership(data, min_genes=1)[1].sum()
        assert with_aliases > 1.01 * without
