"""hibiost's ridge regression beside scikit-learn's RidgeCV, on the same random data.

``python benchmarks/ridge.py`` measures 50,000 spots, 768 features and 300 genes, and writes ``docs/speed/ridge.*``;
``python benchmarks/ridge.py N_SPOTS N_FEATURES N_GENES`` only measures.
"""

from __future__ import annotations

import sys
from functools import partial

import numpy as np
from _bench import Table, seconds_of
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hibiost.model.ridge import ALPHAS, fit_ridge

N_QUERIES = 1000
OURS = "hibiost.model.ridge"


def data(n_spots: int, n_features: int, n_genes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of falling variance, targets that follow them with noise, and features to predict for."""
    rng = np.random.default_rng(0)
    spread = (np.arange(1, n_features + 1) ** -0.5).astype(np.float32)
    features = rng.normal(size=(n_spots + N_QUERIES, n_features)).astype(np.float32) * spread + 1
    slopes = rng.normal(size=(n_features, n_genes)).astype(np.float32)
    targets = features[:n_spots] @ slopes + 20 * rng.normal(size=(n_spots, n_genes)).astype(np.float32)
    return features[:n_spots], targets, features[n_spots:]


def with_hibiost(features: np.ndarray, targets: np.ndarray, queries: np.ndarray) -> tuple[float, np.ndarray]:
    """Penalty and predictions."""
    ridge = fit_ridge(features, targets)
    return ridge.alpha, ridge.predict(queries)


def with_sklearn(
    features: np.ndarray, targets: np.ndarray, queries: np.ndarray, dtype: type[np.floating]
) -> tuple[float, np.ndarray]:
    """The same, which scikit-learn finds in the precision that it is given."""
    pipeline = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(features.astype(dtype), targets.astype(dtype))
    return pipeline[-1].alpha_, pipeline.predict(queries.astype(dtype))


def main(shape: tuple[int, int, int], *, write: bool) -> None:
    """Measure one size; penalties and predictions must be the same."""
    n_spots, n_features, n_genes = shape
    given = data(*shape)
    table = Table("ridge", f"Ridge regression, the best of {len(ALPHAS)} penalties by leave-one-out.", OURS)
    products = 2 * n_spots * (n_features**2 + n_features * n_genes * len(ALPHAS))
    found = table.measure(
        f"{n_spots:,} spots x {n_features} features x {n_genes} genes",
        {
            OURS: partial(with_hibiost, *given),
            "RidgeCV, float32": partial(with_sklearn, *given, dtype=np.float32),
            "RidgeCV, float64": partial(with_sklearn, *given, dtype=np.float64),
        },
        limit=seconds_of(flops=products),
        once=("RidgeCV, float32", "RidgeCV, float64"),
    )
    (own_alpha, own), (alpha, predicted) = found[OURS], found["RidgeCV, float64"]
    difference, spread = np.abs(own - predicted).max(), predicted.std()
    if own_alpha != alpha or difference > 1e-4 * spread:
        raise SystemExit(f"penalties {own_alpha} and {alpha}, predictions {difference} apart: they disagree.")
    table.notes = (
        f"Largest difference of a prediction from RidgeCV's in float64: {difference:.1e}, where they spread by "
        f"{spread:.2g}."
    )
    if write:
        table.write()


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])) or (50_000, 768, 300), write=len(sys.argv) == 1)  # type: ignore[arg-type]
