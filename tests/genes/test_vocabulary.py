from __future__ import annotations

import errno
import json
import math
import pickle
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from hibiost.errors import DataError
from hibiost.genes import Vocabulary
from hibiost.genes.vocabulary import metadata_words

SLIDE = st.lists(st.sampled_from("ABCDEFGH"), min_size=1, unique=True).flatmap(
    lambda genes: st.tuples(
        st.just(genes),
        st.lists(st.lists(st.integers(0, 2), min_size=len(genes), max_size=len(genes)), min_size=1, max_size=4),
    )
)


@settings(max_examples=60)
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


@settings(max_examples=60)
@given(slides=st.lists(SLIDE, min_size=1, max_size=6), min_spots=st.integers(0, 1), data=st.data())
def test_parts_and_blocks_give_what_one_fit_gives(slides, min_spots, data) -> None:
    stream = [(genes, np.array(rows)) for genes, rows in slides]
    words = [Counter({f"species:{data.draw(st.sampled_from('ab'))}": len(rows)}) for _, rows in slides]
    owner = [data.draw(st.integers(0, 2)) for _ in slides]
    seen = any((rows > 0).any() for _, rows in stream)
    if min_spots and not seen:
        return
    whole = Vocabulary.fit(stream, min_spots=min_spots, metadata=sum(words, Counter()))
    parts = [
        Vocabulary.fit((stream[i] for i in share), min_spots=0, metadata=sum((words[i] for i in share), Counter()))
        for worker in range(3)
        if (share := [i for i, each in enumerate(owner) if each == worker])
    ]
    assert Vocabulary.merge(iter(parts), min_spots=min_spots).to_dict() == whole.to_dict()
    assert Vocabulary.merge(parts[::-1], min_spots=min_spots).to_dict() == whole.to_dict()
    rows = ((genes, counts[i : i + 1]) for genes, counts in stream for i in range(len(counts)))
    assert Vocabulary.fit(rows, min_spots=min_spots) == whole


def test_min_spots_comes_after_the_merge() -> None:
    parts = [Vocabulary.fit([(["A", "B"], np.array([row]))], min_spots=0) for row in ([1, 1], [0, 1], [1, 0])]
    assert Vocabulary.merge(parts, min_spots=2).n_measured.tolist() == [3, 3]
    with pytest.raises(DataError, match="part 2 was fitted with min_spots=1.*fit the parts with min_spots=0"):
        Vocabulary.merge([parts[0], Vocabulary.fit([(["A", "B"], np.array([[1, 0]]))])])
    with pytest.raises(DataError, match="none of 2 genes is seen in 3 spots"):
        Vocabulary.merge(parts, min_spots=3)
    with pytest.raises(DataError, match="no genes to count"):
        Vocabulary.merge([])


def test_species_and_platforms() -> None:
    metadata = {"species:mus musculus": 5, "species:homo sapiens": 3, "organ:brain": 8, "st_technology:visium": 8}
    vocabulary = Vocabulary(("A",), [1], [8], metadata)
    assert vocabulary.species == {"homo sapiens": 3, "mus musculus": 5}
    assert vocabulary.platforms == {"visium": 8}
    assert list(vocabulary.metadata) == sorted(metadata)
    assert vocabulary == Vocabulary(("A",), [1], [8])


def test_metadata_words_are_casefolded_and_in_order() -> None:
    entries = {"organ": " Breast ", "species": "Homo sapiens", "st_technology": "", "mpp": 0.5}
    assert metadata_words(entries) == ["species:homo sapiens", "organ:breast"]


VOCABULARY = Vocabulary(("HLA-DRA", "Ä"), [2**53 + 1, 0], [2**60, 7], {"organ:büste": 7}, 0)


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "Wörter.json"
    assert VOCABULARY.save(path) == path
    VOCABULARY.save(str(path))
    assert Vocabulary.load(path).to_dict() == VOCABULARY.to_dict()
    assert [p.name for p in tmp_path.iterdir()] == ["Wörter.json"]
    assert pickle.loads(pickle.dumps(VOCABULARY)).to_dict() == VOCABULARY.to_dict()


def test_an_interrupted_save_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = VOCABULARY.save(tmp_path / "v.json")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(DataError, match=r"v\.json cannot be written \(No space left on device\); free some space"):
        Vocabulary(("B",), [1], [1]).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saved_where_no_file_can_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written .No such file or directory."):
        VOCABULARY.save(tmp_path / "absent" / "v.json")
    with pytest.raises(DataError, match="cannot be written .Is a directory."):
        VOCABULARY.save(tmp_path)


GOOD = json.dumps({"format": "hibiost vocabulary", **VOCABULARY.to_dict()})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty, truncated or no JSON"),
        (GOOD[:-20], "is empty, truncated or no JSON"),
        ("<!DOCTYPE html><html>Not found</html>", "is a web page, starting with '<!DOCTYPE html>"),
        ("[1, 2]", "is JSON, but no vocabulary"),
        ('{"genes": ["A"], "n_spots": [1], "n_measured": [1]}', "no entry 'format'"),
        (GOOD.replace('"n_measured"', '"n"'), "v.json: the vocabulary has no entry 'n_measured'"),
        (GOOD.replace(str(2**60), "1.5"), "v.json: the entry 'n_measured' .* something else than whole numbers"),
        (GOOD.replace("[9007199254740993, 0]", '"ab"'), "the entry 'n_spots' .* something else"),
        (GOOD.replace('{"organ:b\\u00fcste": 7}', '{"organ": "x"}'), "the entry 'metadata' .* something else"),
        (GOOD.replace('{"organ:b\\u00fcste": 7}', "[]"), "no table of metadata words"),
        (GOOD.replace('["HLA-DRA", "\\u00c4"]', '"AB"'), "no list of genes"),
        (b"\x89PNG\r\n\xff\xfe", "could not read the vocabulary"),
    ],
)
def test_load_refuses(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "v.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message) as raised:
        Vocabulary.load(path)
    assert str(path) in str(raised.value)


def test_load_of_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.json"):
        with pytest.raises(DataError, match="could not read the vocabulary .*expected a file written by"):
            Vocabulary.load(path)


def test_vocabularies_of_earlier_models_are_read() -> None:
    old = Vocabulary.from_dict({"genes": ["A"], "n_spots": [1], "n_measured": [2]})
    assert old.metadata == {}
    with pytest.raises(DataError, match="min_spots=1"):
        Vocabulary.merge([old])


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
