from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse
from scipy.stats import pearsonr
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from hibiost import metrics
from hibiost.errors import DataError

VALUES = st.floats(-100, 100, width=32)


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abc")), min_size=1, max_size=40))
def test_ari_nmi_equal_sklearn(pairs):
    truth, predicted = zip(*pairs, strict=True)
    assert metrics.ari(truth, predicted) == pytest.approx(adjusted_rand_score(truth, predicted))
    assert metrics.nmi(truth, predicted) == pytest.approx(normalized_mutual_info_score(truth, predicted))


@pytest.mark.parametrize("score", [metrics.ari, metrics.nmi])
def test_unlabelled_spots_are_left_out(score):
    truth = ["a", "a", "b", "b", "b", None, np.nan, "", "a"]
    predicted = pd.Series([0, 1, 1, 1, 1, 0, 1, 0, np.nan])
    expected = score(["a", "a", "b", "b", "b"], [0, 1, 1, 1, 1])
    assert score(truth, predicted) == expected < 1
    assert score(pd.Categorical([*truth[:-1], pd.NA]), predicted.to_numpy()) == expected


@pytest.mark.parametrize("score", [metrics.ari, metrics.nmi])
def test_labels_refused(score):
    with pytest.raises(DataError, match="2 spots, predicted 1"):
        score(["a", "b"], ["a"])
    with pytest.raises(DataError, match="none of the 2 spots"):
        score(["a", None], ["", "b"])


@given(hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(3, 9), st.integers(1, 4)), elements=VALUES))
def test_errors_and_pcc_equal_references(tables):
    truth, predicted = tables
    assume((np.ptp(tables, axis=1) > 1e-2).all())
    assert metrics.mse(truth, predicted) == pytest.approx(
        np.mean(
            [(a - b) ** 2 for a, b in zip(truth.ravel().astype(float), predicted.ravel().astype(float), strict=True)]
        ),
        rel=1e-4,
    )
    assert metrics.mae(truth, predicted) == pytest.approx(np.mean(np.abs(truth.astype(float) - predicted)), rel=1e-4)
    expected = [
        pearsonr(truth[:, g].astype(float), predicted[:, g].astype(float)).statistic for g in range(truth.shape[1])
    ]
    np.testing.assert_allclose(metrics.pcc(truth, predicted), expected, atol=1e-6)


def test_pcc_is_nan_where_constant_up_to_rounding():
    spread = np.arange(4.0)
    rounded = np.float32(0.1) + np.array([0, 1, 0, 1], dtype=np.float32) * np.finfo(np.float32).eps / 16
    truth = np.c_[spread, spread, np.ones(4), spread].astype(np.float32)
    predicted = np.c_[-spread, np.zeros(4), spread, rounded].astype(np.float32)
    assert np.ptp(predicted[:, 3]) > 0
    np.testing.assert_allclose(metrics.pcc(truth, predicted), [-1, np.nan, np.nan, np.nan], rtol=1e-12)


def test_sparse_frames_and_single_genes_are_taken():
    truth, predicted = np.random.default_rng(0).poisson(2, (2, 9, 3)).astype(float)
    expected = metrics.pcc(truth, predicted)
    np.testing.assert_array_equal(metrics.pcc(sparse.csr_matrix(truth), pd.DataFrame(predicted)), expected)
    np.testing.assert_array_equal(metrics.pcc(truth[:, 1], predicted[:, 1]), expected[1:2])
    assert metrics.mse(sparse.csr_array(truth), predicted) == metrics.mse(truth, predicted)


def test_tables_refused():
    table = np.ones((3, 2))
    with pytest.raises(DataError, match=r"\(3, 2\) and \(2, 2\)"):
        metrics.mse(table, table[:2])
    with pytest.raises(DataError, match="non-empty"):
        metrics.mae(table[:0], table[:0])
    with pytest.raises(DataError, match="second table holds 1 NaN"):
        metrics.pcc(table, [[1, 2], [3, np.nan], [5, 6]])
    frame = pd.DataFrame(table, columns=["A", "B"])
    with pytest.raises(DataError, match="columns of truth and predicted differ"):
        metrics.mse(frame, frame[["B", "A"]])
    with pytest.raises(DataError, match="index of truth and predicted differ"):
        metrics.mse(frame, frame.iloc[::-1])


def scores_by_hand(truth, predicted):
    """The definition, gene by gene."""
    values, flat = [], 0
    for t, p in zip(truth.T, predicted.T, strict=True):
        if len(set(t)) == 1:
            continue
        flat += len(set(p)) == 1
        values.append(pearsonr(t, p).statistic if len(set(p)) > 1 else 0.0)
    return (
        len(truth),
        np.mean((truth - predicted) ** 2),
        np.mean(abs(truth - predicted)),
        np.mean(values),
        len(values),
        flat,
    )


def test_expression_scores_against_the_definition():
    rng = np.random.default_rng(1)
    truth, predicted = np.log1p(rng.poisson(3, (2, 30, 6)))
    slides = np.array(["s2"] * 8 + ["s1"] * 20 + ["s2"] * 2)
    truth[slides == "s1", 0] = 0
    predicted[slides == "s2", 1] = 7
    predicted[slides == "s1", 0] = 7
    table = metrics.expression_scores(truth, predicted, slides=slides)
    assert list(table.index) == ["s2", "s1", "mean", "pooled"]
    assert list(table.columns) == ["n_spots", "mse", "mae", "pcc", "n_genes", "n_constant", "n_flat"]
    for name, rows in {"s1": slides == "s1", "s2": slides == "s2", "pooled": slides != ""}.items():
        n, mse, mae, pcc, n_genes, flat = scores_by_hand(truth[rows], predicted[rows])
        np.testing.assert_allclose(table.loc[name], [n, mse, mae, pcc, n_genes, 6 - n_genes, flat])
    np.testing.assert_allclose(table.loc["mean"], table.loc[["s1", "s2"]].mean())
    assert table["n_constant"].to_list() == [0, 1, 0.5, 0]
    assert table["n_flat"].to_list() == [1, 0, 0.5, 0]


def test_training_mean_scores_zero_pcc():
    truth = np.log1p(np.random.default_rng(2).poisson(3, (20, 5)))
    table = metrics.expression_scores(truth, np.tile(truth.mean(0), (20, 1)), slides=["a"] * 20)
    assert table.loc["mean", "pcc"] == 0
    assert table.loc["mean", "n_flat"] == 5


def test_a_slide_without_varying_genes_is_left_out_of_the_mean():
    truth = np.log1p(np.random.default_rng(3).poisson(3, (21, 5)))
    table = metrics.expression_scores(truth, truth, slides=pd.Categorical(["a"] * 20 + ["single"]))
    assert np.isnan(table.loc["single", "pcc"])
    assert table.loc["single", "n_constant"] == 5
    assert table.loc["mean", "pcc"] == pytest.approx(1)


def test_slides_refused():
    table = np.eye(3)
    with pytest.raises(DataError, match="2 slides for 3 spots"):
        metrics.expression_scores(table, table, slides=["a", None, "b"])
    with pytest.raises(DataError, match="'pooled'"):
        metrics.expression_scores(table, table, slides=["a", "a", "pooled"])


def recall_by_hand(queries, keys, percent):
    """Sort the keys of each query, the own key last among equals."""
    found = 0
    for i, query in enumerate(queries):
        cosine = [round(np.dot(query, key) / (np.linalg.norm(query) * np.linalg.norm(key)), 9) for key in keys]
        order = sorted(range(len(keys)), key=lambda j: (-cosine[j], j == i))
        found += i in order[: int(-(-percent * len(keys) // 100))]
    return 100 * found / len(queries)


@given(st.integers(1, 45), st.integers(1, 7), st.integers(0, 10**6))
@settings(max_examples=40)
def test_recall_equals_sorting(n, batch_size, seed):
    rng = np.random.default_rng(seed)
    queries, keys = rng.integers(-2, 3, (2, n, 3)) * 2 + 1.0
    found = metrics.recall_at_percent(queries, keys, percents=(1, 7, 10, 50, 100), batch_size=batch_size)
    assert found == {p: pytest.approx(recall_by_hand(queries, keys, p)) for p in (1, 7, 10, 50, 100)}


def test_recall_of_perfect_constant_and_random_embeddings():
    rng = np.random.default_rng(0)
    queries, keys = rng.normal(size=(2, 1000, 8)).astype(np.float32)
    assert metrics.recall_at_percent(3 * keys, keys) == {1: 100, 5: 100, 10: 100}
    constant = np.tile(queries[:1], (1000, 1))
    assert metrics.recall_at_percent(constant, constant) == {1: 0, 5: 0, 10: 0}
    for p, recall in metrics.recall_at_percent(queries, keys).items():
        assert recall == pytest.approx(p, abs=4 * np.sqrt(p * (100 - p) / 1000))


def test_recall_refused():
    with pytest.raises(DataError, match="percents"):
        metrics.recall_at_percent(np.eye(3), np.eye(3), percents=(0,))
    with pytest.raises(DataError, match="shapes"):
        metrics.recall_at_percent(np.eye(3), np.eye(2))
