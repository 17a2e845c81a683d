from __future__ import annotations

import csv
import gzip
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from hibiost.datasets import _orthologs
from hibiost.errors import DataError, DownloadError
from hibiost.genes.orthologs import choose_orthologs
from hibiost.settings import settings

CACHE = settings.cache
TABLES = {"symbols": _orthologs.SYMBOLS, "ensembl": _orthologs.ENSEMBL, "mgi": _orthologs.MGI}
READ = {
    "symbols": _orthologs.mouse_symbols,
    "ensembl": lambda: _orthologs.orthologs("ensembl"),
    "mgi": lambda: _orthologs.orthologs("mgi"),
}
needs_tables = pytest.mark.skipif(
    not all((CACHE / dataset / path).is_file() for dataset, path in TABLES.values()),
    reason="the tables of orthologs were not found: set HIBIOST_DATA_DIR",
)


def rows_of(name: str) -> list[dict[str, str]]:
    dataset, path = TABLES[name]
    with gzip.open(CACHE / dataset / path, "rt", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_ensembl_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ["Gene name", "Human gene name", "Human homology type"]
    columns += [
        f"%id. {'target Human' if i else 'query'} gene identical to {'query' if i else 'target Human'} gene"
        for i in (1, 0)
    ]
    rows = [
        ("Trp53", "TP53", "ortholog_one2one", "77.5", "78.0"),
        ("Twin", "TWIN1", "ortholog_one2one", "90", "90"),  # two genes of one name
        ("Twin", "TWIN2", "ortholog_one2one", "80", "80"),
        ("Half", "HALF", "ortholog_one2one", "90", "90"),  # two again, the ortholog of one has no name
        ("Half", "", "ortholog_one2one", "80", "80"),
        ("Many", "MANY1", "ortholog_one2many", "50", "40"),
        ("Many", "MANY1", "ortholog_one2many", "60", "40"),
        ("", "LOST", "ortholog_one2one", "60", "40"),
        ("NA", "", "", "", ""),
    ]
    path = tmp_path / "ensembl.tsv.gz"
    pd.DataFrame(rows, columns=columns).to_csv(path, sep="\t", index=False)
    monkeypatch.setattr(_orthologs, "fetch", lambda dataset, file: path)
    pairs = _orthologs.orthologs("ensembl")
    assert list(pairs.itertuples(index=False, name=None)) == [
        ("Trp53", "TP53", True, 155.5),
        ("Twin", "TWIN1", False, 180.0),
        ("Twin", "TWIN2", False, 160.0),
        ("Half", "HALF", True, 180.0),
        ("Half", "", False, 160.0),
        ("Many", "MANY1", False, 100.0),
    ]


def test_mgi_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mgi.rpt"
    lines = ["TP53\t 7157\t1\tyes\t Trp53\t MGI:1\t\t", "B1\t1\t1\tyes\tBb\t\t\t", "B2\t2\t1\tyes\tBb\t\t\t"]
    path.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(_orthologs, "fetch", lambda dataset, file: path)
    pairs = _orthologs.orthologs("mgi")
    assert list(pairs["one_to_one"]) == [True, False, False]
    assert choose_orthologs(pairs, "best") == {"Trp53": "TP53", "Bb": "B1"}


@needs_tables
def test_ensembl_against_a_plain_reading_of_it() -> None:
    pairs = {
        (row["Gene name"], row["Human gene name"])
        for row in rows_of("ensembl")
        if row["Gene name"] and row["Human gene name"]
    }
    single = {
        (row["Gene name"], row["Human gene name"])
        for row in rows_of("ensembl")
        if row["Human homology type"] == "ortholog_one2one"
    } & pairs
    mouse, human = Counter(m for m, _ in pairs), Counter(h for _, h in pairs)
    expected = {m: h for m, h in single if mouse[m] == 1 and human[h] == 1}
    found = _orthologs.orthologs("ensembl")
    assert choose_orthologs(found, "drop") == expected
    assert len(expected) == 16_488
    assert set(zip(found["gene"], found["ortholog"], strict=True)) >= pairs
    best = choose_orthologs(found, "best")
    assert set(best) == set(mouse)
    assert set(best.items()) <= pairs
    assert expected.items() <= best.items()
    shared = choose_orthologs(found, "sum")
    assert all(mouse[name] == 1 for name in shared)
    assert expected.items() <= shared.items() <= best.items()
    assert len(expected) < len(shared) < len(best)


@needs_tables
def test_mgi_against_a_plain_reading_of_it() -> None:
    dataset, path = TABLES["mgi"]
    lines = (CACHE / dataset / path).read_text().splitlines()
    pairs = {(line.split("\t")[4].strip(), line.split("\t")[0].strip()) for line in lines}
    mouse, human = Counter(m for m, _ in pairs), Counter(h for _, h in pairs)
    expected = {m: h for m, h in pairs if mouse[m] == 1 and human[h] == 1}
    assert choose_orthologs(_orthologs.orthologs("mgi"), "drop") == expected
    assert expected["Trp53"] == "TP53"


@needs_tables
def test_mouse_symbols_against_a_plain_reading_of_them() -> None:
    assert _orthologs.mouse_symbols() == {row["gene_id"].split(".")[0]: row["gene_name"] for row in rows_of("symbols")}
    assert _orthologs.mouse_symbols()["ENSMUSG00000059552"] == "Trp53"


def test_unknown_table() -> None:
    with pytest.raises(DataError, match=r"orthologs is 'ensemble'; expected one of .*Did you mean 'ensembl'"):
        _orthologs.orthologs("ensemble")


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>404</html>", None], ids=["empty", "html", "truncated"])
def test_a_file_that_is_another(name: str, content: bytes | None, tmp_path: Path) -> None:
    dataset, path = TABLES[name]
    if content is None:
        if not (CACHE / dataset / path).is_file():
            pytest.skip("the tables of orthologs were not found: set HIBIOST_DATA_DIR")
        content = (CACHE / dataset / path).read_bytes()[:-100]
    settings.data_dir = tmp_path
    (tmp_path / dataset / path).parent.mkdir(parents=True)
    (tmp_path / dataset / path).write_bytes(content)
    with pytest.raises(DownloadError, match="is not the published file: its sha256 is"):
        READ[name]()


@pytest.mark.parametrize("name", TABLES)
def test_without_the_tables(name: str, tmp_path: Path) -> None:
    settings.data_dir = tmp_path
    with pytest.raises(DownloadError, match="could not download"):
        READ[name]()
