import numpy as np
import pytest

import hibiost as hb


def test_colour_statistics_by_hand():
    patch = np.zeros((1, 2, 2, 3), dtype=np.uint8)
    patch[0, :, :, 0] = [[0, 10], [20, 30]]
    patch[0, :, :, 1] = 7
    row = hb.benchmark.colour_statistics(patch)[0]
    red = np.array([0, 10, 20, 30])
    expected = [red.mean(), red.std(), *np.quantile(red, [0.05, 0.25, 0.5, 0.75, 0.95])]
    np.testing.assert_allclose(row[0::3], expected, rtol=1e-5)
    np.testing.assert_allclose(row[1::3], [7, 0, 7, 7, 7, 7, 7])


def test_ridge_equals_the_closed_form_at_the_penalty_of_leave_one_out():
    rng = np.random.default_rng(0)
    features, queries = rng.normal(size=(40, 5)) * [1, 2, 3, 4, 5], rng.normal(size=(7, 5))
    targets = features @ rng.normal(size=(5, 3)) + rng.normal(size=(40, 3)) + 4
    mean, sd = features.mean(0), features.std(0)
    x, y, q = (features - mean) / sd, targets - targets.mean(0), (queries - mean) / sd

    def weights(x, y, alpha):
        return np.linalg.solve(x.T @ x + alpha * np.eye(5), x.T @ y)

    errors = {}
    for alpha in np.logspace(-1, 5, 13):
        left = [np.arange(40) != i for i in range(40)]
        centred = [(features[k] - mean) / sd for k in left]
        means = [c.mean(0) for c in centred]
        predicted = [
            (x[i] - m) @ weights(c - m, targets[k] - targets[k].mean(0), alpha) + targets[k].mean(0)
            for i, (k, c, m) in enumerate(zip(left, centred, means, strict=True))
        ]
        errors[alpha] = np.mean((targets - predicted) ** 2)
    best = min(errors, key=errors.get)
    expected = q @ weights(x, y, best) + targets.mean(0)
    result = hb.benchmark.ridge(features, targets, queries=queries)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_ridge_on_one_gene_keeps_its_shape():
    assert hb.benchmark.ridge(np.arange(9.0)[:, None], np.arange(9.0), queries=np.ones((4, 1))).shape == (4, 1)


@pytest.mark.parametrize("target_sum", [None, 50.0])
def test_variable_genes_by_hand(target_sum):
    adata = hb.datasets.tissue(100, n_genes=40, n_slides=2, image=False)
    counts = adata.X.toarray().astype(float)
    if target_sum:
        counts *= target_sum / counts.sum(axis=1, keepdims=True)
    slides = adata.obs["library_id"].to_numpy()
    variance = np.mean([np.log1p(counts[slides == s]).var(axis=0) for s in ("tissue_0", "tissue_1")], axis=0)
    expected = list(adata.var_names[np.argsort(-variance)[:10]])
    assert hb.benchmark.variable_genes(adata, 10, target_sum=target_sum) == expected
