import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hibiost.model import ridge
from hibiost.model.ridge import ALPHAS, fit_ridge


def data(n, dim, n_targets, seed):
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(n, dim)) * rng.uniform(0.1, 3, dim) + rng.normal(size=dim)).astype(np.float32)
    features[:, 0] = 1.3
    targets = features @ rng.normal(size=(dim, n_targets)) * 0.3 + rng.normal(size=(n, n_targets))
    return features, np.where(targets > 0, targets, 0).astype(np.float32)


def of_sklearn(regression, features, targets):
    return make_pipeline(StandardScaler(), regression).fit(features.astype(np.float64), targets.astype(np.float64))


@settings(max_examples=12)
@given(n=st.integers(3, 60), dim=st.integers(1, 40), n_targets=st.integers(1, 50), seed=st.integers(0, 99))
def test_equals_ridgecv_of_scikit_learn(n, dim, n_targets, seed):
    """Fewer rows than features, more targets than features, and a constant feature among them."""
    features, targets = data(n, dim, n_targets, seed)
    expected = of_sklearn(RidgeCV(ALPHAS), features, targets)
    found = fit_ridge(features, sparse.csr_matrix(targets))
    np.testing.assert_allclose(found.errors.min(), -expected[-1].best_score_, rtol=1e-6)
    for alpha, error in zip(ALPHAS[::6], found.errors[::6], strict=True):
        of_one = of_sklearn(RidgeCV([alpha]), features, targets)[-1].best_score_
        np.testing.assert_allclose(error, -of_one, rtol=1e-6)
    if np.ptp(found.errors) > 1e-9:  # a constant feature alone leaves all penalties alike
        assert found.alpha == expected[-1].alpha_
        predicted = expected.predict(features.astype(np.float64)).reshape(n, -1)
        np.testing.assert_allclose(found.predict(features), predicted, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.1, 30.0, 1e4])
def test_equals_ridge_of_scikit_learn_at_one_penalty(alpha, monkeypatch):
    features, targets = data(80, 12, 5, seed=0)
    expected = of_sklearn(Ridge(alpha), features, targets).predict(features.astype(np.float64))
    monkeypatch.setattr(ridge, "_BLOCK", 7 * 12)  # twelve blocks
    found = fit_ridge(features, targets, alphas=[alpha])
    assert found.alpha == alpha
    predicted = found.predict(features)
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, expected, atol=1e-5)


def test_blocks_change_nothing(monkeypatch):
    features, targets = data(80, 12, 30, seed=1)
    whole = fit_ridge(features, targets)
    monkeypatch.setattr(ridge, "_BLOCK", 7 * 30)
    parts = fit_ridge(features, sparse.csr_matrix(targets))
    np.testing.assert_allclose(parts.errors, whole.errors)
    np.testing.assert_allclose(parts.predict(features), whole.predict(features), atol=1e-6)


def test_a_constant_target_is_predicted_as_such():
    features, targets = data(30, 4, 3, seed=2)
    targets[:, 1] = 0.7
    np.testing.assert_allclose(fit_ridge(features, targets).predict(features)[:, 1], 0.7, rtol=1e-6)
