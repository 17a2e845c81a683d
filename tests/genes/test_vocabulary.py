from __future__ import annotations

import json
import math
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from hibiost.errors import DataError
from hibiost.genes import Vocabulary

SLIDE = st.lists(st.sampled_from("ABCDEFGH"), min_size=1, unique=True).flatmap(
    lambda genes: st.tuples(
        st.just(genes),
        st.lists(st.lists(st.integers(0, 2), min_size=len(genes), max_size=len(genes)), min_size=1, max_size=4),
    )
)


@settings(max_examples=60, deadline=None)
@given(slides=st.lists(SLIDE, min_size=1, max_size=5), min_spots=st.integers(0, 1))
def test_fit(slides: list[tuple[list[str], list[list[int]]]], min_spots: int) -> None:
    expected = {}
    for gene in sorted({gene for genes, _ in slides for gene in genes}):
        measured = [row[genes.index(gene)] for genes, rows in slides if gene in genes for row in rows]
        if (seen := sum(value > 0 for value in measured)) >= min_spots:
            expected[gene] = (seen, len(measured))
    stream = ((genes, sparse.csr_matrix(np.array(rows))) for genes, rows in slides)
    if not expected:
        with pytest.raises(DataError, match="lower min_spots"):
            Vocabulary.fit(stream, min_spots=min_spots)
        return
    vocabulary = Vocabulary.fit(stream, min_spots=min_spots)
    assert vocabulary.genes == tuple(expected)
    assert len(vocabulary) == len(expected)
    assert list(zip(vocabulary.n_spots.tolist(), vocabulary.n_measured.tolist(), strict=True)) == list(
        expected.values()
    )
    book = [math.log((1 + m) / (1 + df)) for df, m in expected.values()]
    np.testing.assert_allclose(vocabulary.idf, book, rtol=1e-14)
    backwards = Vocabulary.fit(((genes, np.array(rows)) for genes, rows in slides[::-1]), min_spots=min_spots)
    assert backwards == vocabulary


def test_fit_holds_one_slide_at_a_time() -> None:
    alive = []

    def stream():
        for _ in range(3):
            assert sum(ref() is not None for ref in alive) <= 1
            counts = sparse.csr_matrix(np.ones((2, 2)))
            alive.append(weakref.ref(counts))
            yield ["A", "B"], counts
            del counts

    assert Vocabulary.fit(stream()).n_measured.tolist() == [6, 6]


def test_json_round_trip_is_exact() -> None:
    vocabulary = Vocabulary(("HLA-DRA", "Ä"), [2**53 + 1, 0], [2**60, 7])
    back = Vocabulary.from_dict(json.loads(json.dumps(vocabulary.to_dict())))
    assert back == vocabulary
    assert back.idf.tobytes() == vocabulary.idf.tobytes()


def test_index() -> None:
    vocabulary = Vocabulary(("B", "A"), [1, 1], [2, 2])
    assert vocabulary.index(["A", "X", "B", "A"]).tolist() == [1, -1, 0, 1]
    assert vocabulary.index([]).tolist() == []
    assert vocabulary.match(["X", "B"]).tolist() == [-1, 0]


def test_it_does_not_change() -> None:
    mine = np.array([1, 2])
    vocabulary = Vocabulary(("A", "B"), mine, [3, 3])
    mine[0] = 3
    assert vocabulary.n_spots.tolist() == [1, 2]
    with pytest.raises(ValueError, match="read-only"):
        vocabulary.n_spots[0] = 5
    with pytest.raises(AttributeError):
        vocabulary.genes = ("C",)


def test_equality() -> None:
    vocabulary = Vocabulary(("A", "B"), [1, 2], [3, 3])
    assert vocabulary == Vocabulary(["A", "B"], [1, 2], [3, 3])
    assert vocabulary != Vocabulary(("B", "A"), [1, 2], [3, 3])
    assert vocabulary != Vocabulary(("A", "B"), [2, 2], [3, 3])
    assert vocabulary != Vocabulary(("A", "B"), [1, 2], [3, 4])
    assert vocabulary != "A"
    assert repr(vocabulary) == "Vocabulary(2 genes, up to 3 spots)"


@pytest.mark.parametrize(
    ("genes", "n_spots", "n_measured", "message"),
    [
        ((), [], [], "no genes"),
        (("A", "B", "A"), [1, 1, 1], [1, 1, 1], r"1 genes more than once, such as \['A'\]"),
        (("A", "B"), [1], [1, 1], r"n_spots has shape \(1,\).*2 genes"),
        (("A", "B"), [1, 1], [1, 1, 1], r"n_measured has shape \(3,\).*2 genes"),
        (("A", "B"), [1, 3], [2, 2], "'B' is seen in 3 of 2 spots"),
        (("A", "B"), [-1, 1], [2, 2], "'A' is seen in -1 of 2 spots"),
    ],
)
def test_refused(genes: tuple[str, ...], n_spots: list[int], n_measured: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Vocabulary(genes, n_spots, n_measured)


def test_fit_refuses() -> None:
    with pytest.raises(DataError, match="no slides"):
        Vocabulary.fit([])
    with pytest.raises(DataError, match="slide 2 has 1 gene names and counts of 2 genes"):
        Vocabulary.fit([(["A"], np.ones((1, 1))), (["A"], np.ones((1, 2)))])
    with pytest.raises(DataError, match="slide 1 names 1 genes more than once"):
        Vocabulary.fit([(["A", "A"], np.ones((1, 2)))])


def test_from_dict_refuses() -> None:
    with pytest.raises(DataError, match="no entry 'n_measured'"):
        Vocabulary.from_dict({"genes": ["A"], "n_spots": [1]})


@pytest.mark.parametrize(
    ("names", "looks"),
    [
        (["ENSG00000141736", "ENSG00000254709.7"], "Ensembl identifiers such as 'ENSG00000141736'"),
        (["ENSMUSG00000062312"], "Ensembl identifiers"),
        (["Erbb2", "Iglc1"], "symbols in mouse case such as 'Erbb2', 'Iglc1'"),
        (["C1orf112", "HLA-B"], "symbols in human case"),
        (["1", "2"], "names such as '1', '2'"),
    ],
)
def test_nothing_shared(names: list[str], looks: str) -> None:
    vocabulary = Vocabulary(("ERBB2", "IGLL5"), [1, 1], [2, 2])
    with pytest.raises(
        DataError, match=f"the data have {looks}.*the vocabulary has symbols in human case such as 'ERBB2'"
    ):
        vocabulary.match(names)
