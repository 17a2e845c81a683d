from __future__ import annotations

import logging
from collections.abc import Iterator
from fractions import Fraction

import numba
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import sparse

from hibiost.errors import DataError
from hibiost.genes import Overlaps, overlap_coefficients
from hibiost.genes.overlap import reaching_threshold, report_overlaps

N_GENES = 12
GENES = st.integers(0, N_GENES - 1)
THRESHOLDS = st.sampled_from([0.0, 0.1, 1 / 7, 0.2, 0.25, 1 / 3, 0.5, 0.6, 2 / 3, 0.75, 0.99])


@st.composite
def tables(draw: st.DrawFn) -> np.ndarray:
    """Sentences of different genes, with padding anywhere."""
    width = draw(st.integers(0, 9))
    rows = draw(st.lists(st.lists(GENES, max_size=width, unique=True), max_size=6))
    padded = [draw(st.permutations(row + [-1] * (width - len(row)))) for row in rows]
    return np.array(padded, dtype=draw(st.sampled_from([np.int32, np.int64]))).reshape(len(rows), width)


MEMBERS = st.lists(st.sets(GENES), min_size=1, max_size=7)


def table_of(sets: list[set[int]], n_genes: int = N_GENES) -> sparse.csr_matrix:
    dense = np.zeros((len(sets), n_genes), dtype=np.float32)
    for row, genes in zip(dense, sets, strict=True):
        row[list(genes)] = 1
    return sparse.csr_matrix(dense)


def by_the_book(sentences: np.ndarray, sets: list[set[int]]) -> np.ndarray:
    """Eq 5, read word for word, before the threshold."""
    omega = np.zeros((len(sentences), len(sets)))
    for s, row in enumerate(sentences.tolist()):
        sentence = {gene for gene in row if gene >= 0}
        for p, pathway in enumerate(sets):
            if sentence & pathway:
                omega[s, p] = len(pathway & sentence) / min(len(pathway), len(sentence))
    return omega


def check_format(overlaps: Overlaps, n_spots: int, n_sets: int) -> None:
    matrix, best = overlaps
    assert isinstance(matrix, sparse.csr_matrix)
    assert matrix.shape == (n_spots, n_sets)
    assert matrix.dtype == np.float32
    assert (matrix.data > 0).all()
    for row in range(n_spots):
        assert (np.diff(matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]) > 0).all()
    matrix.check_format()
    assert best.shape == (n_spots,)
    assert best.dtype == np.float64


@settings(max_examples=150)
@given(sentences=tables(), sets=MEMBERS, threshold=THRESHOLDS)
def test_equation(sentences: np.ndarray, sets: list[set[int]], threshold: float) -> None:
    overlaps = overlap_coefficients(sentences, table_of(sets), threshold=threshold)
    check_format(overlaps, len(sentences), len(sets))
    omega = by_the_book(sentences, sets)
    expected = np.where(omega > threshold, omega, 0).astype(np.float32)
    assert overlaps.matrix.toarray().tolist() == expected.tolist()
    assert overlaps.best.tolist() == omega.max(axis=1).tolist()


@settings(max_examples=40)
@given(sentences=tables(), sets=MEMBERS, data=st.data())
def test_order_of_spots_genes_and_sets(sentences: np.ndarray, sets: list[set[int]], data: st.DataObject) -> None:
    spots = data.draw(st.permutations(range(len(sentences))))
    pathways = data.draw(st.permutations(range(len(sets))))
    places = data.draw(st.permutations(range(sentences.shape[1])))
    names = np.array(data.draw(st.permutations(range(N_GENES))))
    members = table_of(sets)
    one = overlap_coefficients(sentences, members)
    renamed = np.where(sentences >= 0, names[sentences], -1)[spots][:, places].astype(np.int32)
    other = overlap_coefficients(renamed, members[pathways][:, np.argsort(names)])
    assert other.matrix.toarray().tolist() == one.matrix.toarray()[spots][:, pathways].tolist()
    assert other.best.tolist() == one.best[spots].tolist()


@pytest.mark.parametrize(("shared", "size"), [(1, 5), (1, 10), (3, 10), (7, 10), (1, 3), (2, 3), (29, 100), (57, 100)])
def test_what_equals_the_threshold_is_not_above_it(shared: int, size: int) -> None:
    members = table_of([set(range(size))], 2 * size)
    sentence = np.arange(size)[None] + size - shared
    share = float(Fraction(shared, size))
    assert overlap_coefficients(sentence, members, threshold=share).matrix.nnz == 0
    found = overlap_coefficients(sentence, members, threshold=np.nextafter(share, 0))
    assert found.matrix.data.tolist() == [np.float32(share)]
    assert found.best.tolist() == [share]


def test_special_sentences_and_sets() -> None:
    """A shared set of one gene scores 1, as does a sentence inside a set; genes of no set count in the sentence."""
    members = table_of([{0}, {1, 2, 3, 4, 5, 6}, set()])
    sentences = np.array([[0, 7, 8, 9], [-5, 3, 1, -1], [-1, -1, -1, -1], [1, 8, 9, 10]])
    overlaps = overlap_coefficients(sentences, members, threshold=0.0)
    assert overlaps.matrix.toarray().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0.25, 0]]
    assert overlaps.best.tolist() == [1, 1, 0, 0.25]


def test_without_spots_or_places() -> None:
    members = table_of([{0, 1}])
    check_format(overlap_coefficients(np.zeros((0, 5), dtype=np.int32), members), 0, 1)
    check_format(overlap_coefficients(np.zeros((3, 0), dtype=np.int32), members), 3, 1)


def test_forms_of_members() -> None:
    """Any weight marks a member but a stored zero; entries stored twice count once, and the input stays as it is."""
    data, indices = np.array([2.0, 0.5, 0.5, 0.0]), np.array([1, 0, 0, 2])
    members = sparse.csr_matrix((data, indices, [0, 4]), shape=(1, 3))
    overlaps = overlap_coefficients(np.array([[0, 2]]), members)
    assert overlaps.matrix.toarray().tolist() == [[0.5]]
    assert members.indices.tolist() == [1, 0, 0, 2]
    array = sparse.csr_array(table_of([{0, 1}], 3))
    assert overlap_coefficients(np.array([[0, 2]]), array).matrix.toarray().tolist() == [[0.5]]


@pytest.fixture
def realistic() -> tuple[np.ndarray, sparse.csr_matrix]:
    """300 sentences of up to 60 out of 900 genes, 200 sets of 1 to 400."""
    rng = np.random.default_rng(0)
    sentences = np.array([rng.permutation(900)[:60] for _ in range(300)], dtype=np.int32)
    sentences[np.arange(60) >= rng.integers(0, 120, 300)[:, None]] = -1
    sizes = np.clip(np.exp(rng.normal(3, 1.4, 200)), 1, 400).astype(int)
    return sentences, table_of([set(rng.permutation(900)[:size].tolist()) for size in sizes], 900)


def test_scipy_product(realistic: tuple[np.ndarray, sparse.csr_matrix]) -> None:
    sentences, members = realistic
    rows, places = np.nonzero(sentences >= 0)
    indicator = sparse.csr_matrix((np.ones(len(rows)), (rows, sentences[rows, places])), shape=(300, 900))
    smaller = np.minimum(np.diff(members.indptr)[None], (sentences >= 0).sum(axis=1)[:, None])
    omega = (indicator @ members.T).toarray() / np.maximum(smaller, 1)
    for threshold in (0.05, 0.2, 0.5):
        overlaps = overlap_coefficients(sentences, members, threshold=threshold)
        expected = np.where(omega > threshold, omega, 0).astype(np.float32)
        assert 0 < overlaps.matrix.nnz < omega.size / 2
        np.testing.assert_array_equal(overlaps.matrix.toarray(), expected)
        np.testing.assert_array_equal(overlaps.best, omega.max(axis=1))


@pytest.fixture
def threads() -> Iterator[int]:
    before = numba.get_num_threads()
    yield numba.config.NUMBA_NUM_THREADS
    numba.set_num_threads(before)


def test_threads(realistic: tuple[np.ndarray, sparse.csr_matrix], threads: int) -> None:
    if threads < 2:
        pytest.skip("one core only")
    results = []
    for n in (1, 2):
        numba.set_num_threads(n)
        matrix, best = overlap_coefficients(*realistic, threshold=0.1)
        results.append((matrix.indptr, matrix.indices, matrix.data.view(np.int32), best.view(np.int64)))
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    ("sentences", "threshold", "message"),
    [
        ([[0]], -0.1, "threshold is -0.1.*from 0 to below 1"),
        ([[0]], 1.0, "threshold is 1.0.*from 0 to below 1"),
        ([[0]], np.nan, "threshold is nan"),
        ([[0.0]], 0.2, r"shape \(1, 1\) and dtype float64; expected whole numbers"),
        ([0], 0.2, r"shape \(1,\) and dtype int64; expected whole numbers, n_spots x n_genes"),
        ([[0, 3], [-1, 1]], 0.2, r"name gene 3 \(counted from 0\) of 3 genes.*hb.pp.tfidf_sentences"),
    ],
)
def test_errors(sentences: list, threshold: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        overlap_coefficients(np.array(sentences), table_of([{0, 1}], 3), threshold=threshold)


COEFFICIENTS = st.one_of(
    st.just(0.0), st.tuples(st.integers(1, 300), st.integers(0, 300)).map(lambda pair: pair[0] / sum(pair))
)


@settings(max_examples=200)
@given(best=st.lists(COEFFICIENTS, max_size=30), share=st.sampled_from([0.01, 0.07, 0.3, 0.5, 0.9, 1.0]))
@example(best=[0.3], share=0.5)
@example(best=[0.57, np.nextafter(0.57, 1)], share=0.5)
@example(best=[0.01], share=0.5)
@example(best=[1.0], share=1.0)
def test_reaching_threshold(best: list[float], share: float) -> None:
    found = reaching_threshold(np.array(best), share)
    if not best or (np.array(best) > 0).mean() < share:
        assert found is None
        return
    assert found is not None
    assert 0 < found < 1
    assert (np.array(best) > found).mean() >= share
    decimals = next(d for d in range(2, 9) if round(found, d) == found)
    assert decimals == 2 or (np.array(best) > 10.0 ** (1 - decimals)).mean() < share
    higher = round(found + 10.0**-decimals, decimals)
    assert (np.array(best) > higher).mean() < share


def test_reaching_threshold_by_hand() -> None:
    assert reaching_threshold(np.array([0.1, 0.1, 0.104, 0.9]), 0.5) == 0.1
    assert reaching_threshold(np.array([0.1, 0.1, 0.104, 0.9]), 0.75) == 0.09
    assert reaching_threshold(np.array([0.0, 0.0042]), 0.5) == 0.004
    assert reaching_threshold(np.array([0.0, 0.0, 0.5]), 0.5) is None


def report(matrix: list[list[float]], best: list[float], caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    with caplog.at_level(logging.INFO, logger="hibiost"):
        report_overlaps(Overlaps(sparse.csr_matrix(matrix), np.array(best)), 0.2)
    (record,) = caplog.records
    return record


def test_report(caplog: pytest.LogCaptureFixture) -> None:
    """A tenth of the spots is enough for no warning."""
    record = report([[0.5, 0.3]] + [[0, 0]] * 9, [0.5] + [0.1] * 9, caplog)
    assert record.levelno == logging.INFO
    expected = "1 of 10 spots (10.0%) have a pathway above threshold=0.2; the median spot has 0."
    assert record.getMessage() == expected


def test_report_of_few(caplog: pytest.LogCaptureFixture) -> None:
    record = report([[0.5, 0.3]] + [[0, 0]] * 10, [0.5] + [0.15] * 5 + [0.1] * 5, caplog)
    assert record.levelno == logging.WARNING
    assert "1 of 11 spots (9.1%) have a pathway above threshold=0.2" in record.getMessage()
    assert "With threshold=0.14, 54.5% would have one." in record.getMessage()


def test_report_where_no_threshold_helps(caplog: pytest.LogCaptureFixture) -> None:
    record = report([[0, 0]] * 3, [0.1, 0, 0], caplog)
    assert record.levelno == logging.WARNING
    assert "most spots share no gene with any pathway" in record.getMessage()
