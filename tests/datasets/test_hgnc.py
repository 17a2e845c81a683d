from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from pathlib import Path

import pandas as pd
import pytest

import hibiost as hb
from hibiost.datasets import _hgnc
from hibiost.errors import DataError, DownloadError
from hibiost.settings import settings

TABLE = settings.cache / _hgnc.DATASET / _hgnc.FILE
needs_table = pytest.mark.skipif(not TABLE.is_file(), reason="HGNC's table not found: set HIBIOST_DATA_DIR")

ROWS = (
    # symbol, alias_symbol, prev_symbol, entrez_id, ensembl_gene_id
    ("RIGI", "RIG-I|FLJ13599|NA", "DDX58", "23586", "ENSG00000107201"),
    ("TLR3", "CD283", "", "7098", "ENSG00000164342"),
    ("TAFAZZIN", "G4.5", "EFE2|TAZ", "6901", "ENSG00000102125"),
    ("WWTR1", "TAZ", "", "25937", "ENSG00000018408"),
    ("CCL2", "MCP1|TLR3", "SCYA2", "6347", "ENSG00000108691"),
    ("PPY2P", "23586", "PPY2", "23614", ""),
    ("LNC-A", "", "LNC", "", "ENSG00000217929"),
    ("LNC-B", "", "", "1", "ENSG00000217929"),
)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "hgnc.tsv.gz"
    columns = ["symbol", "alias_symbol", "prev_symbol", "entrez_id", "ensembl_gene_id"]
    pd.DataFrame(ROWS, columns=columns).assign(name="some other column").to_csv(path, sep="\t", index=False)
    monkeypatch.setattr(_hgnc, "fetch", lambda dataset, file: path)
    return path


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("name", "symbol"),
    [
        ("RIGI", "RIGI"),
        ("DDX58", "RIGI"),
        ("RIG-I", "RIGI"),
        ("NA", "RIGI"),
        ("ENSG00000107201", "RIGI"),
        ("ENSG00000107201.10", "RIGI"),
        ("23586", "RIGI"),  # an Entrez identifier before the alias of another gene
        (7098, "TLR3"),
        ("TLR3", "TLR3"),  # an approved symbol is no alias of another gene
        ("TAZ", "TAZ"),  # of two genes
        ("LNC", "LNC-A"),
        ("ENSG00000217929", "ENSG00000217929"),  # of two genes
        ("ENSG00000107201.1.1", "ENSG00000107201.1.1"),
        ("rigi", "rigi"),
        ("", ""),
        ("gag", "gag"),
    ],
)
def test_current_symbol(name: str, symbol: str) -> None:
    assert hb.datasets.hgnc_symbols([name]) == [symbol]


@pytest.mark.usefixtures("table")
def test_order_length_and_log(caplog: pytest.LogCaptureFixture) -> None:
    names = pd.Index(["gag", "DDX58", "TLR3", "RIGI", "gag", "MCP1"])
    with caplog.at_level("INFO", "hibiost"):
        assert hb.datasets.hgnc_symbols(names) == ["gag", "RIGI", "TLR3", "RIGI", "gag", "CCL2"]
    assert "6 names, 2 current symbols, 2 renamed, 2 unknown and kept; 1 became the same as another." in caplog.text
    assert hb.datasets.hgnc_symbols([]) == []


def test_one_string_is_refused() -> None:
    with pytest.raises(DataError, match="names is the string 'RIGI'; expected a list"):
        hb.datasets.hgnc_symbols("RIGI")


def test_without_the_table(tmp_path: Path) -> None:
    settings.data_dir = tmp_path
    with pytest.raises(DownloadError, match="could not download .*hgnc_complete_set"):
        hb.datasets.hgnc_symbols(["RIGI"])


@needs_table
def test_the_real_table_against_a_plain_reading_of_it() -> None:
    with gzip.open(TABLE, "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    symbols = {row["symbol"] for row in rows}
    owners, ids = defaultdict(set), defaultdict(set)
    for row in rows:
        for name in (row["alias_symbol"] + "|" + row["prev_symbol"]).split("|"):
            owners[name].add(row["symbol"])
        for name in (row["entrez_id"], row["ensembl_gene_id"]):
            ids[name].add(row["symbol"])
    former = {n: min(s) for n, s in owners.items() if n and len(s) == 1 and n not in symbols}
    table = _hgnc.hgnc()
    assert table.symbols == symbols
    assert table.former == former
    assert table.ids == {n: min(s) for n, s in ids.items() if n and len(s) == 1}
    assert max(row["date_modified"] for row in rows) == _hgnc.DATE
    names = ["ENSG00000164342.14", "SEPT4", "6347", "gag"]
    assert hb.datasets.hgnc_symbols(names) == ["TLR3", "SEPTIN4", "CCL2", "gag"]


@needs_table
@pytest.mark.data
def test_names_of_her2st(her2st_dir: Path) -> None:
    names: set[str] = set()
    for file in (her2st_dir / "data" / "ST-cnts").glob("*.tsv.gz"):
        with gzip.open(file, "rt") as lines:
            names |= set(next(lines).rstrip("\n").split("\t")[1:])
    table = _hgnc.hgnc()
    renamed = [name for name in names if table.current(name) not in (name, None)]
    assert len(names & table.symbols) >= 17_700
    assert len(renamed) == 757
