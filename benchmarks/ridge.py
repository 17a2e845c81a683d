"""hibiost's ridge regression beside scikit-learn's RidgeCV: seconds, CPU seconds, memory, penalty and predictions.

``python benchmarks/ridge.py [N_SPOTS N_FEATURES N_GENES]`` fits each in a process of its own on the same random data,
float32, and prints Markdown.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from typing import Any

import numpy as np
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hibiost.model.ridge import ALPHAS, fit_ridge

N_QUERIES = 1000


def data(n_spots: int, n_features: int, n_genes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of falling variance, targets that follow them with noise, and features to predict for."""
    rng = np.random.default_rng(0)
    spread = (np.arange(1, n_features + 1) ** -0.5).astype(np.float32)
    features = rng.normal(size=(n_spots + N_QUERIES, n_features)).astype(np.float32) * spread + 1
    slopes = rng.normal(size=(n_features, n_genes)).astype(np.float32)
    targets = features[:n_spots] @ slopes + 20 * rng.normal(size=(n_spots, n_genes)).astype(np.float32)
    return features[:n_spots], targets, features[n_spots:]


def fitted(name: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Fit one of the two; seconds, memory added (GB), penalty, predictions."""
    features, targets, queries = data(*shape)
    before, start, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
    if name == "hibiost":
        ridge = fit_ridge(features, targets)
        alpha, predicted = ridge.alpha, ridge.predict(queries)
    else:
        pipeline = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(features.astype(np.float64), targets)
        alpha, predicted = pipeline[-1].alpha_, pipeline.predict(queries.astype(np.float64))
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6
    return {"name": name, "seconds": seconds, "cpu": cpu, "memory": added, "alpha": alpha, "predicted": predicted}


def main(shape: tuple[int, int, int]) -> None:
    """Print the table."""
    found = []
    for name in ("hibiost", "scikit-learn"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found.append(pool.apply(fitted, (name, shape)))
    print("| {} spots x {} features x {} genes | seconds | CPU seconds | memory added (GB) | penalty |".format(*shape))
    print("|---|---|---|---|---|")
    for each in found:
        print("| {name} | {seconds:.1f} | {cpu:.1f} | {memory:.2f} | {alpha:.4g} |".format(**each))
    difference = np.abs(found[0]["predicted"] - found[1]["predicted"]).max()
    spread = found[0]["predicted"].std()
    print(f"\nLargest difference of a prediction: {difference:.1e}, where they spread by {spread:.2g}.")


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])) if len(sys.argv) > 1 else (50_000, 768, 300))  # type: ignore[arg-type]
