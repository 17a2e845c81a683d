from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibiost.errors import DataError
from hibiost.genes import GeneSets
from hibiost.genes.genesets import distinct_names

GENES = st.sampled_from("ABCDEFGHIJ")


def write(tmp_path: Path, content: str | bytes, name: str = "sets.gmt") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# -- the class --------------------------------------------------------------------------------------------------------


def test_a_mapping_of_names_to_genes() -> None:
    sets = GeneSets({"one": ["B", "A", "B"], "two": ("C",)}, source={"name": "toy"})
    assert dict(sets) == {"one": ("B", "A"), "two": ("C",)}
    assert sets["one"] == ("B", "A")
    assert len(sets) == 2
    assert sets.genes == {"A", "B", "C"}
    assert repr(sets) == "GeneSets(2 sets of toy, 3 genes)"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({}, "there are no gene sets"),
        ({"one": ["A"], "two": []}, "1 gene sets hold no genes, such as 'two'; leave them out"),
        ({"one": "TP53"}, "genes of set 'one' are 'TP53'; expected a list"),
        ({"one": None}, "genes of set 'one' are None; expected a list"),
    ],
)
def test_refused_sets(sets: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        GeneSets(sets)


@given(
    sets=st.dictionaries(st.text("xyz", min_size=1, max_size=3), st.lists(GENES, min_size=1), min_size=1, max_size=5),
    genes=st.lists(GENES, unique=True, min_size=1),
    least=st.integers(1, 4),
    most=st.integers(1, 6) | st.none(),
)
def test_membership_is_what_the_sets_say(
    sets: dict[str, list[str]], genes: list[str], least: int, most: int | None
) -> None:
    expected = {name: [gene in of_set for gene in genes] for name, of_set in sets.items()}
    expected = {name: row for name, row in expected.items() if least <= sum(row) <= (most or 99)}
    if not expected:
        with pytest.raises(DataError, match="none of the"):
            GeneSets(sets).membership(genes, min_genes=least, max_genes=most)
        return
    names, members = GeneSets(sets).membership(genes, min_genes=least, max_genes=most)
    assert names == list(expected)
    assert members.dtype == np.float32
    np.testing.assert_array_equal(members.toarray(), list(expected.values()))


def test_aliases_match_data_with_older_names() -> None:
    sets = GeneSets({"sensors": ["RIGI", "TLR3"]}, aliases={"DDX58": "RIGI", "RIG-I": "RIGI", "MCP1": "CCL2"})
    names, members = sets.membership(["MCP1", "DDX58", "TLR3", "RIG-I"], min_genes=2)
    assert names == ["sensors"]
    np.testing.assert_array_equal(members.toarray(), [[0, 1, 1, 0]])  # the first of two other names of a gene
    _, members = sets.membership(["DDX58", "RIGI"], min_genes=1)
    np.testing.assert_array_equal(members.toarray(), [[0, 1]])  # the name itself comes before other names


def test_a_name_that_is_in_a_set_is_no_alias() -> None:
    sets = GeneSets({"one": ["A", "B"]}, aliases={"A": "B"})
    _, members = sets.membership(["A"], min_genes=1)
    np.testing.assert_array_equal(members.toarray(), [[1]])


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        (["ENSG00000107201"], r"data have Ensembl identifiers .* sets have symbols in human .*hgnc_symbols"),
        (["Rigi", "Tlr3"], r"data have symbols in mouse case .* give sets of the species of the data"),
        (["gene one"], r"data have names such as 'gene one'.*Name the genes \(adata\.var_names\) as the sets do"),
        (["RIGI"], r"none of the 1 gene sets has 2 to any number of genes .*the most is 1\); change min_genes"),
    ],
)
def test_data_that_share_no_genes(genes: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        GeneSets({"sensors": ["RIGI", "TLR3"]}).membership(genes, min_genes=2)


def test_min_genes_of_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="min_genes is 0; expected at least 1"):
        GeneSets({"one": ["A"]}).membership(["A"], min_genes=0)


def test_names_that_occur_twice_get_their_identifier() -> None:
    names = distinct_names({"WP1": "cholesterol", "WP2": "lipids", "WP3": "cholesterol"})
    assert names == {"cholesterol (WP1)": "WP1", "lipids": "WP2", "cholesterol (WP3)": "WP3"}


# -- GMT files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "one\tlink\tA\tB\ntwo\t\tC\n",
        "one\tlink\tA\tB\ntwo\t\tC",
        "one\tlink\tA\tB\t\t\r\ntwo\t\tC\t\r\n\r\n",
        "\ufeffone \tlink\t A\tB\tA\n\ntwo\tmany words\tC\n\n",
    ],
    ids=["plain", "no newline at the end", "CRLF and trailing tabs", "byte-order mark and blanks"],
)
@pytest.mark.parametrize("packed", [False, True])
def test_gmt(tmp_path: Path, content: str, packed: bool) -> None:
    path = write(tmp_path, gzip.compress(content.encode()) if packed else content, "my.gmt.gz" if packed else "my.gmt")
    sets = GeneSets.from_gmt(path)
    assert dict(sets) == {"one": ("A", "B"), "two": ("C",)}
    assert sets.source == {"name": path.name}
    assert dict(GeneSets.from_gmt(str(path))) == dict(sets)


def test_gmt_separates_lines_at_newlines_only(tmp_path: Path) -> None:
    path = write(tmp_path, "one\u2028still one\tlink\tA\n")
    assert list(GeneSets.from_gmt(path)) == ["one\u2028still one"]


def test_gmt_lines_without_genes_are_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, "one\tlink\tA\nnone\tlink\t\nblank\tlink\t \t\n")
    assert list(GeneSets.from_gmt(path)) == ["one"]
    assert "left out 2 set(s) without genes, such as 'none'" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("one\tlink\tA\ntwo C D\n", r"sets\.gmt, line 2: 1 field\(s\); expected name TAB description TAB genes"),
        ("one\tA\n", r"line 1: 2 field\(s\)"),
        ("\n\n \tlink\tA\n", "line 3: the first field is empty; expected the name of the set"),
        ("one\t\tA\ntwo\t\tB\none\t\tC\n", "line 3: set 'one' is already in line 1"),
        (b"one\t\tA\nm\xfcller\t\tB\n", "line 2: not UTF-8 text"),
        (b"one\t\tA\n\0\0", "line 2: binary"),
        ("<!DOCTYPE html>\n<html>", "is a web page, not a GMT file: it starts with '<!DOCTYPE html>"),
        ("", "holds no gene sets"),
        ("\n\n", "holds no gene sets"),
        ("one\t\t\n", "holds no gene sets"),
        (gzip.compress(b"one\t\tA\n", mtime=0)[:-6], "could not read the gene sets of .*sets.gmt"),
        (gzip.compress(b"one\t\tA\n", mtime=0)[:12] + b"damaged damage", "could not read the gene sets of .*sets.gmt"),
        (gzip.compress(b"two C D\n", mtime=0), "line 1: 1 field"),
    ],
)
def test_malformed_gmt(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        GeneSets.from_gmt(write(tmp_path, content))


@pytest.mark.parametrize("name", ["absent.gmt", "."])
def test_a_gmt_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"could not read the gene sets of .*; expected a GMT file"):
        GeneSets.from_gmt(tmp_path / name)
