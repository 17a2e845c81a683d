import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.stats import pearsonr

from hibiost.model import confidence


def mixture(rng, n_spots, n_bank):
    weights = rng.random((n_spots, n_bank)) * (rng.random((n_spots, n_bank)) < 0.4)
    weights[:, 0] += 0.1
    return weights / weights.sum(axis=1, keepdims=True)


@given(st.integers(2, 8), st.integers(2, 9), st.integers(1, 7), st.integers(1, 20), st.integers(0, 1000))
def test_correlation_ratio_equals_loops(n_spots, n_bank, n_genes, entries, seed):
    rng = np.random.default_rng(seed)
    weights = mixture(rng, n_spots, n_bank)
    values = rng.poisson(0.8, size=(n_bank, n_genes)).astype(float)
    expected = []
    for gene in range(n_genes):
        means, within = [], []
        for row in weights:
            means.append(sum(w * x for w, x in zip(row, values[:, gene], strict=True)))
            within.append(sum(w * (x - means[-1]) ** 2 for w, x in zip(row, values[:, gene], strict=True)))
        total = np.var(means) + np.mean(within)
        expected.append(np.var(means) / total if total > 1e-9 else np.nan)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(confidence, "_ENTRIES", entries)
        found = confidence.correlation_ratio(sparse.csr_matrix(weights), sparse.csr_matrix(values), weights @ values)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_its_ends():
    values = sparse.csr_matrix(np.array([[1.0, 2.0, 3.0], [5.0, 7.0, 3.0]], dtype=np.float32))
    for weights, expected in ((np.eye(2), [1, 1, np.nan]), (np.full((4, 2), 0.5), [0, 0, np.nan])):
        weights = sparse.csr_matrix(weights, dtype=np.float32)
        found = confidence.correlation_ratio(weights, values, (weights @ values).toarray())
        np.testing.assert_allclose(found, expected, atol=1e-7)


def test_its_root_is_the_correlation_with_spots_drawn_from_the_neighbours():
    rng = np.random.default_rng(0)
    values, weights = rng.gamma(1.0, 1.0, size=(40, 1)), mixture(rng, 60, 40)
    predicted = weights @ values
    eta = confidence.correlation_ratio(sparse.csr_matrix(weights), sparse.csr_matrix(values), predicted)[0] ** 0.5
    drawn = np.concatenate([rng.choice(values[:, 0], size=2000, p=row) for row in weights])
    assert pearsonr(drawn, np.repeat(predicted[:, 0], 2000)).statistic == pytest.approx(eta, abs=0.01)


SLIDES = [np.arange(0, 12), np.arange(12, 30), np.arange(30, 45), np.arange(45, 50)]


def expression():
    values = np.random.default_rng(1).poisson(1.0, size=(50, 4)).astype(float)
    values[:, 1] = 2.0  # constant everywhere
    values[:12, 2] = 0.0  # constant in one slide
    return values


def test_cross_validation_equals_loops():
    values, noise = expression(), np.random.default_rng(2).normal(size=(50, 4))
    learned = []

    def fit(training):
        learned.append(training.tolist())
        return lambda rows: np.where(np.arange(4) == 3, 1.0, values[rows] + noise[rows])

    found = confidence.cross_validate(sparse.csr_matrix(values), SLIDES, ["a", "b", "c", "d"], fit)
    of_three = [[pearsonr(values[s, g], (values + noise)[s, g]).statistic for s in SLIDES[:3]] for g in (0,)]
    of_two = [pearsonr(values[s, 2], (values + noise)[s, 2]).statistic for s in SLIDES[1:3]]
    np.testing.assert_allclose(found.expected_pcc, [np.mean(of_three), np.nan, np.mean(of_two), 0.0])
    inverse = [1 / (len(s) - 1) for s in SLIDES[:3]]
    np.testing.assert_allclose(found.noise[[0, 2]], [sum(inverse) ** 0.5 / 3, sum(inverse[1:]) ** 0.5 / 2])
    assert found.n_slides == 3  # the last is too small to be held out, but teaches
    assert learned == [[i for i in range(50) if i not in rows] for rows in SLIDES[:3]]


def test_noise_is_that_of_permuted_spots():
    values, rng = expression()[:, :1], np.random.default_rng(4)

    def fit(training):
        return lambda rows: rng.permutation(values[rows])

    found = [confidence.cross_validate(sparse.csr_matrix(values), SLIDES, list("abcd"), fit) for _ in range(200)]
    assert np.std([each.expected_pcc[0] for each in found]) == pytest.approx(found[0].noise[0], rel=0.15)


def test_groups_are_held_out_together():
    learned = []

    def fit(training):
        learned.append(training.tolist())
        return lambda rows: np.arange(len(rows) * 4.0).reshape(-1, 4)

    found = confidence.cross_validate(sparse.csr_matrix(expression()), SLIDES, ["x", "y", "x", "y"], fit)
    x, y = (np.concatenate([SLIDES[i], SLIDES[j]]).tolist() for i, j in ((0, 2), (1, 3)))
    assert learned == [y, x]
    assert found.n_slides == 3


def test_bounds_are_evenly_spread(monkeypatch):
    monkeypatch.setattr(confidence, "MAX_SLIDES", 2)
    monkeypatch.setattr(confidence, "MAX_SPOTS", 11)
    asked = []

    def fit(training):
        return lambda rows: asked.append(rows.tolist()) or np.zeros((len(rows), 4))

    confidence.cross_validate(sparse.csr_matrix(expression()), SLIDES, list("abcd"), fit)
    assert [(rows[0], rows[-1], len(rows)) for rows in asked] == [(0, 11, 11), (30, 44, 11)]


@pytest.mark.parametrize(("slides", "groups"), [(SLIDES, ["a"] * 4), ([range(5), range(5, 10)], ["a", "b"])])
def test_nothing_to_hold_out(slides, groups):
    assert confidence.cross_validate(sparse.csr_matrix(expression()), list(map(np.array, slides)), groups, None) is None


def test_slides_that_nothing_was_learnt_from():
    values, noise = expression(), np.random.default_rng(2).normal(size=(50, 4))
    found = confidence.validate(sparse.csr_matrix(values), SLIDES[:1], lambda rows: values[rows] + noise[rows])
    expected = pearsonr(values[:12, 0], (values + noise)[:12, 0]).statistic
    np.testing.assert_allclose(found.expected_pcc[:3], [expected, np.nan, np.nan])
    np.testing.assert_allclose(found.noise[0], 1 / np.sqrt(11))
    assert found.n_slides == 1
    assert confidence.validate(sparse.csr_matrix(values), SLIDES[3:], None) is None
