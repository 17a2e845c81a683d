from __future__ import annotations

import math
from collections.abc import Iterator

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from hibiost.errors import DataError
from hibiost.genes import document_frequency, idf, select_genes, tfidf, top_genes

COUNTS = st.tuples(st.integers(1, 7), st.integers(1, 12)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.sampled_from([0, 0, 0, 1, 1, 2, 3, 40, 70_000, 5_000_000]))
)


def with_zeros(x: np.ndarray) -> sparse.csr_matrix:
    """Every entry stored, zeros too."""
    return sparse.csr_matrix(
        (x.ravel(), np.tile(np.arange(x.shape[1]), len(x)), np.arange(0, x.size + 1, x.shape[1])), shape=x.shape
    )


def reversed_rows(x: np.ndarray) -> sparse.csr_matrix:
    """Every entry stored, the columns of each row in falling order."""
    return sparse.csr_matrix(
        (x[:, ::-1].ravel(), np.tile(np.arange(x.shape[1])[::-1], len(x)), np.arange(0, x.size + 1, x.shape[1])),
        shape=x.shape,
    )


FORMS = {
    "csr": sparse.csr_matrix,
    "csr_array float64": lambda x: sparse.csr_array(x.astype(np.float64)),
    "csc float32": lambda x: sparse.csc_matrix(x.astype(np.float32)),
    "dense": lambda x: x,
    "explicit zeros": with_zeros,
    "unsorted": reversed_rows,
}


def weights_by_the_book(counts: np.ndarray) -> list[list[float]]:
    """Eqs 1-3, read word for word."""
    n_spots, n_genes = counts.shape
    rows = []
    for spot in range(n_spots):
        denominator = sum(math.log(1 + counts[spot][k]) for k in range(n_genes)) + 1e-8
        row = []
        for gene in range(n_genes):
            seen = sum(1 for j in range(n_spots) if counts[j][gene] > 0)
            row.append(math.log(1 + counts[spot][gene]) / denominator * math.log((1 + n_spots) / (1 + seen)))
        rows.append(row)
    return rows


def sentence_by_the_book(weights: np.ndarray, n_genes: int) -> list[int]:
    """Eq 4 with the ties and the padding of the documentation."""
    ranked = sorted((gene for gene in range(len(weights)) if weights[gene] > 0), key=lambda g: (-weights[g], g))
    return (ranked + [-1] * n_genes)[:n_genes]


@pytest.fixture
def threads() -> Iterator[int]:
    before = numba.get_num_threads()
    yield numba.config.NUMBA_NUM_THREADS
    numba.set_num_threads(before)


@settings(max_examples=60)
@given(counts=COUNTS, form=st.sampled_from(list(FORMS)))
def test_equations(counts: np.ndarray, form: str) -> None:
    matrix = FORMS[form](counts)
    df = document_frequency(matrix)
    assert df.dtype == np.int64
    assert df.tolist() == [int((column > 0).sum()) for column in counts.T]
    weights = tfidf(matrix, idf(df, len(counts)))
    assert isinstance(weights, sparse.csr_matrix)
    assert weights.dtype == np.float32
    weights.check_format()
    assert weights.has_sorted_indices
    assert weights.nnz == sparse.csr_matrix(matrix).nnz
    np.testing.assert_allclose(weights.toarray(), weights_by_the_book(counts), rtol=1e-6, atol=1e-12)


@settings(max_examples=100)
@given(
    weights=st.tuples(st.integers(1, 5), st.integers(1, 60)).flatmap(
        lambda shape: arrays(np.float32, shape, elements=st.sampled_from([0, 0, -1, 1e-30, 0.1, 0.1, 0.25, 3, 1e30]))
    ),
    n_genes=st.sampled_from([1, 2, 5, 70]),
    form=st.sampled_from(["csr", "dense", "explicit zeros", "unsorted"]),
)
def test_top_genes_with_ties(weights: np.ndarray, n_genes: int, form: str) -> None:
    found = top_genes(FORMS[form](weights), n_genes)
    assert found.dtype == np.int32
    assert found.tolist() == [sentence_by_the_book(row, n_genes) for row in weights]


@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.0, 1e-6, 1.0, 8.0]),
    levels=st.sampled_from([2, 50, 10**6]),
    n_genes=st.sampled_from([1, 37, 250, 2500]),
)
def test_top_genes_of_long_rows(seed: int, spread: float, levels: int, n_genes: int) -> None:
    """Rows long enough to be selected by buckets, from all alike to all different."""
    rng = np.random.default_rng(seed)
    weights = np.exp(spread * rng.normal(size=levels))[rng.integers(levels, size=(3, 2400))].astype(np.float32)
    weights[rng.random(weights.shape) < 0.1] = 0
    assert top_genes(weights, n_genes).tolist() == [sentence_by_the_book(row, n_genes) for row in weights]


def test_top_genes_among() -> None:
    weights = np.array([[0.3, 0.2, 0.1], [0.3, 0.0, 0.1]])
    assert top_genes(weights, 2, among=[False, True, True]).tolist() == [[1, 2], [2, -1]]


def test_ties_that_double_precision_would_break() -> None:
    """log1p(3) = 2 log1p(1), so these two genes weigh the same; in double precision their products may not."""
    counts = np.array([[3.0, 1.0, 5.0]])
    weights = tfidf(counts, np.array([math.log(7), 2 * math.log(7), 0.0]))
    assert weights[0, 0] == weights[0, 1]
    assert top_genes(weights, 3).tolist() == [[0, 1, -1]]


def test_duplicate_entries_are_summed_and_the_input_kept() -> None:
    matrix = sparse.csr_matrix((np.array([1, 2, 4]), np.array([1, 1, 0]), np.array([0, 3])), shape=(1, 2))
    assert document_frequency(matrix).tolist() == [1, 1]
    np.testing.assert_allclose(tfidf(matrix, [0, 1.0]).toarray(), [[0, math.log(4) / (math.log(4) + math.log(5))]])
    assert matrix.indices.tolist() == [1, 1, 0]


def test_threads(threads: int) -> None:
    if threads < 2:
        pytest.skip("one core only")
    counts = sparse.random(300, 500, density=0.2, rng=np.random.default_rng(0), format="csr")
    counts.data = np.ceil(counts.data * 9)
    results = []
    for n in (1, threads):
        numba.set_num_threads(n)
        df = document_frequency(counts)
        weights = tfidf(counts, idf(df, 300))
        results.append((df, weights.indptr, weights.indices, weights.data.view(np.int32), top_genes(weights, 40)))
    for one, many in zip(*results, strict=True):
        np.testing.assert_array_equal(one, many)


def test_idf_per_gene() -> None:
    np.testing.assert_array_equal(idf([0, 1, 4], [3, 3, 4]), [math.log(4), math.log(2), 0.0])


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_weights_of_what_is_no_count(value: float) -> None:
    with pytest.raises(DataError, match="negative, NaN or infinite"):
        tfidf(np.array([[1.0, value]]), [1, 1])


def test_fractions() -> None:
    np.testing.assert_allclose(
        tfidf(np.array([[0.5, 1.5]]), [1, 2]).toarray(),
        np.log1p([[0.5, 1.5]]) * [1, 2] / np.log1p([0.5, 1.5]).sum(),
        rtol=1e-6,
    )


def test_errors() -> None:
    with pytest.raises(DataError, match=r"idf has shape \(3,\).*2 genes"):
        tfidf(np.ones((2, 2)), [1, 2, 3])
    with pytest.raises(DataError, match="n_genes is 0"):
        top_genes(np.ones((2, 2)), 0)
    with pytest.raises(DataError, match=r"among has shape \(1,\).*2 genes"):
        top_genes(np.ones((2, 2)), 1, among=[True])


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    shape=st.sampled_from([(1, 30), (9, 700), (70, 90)]),
    n_genes=st.sampled_from([1, 8, 100]),
    block=st.sampled_from([1, 4, 1_000]),
)
def test_sentences_in_one_go_are_those_of_the_weights(
    seed: int, shape: tuple[int, int], n_genes: int, block: int
) -> None:
    """Of counts with many ties, in blocks of rows or whole, also where few genes are to enter."""
    rng = np.random.default_rng(seed)
    counts = sparse.csr_matrix(rng.poisson(rng.gamma(0.5, 2, shape[1]), shape).astype(np.float32))
    among = rng.random(shape[1]) < 0.8
    weight = idf(document_frequency(counts), shape[0])
    weight[rng.random(shape[1]) < 0.3] = 0.5
    expected = tfidf(counts, weight).toarray()
    expected[:, ~among] = 0
    options = {"n_genes": n_genes, "among": among, "slides": [np.arange(shape[0])]}
    blocks = [counts[start : start + block] for start in range(0, shape[0], block)]
    for given_counts in (counts, blocks):
        found = select_genes(given_counts, weight, **options)
        assert found.tolist() == [sentence_by_the_book(row, n_genes) for row in expected]


@pytest.mark.parametrize("value", [-3.0, -0.5, np.nan, np.inf])
def test_what_is_no_count_is_refused(value: float) -> None:
    counts = sparse.csr_matrix(np.array([[1.0, 2.0], [3.0, value]]))
    options = {"n_genes": 1, "among": np.ones(2, dtype=bool), "slides": [np.arange(2)]}
    with pytest.raises(DataError, match="negative, NaN or infinite"):
        select_genes(counts, np.ones(2), **options)
    with pytest.raises(DataError, match="negative, NaN or infinite"):
        tfidf(counts, np.ones(2))
