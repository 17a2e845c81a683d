import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.special import softmax

from hibiost import _products
from hibiost.errors import DataError
from hibiost.model import retrieval

SIMILARITIES = np.array([[0.9, 0.5, -0.2], [-0.1, -0.1, -0.3]], dtype=np.float32)


@pytest.mark.parametrize("rough", ["bfloat16", "float32"])
@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 100), st.floats(0, 20))
def test_most_similar_equals_full_sort(rough, n_queries, n_bank, seed, offset):
    rng = np.random.default_rng(seed)
    queries = rng.normal(offset, size=(n_queries, 4)).astype(np.float32)
    bank = rng.normal(offset, size=(n_bank, 4)).astype(np.float32)
    k = min(5, n_bank)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_products, "_rough_dtype", lambda device: getattr(torch, rough))
        rows, scores = retrieval.most_similar(queries, bank, k)
    full = (queries.astype(float) @ bank.T.astype(float)).astype(np.float32)
    np.testing.assert_allclose(scores, -np.sort(-full, axis=1)[:, :k], rtol=2e-7)
    np.testing.assert_allclose(np.take_along_axis(full, rows, axis=1), scores, rtol=2e-7)
    assert all(len(set(row)) == k for row in rows.tolist())


@given(
    n_queries=st.integers(1, 12), n_bank=st.integers(1, 25), k=st.integers(1, 25), step=st.integers(1, 25),
    at_a_time=st.integers(1, 12), levels=st.integers(1, 3), seed=st.integers(0, 1000),
)  # fmt: skip
def test_ties_go_to_the_lower_row_whatever_the_blocks(n_queries, n_bank, k, step, at_a_time, levels, seed):
    rng = np.random.default_rng(seed)
    queries, bank = (rng.integers(0, levels + 1, size=(n, 2)).astype(np.float32) for n in (n_queries, n_bank))
    k = min(k, n_bank)
    full = queries @ bank.T  # whole numbers: exact
    expected = np.argsort(-full, axis=1, kind="stable")[:, :k]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_BANK", step)
        patch.setattr(retrieval, "_QUERIES", at_a_time)
        rows, scores = retrieval.most_similar(queries, bank, k)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_array_equal(scores, np.take_along_axis(full, expected, axis=1))


def test_a_bank_that_cannot_be_written_to(tmp_path):
    bank = np.eye(6, dtype=np.float32)
    np.save(tmp_path / "bank.npy", bank)
    mapped = np.load(tmp_path / "bank.npy", mmap_mode="r")
    np.testing.assert_array_equal(retrieval.most_similar(bank, mapped, 1)[0].ravel(), np.arange(6))


def test_weights():
    weights = retrieval.neighbour_weights(np.array([[3.0, 1.0, -2.0], [-1.0, -1.0, -1.0]]))
    np.testing.assert_allclose(weights, [[0.75, 0.25, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert weights.sum(axis=1) == pytest.approx(1)


def test_weights_by_equation():
    np.testing.assert_allclose(
        retrieval.neighbour_weights(SIMILARITIES, "softmax", scale=14.0), softmax(14 * SIMILARITIES, axis=1), rtol=1e-5
    )
    np.testing.assert_allclose(retrieval.neighbour_weights(SIMILARITIES, "uniform"), np.full((2, 3), 1 / 3))
    inverse = [[1 / (2 - 2 * s) for s in row] for row in SIMILARITIES.tolist()]
    np.testing.assert_allclose(
        retrieval.neighbour_weights(SIMILARITIES, "inverse_distance"),
        [np.divide(r, sum(r)) for r in inverse],
        rtol=1e-5,
    )


def test_equal_embeddings_have_finite_weights():
    weights = retrieval.neighbour_weights(np.array([[1.0, 1.0 + 1e-7, 0.0]]), "inverse_distance")
    np.testing.assert_allclose(weights, [[0.5, 0.5, 2.5e-7]], rtol=1e-3)
    assert np.isfinite(retrieval.neighbour_weights(np.array([[1.0, 0.5]]), "softmax", scale=1e4)).all()


def test_unknown_weighting():
    with pytest.raises(DataError, match=r"weighting is 'softmin'.*Did you mean 'softmax'"):
        retrieval.neighbour_weights(SIMILARITIES, "softmin")


@pytest.mark.parametrize("weighting", retrieval.WEIGHTINGS)
def test_mean_equals_a_loop_in_any_blocks(weighting, monkeypatch):
    rng = np.random.default_rng(3)
    queries, bank = (rng.normal(size=(n, 4)).astype(np.float32) for n in (7, 11))
    queries, bank = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (queries, bank))
    values = sparse.random(11, 5, density=0.5, format="csr", dtype=np.float32, rng=rng)
    monkeypatch.setattr(retrieval, "_VALUES", 10)
    found = retrieval.mixed(retrieval.neighbours(queries, bank, k=3, weighting=weighting, scale=5.0), values)
    for query, row in zip(queries, found, strict=True):
        similarity = bank @ query
        best = np.argsort(-similarity)[:3]
        weights = retrieval.neighbour_weights(similarity[best][None], weighting, scale=5.0)[0]
        np.testing.assert_allclose(row, weights @ values.toarray()[best], rtol=1e-4, atol=1e-6)
    assert found.dtype == np.float32
