from __future__ import annotations

from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from hibiost.errors import DataError
from hibiost.genes.orthologs import choose_orthologs, count_species, detect_species, species_named, sum_genes

HUMAN = [
    "ENSG00000141736",
    "ENSG00000254709.7",
    "TP53",
    "HLA-DRA",
    "C1orf112",
    "CXorf21",
    "MT-ND1",
    "GRCh38_Actb",
    "T2",
]
MOUSE = [
    "ENSMUSG00000062312.1",
    "Trp53",
    "mt-Nd1",
    "4933401J01Rik",
    "Gm26206",
    "H2-Ab1",
    "mm10___ACTB",
    "RPa",
]
NEITHER = ["ENSRNOG00000012345", "1", "12.5", "gag", ""]


@pytest.mark.parametrize(("names", "counts"), [(HUMAN, (9, 0)), (MOUSE, (0, 8)), (NEITHER, (0, 0)), ([], (0, 0))])
def test_count_species(names: list[str], counts: tuple[int, int]) -> None:
    assert tuple(count_species(names).values()) == counts
    assert [tuple(count_species([name]).values()) for name in names] == [tuple(np.sign(counts))] * len(names)


def test_detect_species() -> None:
    assert detect_species(HUMAN) == detect_species(HUMAN, "human") == "human"
    assert detect_species(MOUSE) == "mouse"
    assert detect_species(MOUSE + NEITHER) == "mouse"
    assert detect_species(HUMAN * 5 + MOUSE[:5]) == "human"
    assert detect_species(NEITHER, "mouse") == "mouse"
    with pytest.raises(DataError, match="mixed species: of 17 genes, 9 are named as human and 8 as mouse"):
        detect_species(HUMAN + MOUSE, "mouse")
    with pytest.raises(DataError, match="said to be of mouse .* 9 are named as human and 0 .*Give species='human'"):
        detect_species(HUMAN, "mouse")
    with pytest.raises(DataError, match="cannot tell the species: of 5 genes, 0 .*Give species="):
        detect_species(NEITHER)


@pytest.mark.parametrize(
    ("name", "species"),
    [("human", "human"), ("Homo sapiens", "human"), (" MOUSE ", "mouse"), ("mus musculus", "mouse")],
)
def test_species_named(name: str, species: str) -> None:
    assert species_named(name) == species


def test_unknown_species() -> None:
    with pytest.raises(DataError, match="species 'mus muskulus' is unknown; .* Did you mean 'mus musculus'"):
        species_named("mus muskulus")
    with pytest.raises(DataError, match=r"species 'zebrafish' is unknown; the species are \['human'"):
        species_named("zebrafish")


PAIRS = pd.DataFrame(
    [
        ("A", "HA", True, 90.0),
        ("B", "HB1", False, 30.0),  # one to many
        ("B", "HB2", False, 60.0),
        ("C1", "HC", False, 50.0),  # many to one
        ("C2", "HC", False, 40.0),
        ("D", "HD", False, 80.0),  # its other ortholog bears no name
        ("D", "", False, 95.0),
        ("E", "E2", False, 10.0),  # of the same similarity
        ("E", "e", False, 10.0),
        ("F", "HF2", False, 10.0),
        ("F", "HF1", False, 10.0),
        ("G", "", False, 99.0),
    ],
    columns=["gene", "ortholog", "one_to_one", "similarity"],
)


def test_policies() -> None:
    assert choose_orthologs(PAIRS, "drop") == {"A": "HA"}
    assert choose_orthologs(PAIRS, "sum") == {"A": "HA", "C1": "HC", "C2": "HC"}
    best = {"A": "HA", "B": "HB2", "C1": "HC", "C2": "HC", "D": "HD", "E": "e", "F": "HF1"}
    assert choose_orthologs(PAIRS, "best") == best
    assert choose_orthologs(PAIRS.sample(frac=1, random_state=1), "best") == best
    with pytest.raises(DataError, match=r"one_to_many is 'bets'; expected one of .*Did you mean 'best'"):
        choose_orthologs(PAIRS, "bets")


@settings(max_examples=50)
@given(data=st.data(), shape=st.tuples(st.integers(1, 5), st.integers(1, 8)), dense=st.booleans())
def test_sum_genes(data: st.DataObject, shape: tuple[int, int], dense: bool) -> None:
    rows = data.draw(
        st.lists(
            st.lists(st.integers(0, 255), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
        )
    )
    place = data.draw(st.lists(st.integers(-1, 3), min_size=shape[1], max_size=shape[1]))
    dtype = data.draw(st.sampled_from(["float32", "uint8", "int64", "float64"]))
    matrix = np.array(rows, dtype=dtype)
    book = np.zeros((shape[0], 4), dtype="int64")
    for row, values in enumerate(rows):
        totals = defaultdict(int)
        for gene, value in zip(place, values, strict=True):
            totals[gene] += value
        book[row] = [totals[gene] for gene in range(4)]
    before = matrix.copy()
    summed = sum_genes(matrix if dense else sparse.csr_matrix(matrix), np.array(place), 4)
    assert isinstance(summed, sparse.csr_matrix)
    assert summed.has_sorted_indices
    assert summed.dtype == ("int32" if dtype == "uint8" else dtype)
    np.testing.assert_array_equal(summed.toarray(), book)
    np.testing.assert_array_equal(matrix, before)
