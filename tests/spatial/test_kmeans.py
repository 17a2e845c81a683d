from __future__ import annotations

import math
import os
import subprocess
import sys
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

import hibiost as hb
from hibiost import metrics
from hibiost.errors import DataError
from hibiost.spatial import clusters as module
from hibiost.spatial import kmeans


def squared(a, b):
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def seeds_by_hand(points, k, stream):
    """Greedy k-means++ in exact arithmetic."""
    n = len(points)
    seeds = [int(stream.integers(n))]
    draws = stream.random((k - 1, 2 + int(math.log(k))))
    nearest = [squared(point, points[seeds[0]]) for point in points]
    for cluster in range(1, k):
        tried = []
        for draw in draws[cluster - 1]:
            height, candidate = 0, -1
            while height <= Fraction(draw) * sum(nearest):
                candidate += 1
                height += nearest[candidate]
            lowered = [
                min(near, squared(point, points[candidate])) for near, point in zip(nearest, points, strict=True)
            ]
            tried.append((sum(lowered), candidate, lowered))
        _, seed, nearest = min(tried, key=lambda each: each[0])
        seeds.append(seed)
    return seeds


def lloyd_by_hand(points, seeds, max_iter):
    """Labels by Lloyd's algorithm in exact arithmetic; of centres as near as each other the first."""
    k, labels = len(seeds), None
    centers = [points[seed] for seed in seeds]
    for _ in range(max_iter):
        distances = [[squared(point, center) for center in centers] for point in points]
        new = [row.index(min(row)) for row in distances]
        if new == labels:
            break
        labels, own = new, [min(row) for row in distances]
        for cluster in range(k):
            if cluster not in labels:
                several = [i for i, label in enumerate(labels) if labels.count(label) > 1]
                farthest = max(several, key=lambda i: own[i])
                labels[farthest], own[farthest] = cluster, 0
        members = [[p for p, label in zip(points, labels, strict=True) if label == c] for c in range(k)]
        centers = [tuple(sum(column) / len(rows) for column in zip(*rows, strict=True)) for rows in members]
    return labels, sum(squared(point, centers[label]) for point, label in zip(points, labels, strict=True))


def exact(features):
    return [tuple(Fraction(float(value)) for value in row) for row in features]


@st.composite
def tables(draw, values):
    n, dims = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    rows = draw(st.lists(st.tuples(*[values] * dims), min_size=n, max_size=n))
    return np.array(rows + draw(st.lists(st.sampled_from(rows), max_size=4)), dtype=float)


grids = tables(st.integers(-3, 3))
continuous = tables(st.floats(-1, 1, width=32).map(lambda value: round(value, 3)))


@given(st.one_of(grids, continuous), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=200)
def test_equals_exact_lloyd_from_greedy_seeds(features, k, rng):
    distinct = len(np.unique(features, axis=0))
    if distinct < k:
        with pytest.raises(DataError, match="expected at least n_clusters"):
            kmeans(features, k, rng=rng)
        return
    points = exact(features)
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(rng).spawn(3)]
    by_hand = [lloyd_by_hand(points, seeds_by_hand(points, k, stream), 500) for stream in streams]
    found = kmeans(features, k, n_init=1, rng=rng)
    assert metrics.ari(by_hand[0][0], found.labels) == 1
    assert found.inertia == pytest.approx(float(by_hand[0][1]), rel=1e-5, abs=1e-10)
    assert (np.diff(np.bincount(found.labels, minlength=k)) <= 0).all()
    for label, center in enumerate(found.centers):
        np.testing.assert_allclose(center, features[found.labels == label].mean(axis=0), atol=1e-6)
    tightest = min(inertia for _, inertia in by_hand)
    assert kmeans(features, k, n_init=3, rng=rng).inertia == pytest.approx(float(tightest), rel=1e-5, abs=1e-10)


@given(grids, st.lists(st.integers(0, 99), min_size=1, max_size=5), st.integers(1, 4))
@settings(max_examples=200)
def test_equals_exact_lloyd_where_clusters_are_empty(features, drawn, max_iter):
    seeds = np.array([drawn[: len(features)]]) % len(features)
    grid = module._grid(features)
    state = module._begin(grid, seeds)
    module._lloyd(grid, state, max_iter, least_shift=0.0)
    labels, _ = lloyd_by_hand(exact(features), seeds[0].tolist(), max_iter)
    assert state.labels[0].tolist() == labels
    np.testing.assert_array_equal(state.sizes[0], np.bincount(labels, minlength=seeds.size))


def noisy(n, dims, seed, noise=2.0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(9, dims))[rng.integers(9, size=n)] + rng.normal(0, noise, (n, dims))
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


def nearly_even(n, dims, seed):
    """Two clusters along one dimension, and rows that single precision cannot tell to be of one or the other."""
    rng = np.random.default_rng(seed)
    features = rng.integers(-1000, 1001, (n, dims)).astype(float)
    features[:, 0] = rng.choice([-30_000, 30_000], n)
    features[: n // 3, 0] = rng.integers(-3, 4, n // 3)
    return features


CASES = {
    "directions": (noisy(800, 512, 0), 7),
    "far from 0": (noisy(600, 64, 1) + np.float32(100), 5),
    "repeated rows": (np.repeat(noisy(150, 32, 2), 3, axis=0), 6),
    "no clusters": (np.random.default_rng(3).normal(size=(500, 40)), 8),
    "integers": (np.random.default_rng(4).integers(0, 200, (600, 300)), 4),
    "nearly even": (nearly_even(600, 512, 5), 2),
}


@pytest.mark.parametrize("case", CASES)
def test_each_restart_equals_scikit_learn_in_double_precision(case):
    features, k = CASES[case]
    grid = module._grid(features)
    seeds = module._plus_plus(grid, k, [np.random.default_rng(seed) for seed in range(6)])
    state = module._begin(grid, seeds)
    module._lloyd(grid, state, 500, least_shift=0.0)
    for rows, labels in zip(seeds, state.labels, strict=True):
        start = features[rows].astype(np.float64)
        expected = KMeans(k, init=start, n_init=1, max_iter=500, tol=0).fit(features.astype(np.float64))
        np.testing.assert_array_equal(labels, expected.labels_)


@pytest.mark.parametrize("case", ["directions", "far from 0", "integers"])
def test_inertia_is_that_of_scikit_learn(case):
    features, k = CASES[case]
    expected = KMeans(k, n_init=50, max_iter=500, random_state=0).fit(features.astype(np.float64)).inertia_
    found = kmeans(features, k)
    assert found.inertia <= expected * (1 + 1e-4)
    assert found.inertia == pytest.approx(np.square(features - found.centers[found.labels]).sum(), rel=1e-4)


def test_restarts_are_as_good_as_those_of_scikit_learn():
    features, k = CASES["repeated rows"]
    theirs = [KMeans(k, n_init=1, random_state=seed).fit(features.astype(np.float64)).inertia_ for seed in range(200)]
    ours = [kmeans(features, k, n_init=1, rng=seed).inertia for seed in range(200)]
    error = math.hypot(np.std(theirs), np.std(ours)) / math.sqrt(200)
    assert abs(np.mean(theirs) - np.mean(ours)) < 3 * error
    assert error < 0.005 * np.mean(theirs)


@pytest.mark.data
def test_inertia_on_a_real_section():
    adata = hb.datasets.her2st("C6")
    features = np.log1p(adata.X[:, np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel())[:200]].toarray())
    expected = KMeans(4, n_init=50, max_iter=500, random_state=0).fit(features)
    found = kmeans(features, 4)
    assert found.inertia <= expected.inertia_ * (1 + 1e-4)


def test_more_restarts_are_no_worse_and_blocks_and_batches_change_nothing(monkeypatch):
    features, k = CASES["no clusters"]
    inertias = [kmeans(features, k, n_init=n_init).inertia for n_init in (1, 2, 5, 50)]
    assert inertias == sorted(inertias, reverse=True)
    assert inertias[0] > inertias[-1]
    whole = kmeans(features, k)
    monkeypatch.setattr(module, "BLOCK_BYTES", 8 * 40 * 7)
    monkeypatch.setattr(module, "BATCH_BYTES", 3 * module._bytes_of_restart(500, 40, k))
    pieces = kmeans(features, k)
    np.testing.assert_array_equal(whole.labels, pieces.labels)
    np.testing.assert_array_equal(whole.centers, pieces.centers)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BYTES", 1 << 20)
    monkeypatch.setattr(module, "BATCH_BYTES", 6 << 20)
    features = np.random.default_rng(0).normal(size=(20_000, 32)).astype(np.float32)
    kmeans(features[:50], 3)
    tracemalloc.start()
    kmeans(features, 4, n_init=20, max_iter=3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < features.nbytes + (6 << 20) + (4 << 20)


def test_same_whatever_threads():
    code = (
        "import hashlib, numpy as np, hibiost as hb\n"
        "features = np.random.default_rng(0).normal(size=(3000, 24)).astype('f4')\n"
        "found = hb.spatial.kmeans(features, 6, n_init=8, rng=3)\n"
        "print(hashlib.sha256(found.labels.tobytes() + found.centers.tobytes()).hexdigest())\n"
    )
    found = []
    for n_threads in ("1", "2"):
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), n_threads)
        run = subprocess.run([sys.executable, "-c", code], env=os.environ | threads, capture_output=True, check=True)
        found.append(run.stdout)
    assert found[0] == found[1]
    assert len(found[0]) > 60


def test_one_cluster_one_row_each_and_a_generator():
    features = np.random.default_rng(0).normal(size=(9, 4))
    one = kmeans(features, 1)
    assert one.labels.tolist() == [0] * 9
    assert one.inertia == pytest.approx(9 * features.var(axis=0).sum())
    every = kmeans(features, 9)
    assert every.labels.tolist() == list(range(9))
    assert every.inertia < 1e-12
    np.testing.assert_allclose(every.centers, features, atol=1e-6)
    drawn = np.random.default_rng(5)
    seed = int(np.random.default_rng(5).integers(2**31))
    np.testing.assert_array_equal(
        kmeans(features, 3, n_init=1, rng=drawn).labels, kmeans(features, 3, n_init=1, rng=seed).labels
    )
    assert kmeans(np.full((3, 2), 7), 1).centers.tolist() == [[7, 7]]


@pytest.mark.parametrize(
    ("features", "options", "message"),
    [
        ([1.0, 2.0], {}, r"shape \(2,\); expected numbers, n_rows x n_dims"),
        ([["a"]], {}, "expected numbers"),
        ([[1.0], [np.nan]], {}, "1 values that are NaN"),
        ([[1e200], [1.0]], {}, "1 values that are NaN, infinite or beyond 1e"),
        ([[1.0]], {"n_clusters": 2}, "1 rows; expected at least n_clusters = 2"),
        ([[1.0], [1.0], [2.0]], {"n_clusters": 3}, "2 distinct rows; expected at least n_clusters = 3"),
        ([[1.0]], {"n_clusters": 0}, "n_clusters is 0"),
        ([[1.0]], {"n_init": 0}, "n_init is 0"),
        ([[1.0]], {"max_iter": 0}, "max_iter is 0"),
    ],
)
def test_refused(features, options, message):
    with pytest.raises(DataError, match=message):
        kmeans(features, **{"n_clusters": 1, **options})
