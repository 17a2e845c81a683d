import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hibiost.model import retrieval


@given(st.integers(1, 20), st.integers(1, 30), st.integers(0, 100))
def test_most_similar_equals_full_sort(n_queries, n_bank, seed):
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(n_queries, 4)).astype(np.float32)
    bank = rng.normal(size=(n_bank, 4)).astype(np.float32)
    k = min(5, n_bank)
    rows, scores = retrieval.most_similar(queries, bank, k)
    full = queries.astype(float) @ bank.T.astype(float)
    np.testing.assert_allclose(scores, -np.sort(-full, axis=1)[:, :k], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(full, rows, axis=1), scores, rtol=1e-4, atol=1e-5)
    assert all(len(set(row)) == k for row in rows.tolist())


def test_blocks_do_not_change_the_result(monkeypatch):
    rng = np.random.default_rng(0)
    queries, bank = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(40, 8)).astype(np.float32)
    whole = retrieval.most_similar(queries, bank, 7)
    monkeypatch.setattr(retrieval, "_BLOCK", 100)
    parts = retrieval.most_similar(queries, bank, 7)
    np.testing.assert_array_equal(whole[0], parts[0])
    np.testing.assert_allclose(whole[1], parts[1], rtol=1e-6)


def test_weights():
    weights = retrieval.similarity_weights(np.array([[3.0, 1.0, -2.0], [-1.0, -1.0, -1.0]]))
    np.testing.assert_allclose(weights, [[0.75, 0.25, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert weights.sum(axis=1) == pytest.approx(1)
