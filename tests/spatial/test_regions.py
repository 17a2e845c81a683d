from __future__ import annotations

import math
import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import igraph
import networkx as nx
import numba
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import sparse
from threadpoolctl import threadpool_limits

from hibiost import _products, metrics
from hibiost.errors import DataError
from hibiost.spatial import coherence, fused_neighbors, leiden, modularity, neighbors, region_graph, tiles

FLAVORS = ["igraph", "leidenalg"]


def fused_by_hand(xy, features, alpha, beta):
    """Eq 7, pair by pair."""
    n = len(xy)

    def cosine(u, v):
        lengths = math.hypot(*u) * math.hypot(*v)
        return math.fsum(a * b for a, b in zip(u, v, strict=True)) / lengths if lengths else 0.0

    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    space = {(i, j): math.dist(xy[i], xy[j]) for i, j in pairs}
    feature = {(i, j): round(1 - cosine(features[i], features[j]), 12) for i, j in pairs}

    def scaled(values):
        low, high = min(values.values(), default=0), max(values.values(), default=0)
        return {pair: (value - low) / ((high - low) or 1) for pair, value in values.items()}

    space, feature = scaled(space), scaled(feature)
    return {pair: alpha * space[pair] + beta * feature[pair] for pair in pairs}


def neighbors_by_hand(xy, features, k, alpha, beta):
    fused = fused_by_hand(xy, features, alpha, beta)
    n = len(xy)
    ranked = [sorted((round(fused[i, j], 9), j) for j in range(n) if j != i)[:k] for i in range(n)]
    return [[j for _, j in row] for row in ranked], [[d for d, _ in row] for row in ranked]


@st.composite
def slides(draw):
    n = draw(st.integers(1, 14))
    points = st.tuples(st.integers(0, 5), st.integers(0, 5))
    rows = st.tuples(*[st.integers(-2, 2)] * 3)
    xy = draw(st.lists(points, min_size=n, max_size=n))
    features = draw(st.lists(rows, min_size=n, max_size=n))
    weights = draw(st.sampled_from([(0.5, 0.5), (1.0, 0.0), (0.0, 1.0), (0.3, 2.0)]))
    return np.array(xy, float), np.array(features, float), draw(st.integers(1, 16)), *weights


@given(slides())
@example((np.zeros((5, 2)), np.eye(5, 3), 3, 0.5, 0.5))
@example((np.arange(10.0).reshape(5, 2), np.ones((5, 3)), 3, 0.5, 0.5))
@settings(max_examples=100)
def test_equals_eq_7_with_duplicates_and_ties(slide):
    xy, features, k, alpha, beta = slide
    indices, distances = fused_neighbors(xy, features, k=k, alpha=alpha, beta=beta)
    n = len(xy)
    assert indices.shape == distances.shape == (n, min(k, n - 1))
    assert (indices.dtype, distances.dtype) == (np.int64, np.float64)
    fused = fused_by_hand(xy, features, alpha, beta)
    same = (xy[:, None] == xy).all(axis=2) & (features[:, None] == features).all(axis=2)
    for i, (row, found) in enumerate(zip(indices.tolist(), distances.tolist(), strict=True)):
        assert sorted(zip(found, row, strict=True)) == list(zip(found, row, strict=True))
        assert found == pytest.approx([fused[i, j] for j in row], abs=1.1e-9)
        others = set(range(n)) - {i}
        assert len(set(row) & others) == len(row)
        assert found == pytest.approx(sorted(fused[i, j] for j in others)[:k], abs=1.1e-9)
        assert not any(same[j, left] and left < j for j in row for left in others - set(row))


def tissue(n=300, dims=20, seed=0):
    """A square grid, jittered, with four quarters of different embeddings."""
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, 1000, (n, 2))
    quarter = 2 * (xy[:, 0] > 500) + (xy[:, 1] > 500)
    return xy, np.eye(4, dims)[quarter] + rng.normal(0, 0.15, (n, dims)), quarter


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rough", ["bfloat16", "float32"])
def test_equals_eq_7_on_real_numbers_in_many_tiles(monkeypatch, rough, dtype):
    monkeypatch.setattr(_products, "_rough_dtype", lambda device: getattr(torch, rough))
    xy, features, _ = tissue(60)
    features = features.astype(dtype)
    whole = fused_neighbors(xy, features, k=7)
    monkeypatch.setattr(tiles, "TILE", 7)
    monkeypatch.setattr(tiles, "GROUP", 16)
    kept = fused_neighbors(xy, features, k=7)
    monkeypatch.setattr(tiles, "GROUP", 2)
    tiled = fused_neighbors(xy, features, k=7)
    expected = neighbors_by_hand(xy, features.astype(np.float64), 7, 0.5, 0.5)
    for indices, distances in (whole, kept, tiled):
        assert indices.tolist() == expected[0]
        np.testing.assert_allclose(distances, expected[1], rtol=0, atol=1.1e-9)


@pytest.mark.parametrize(
    "change",
    [
        lambda xy, f: (xy + np.array([12_345.6, -789.0]), f),
        lambda xy, f: (xy * 0.271, f),
        lambda xy, f: (xy[:, ::-1], f),
        lambda xy, f: (xy, f[:, np.random.default_rng(1).permutation(f.shape[1])]),
        lambda xy, f: (xy, f @ np.linalg.qr(np.random.default_rng(1).normal(size=(f.shape[1], f.shape[1])))[0]),
        lambda xy, f: (xy, f * np.random.default_rng(1).uniform(0.1, 90, (len(f), 1))),
    ],
    ids=["shift", "scale", "swap axes", "permute dimensions", "rotate", "scale rows"],
)
def test_does_not_depend_on(change):
    xy, features, _ = tissue()
    indices, distances = fused_neighbors(xy, features)
    changed = fused_neighbors(*change(xy, features))
    np.testing.assert_array_equal(changed[0], indices)
    np.testing.assert_allclose(changed[1], distances, rtol=0, atol=1.1e-9)


def test_permuting_spots_permutes_neighbours_and_regions():
    xy, features, quarter = tissue()
    indices, distances = fused_neighbors(xy, features)
    order = np.random.default_rng(2).permutation(len(xy))
    again, distances_again = fused_neighbors(xy[order], features[order])
    np.testing.assert_array_equal(order[again], indices[order])
    np.testing.assert_allclose(distances_again, distances[order], rtol=0, atol=1.1e-9)
    for flavor in FLAVORS:
        labels = leiden(region_graph(indices, distances), flavor=flavor, resolution=0.3)
        permuted = leiden(region_graph(again, distances_again), flavor=flavor, resolution=0.3)
        assert metrics.ari(labels[order], permuted) == 1
        assert metrics.ari(labels, quarter) > 0.9


def test_nearly_identical_embeddings_and_one_place_tell_nothing():
    xy, features, _ = tissue(50)
    noise = 1 + 1e-9 * np.random.default_rng(0).normal(size=features.shape)
    np.testing.assert_array_equal(fused_neighbors(xy, noise)[0], fused_neighbors(xy, features, beta=0)[0])
    np.testing.assert_array_equal(
        fused_neighbors(np.full_like(xy, 7.3), features)[0], fused_neighbors(xy, features, alpha=0)[0]
    )


def test_few_spots():
    indices, distances = fused_neighbors([[3, 4]], [[1, 2]])
    assert indices.shape == distances.shape == (1, 0)
    assert region_graph(indices, distances).toarray().tolist() == [[0]]
    indices, distances = fused_neighbors([[3, 4], [0, 0]], [[1, 2], [2, 1]])
    assert indices.tolist() == [[1], [0]]
    assert distances.tolist() == [[0], [0]]


@given(slides(), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=60)
def test_tiles_change_nothing(slide, tile, group):
    xy, features, k, alpha, beta = slide
    whole = fused_neighbors(xy, features, k=k, alpha=alpha, beta=beta)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE", tile)
        patch.setattr(tiles, "GROUP", group)
        tiled = fused_neighbors(xy, features, k=k, alpha=alpha, beta=beta)
    for one, other in zip(whole, tiled, strict=True):
        np.testing.assert_array_equal(one, other)


def test_tiles_out_of_reach_are_left_out(monkeypatch):
    xy, features, _ = tissue(400)
    features = features + xy / 100 @ np.random.default_rng(0).normal(size=(2, features.shape[1]))
    monkeypatch.setattr(tiles, "TILE", 16)
    monkeypatch.setattr(tiles, "GROUP", 1)
    compared, nearest = [], neighbors._nearest
    monkeypatch.setattr(neighbors, "_nearest", lambda bits, *rest: (compared.append(bits.size), nearest(bits, *rest)))
    indices, distances = fused_neighbors(xy, features, k=5)
    assert sum(compared) < len(xy) ** 2 / 2
    expected = neighbors_by_hand(xy, features, 5, 0.5, 0.5)
    assert indices.tolist() == expected[0]
    np.testing.assert_allclose(distances, expected[1], rtol=0, atol=1.1e-9)


def test_products_of_few_spots_are_taken_once(monkeypatch):
    xy, features, _ = tissue(64)
    monkeypatch.setattr(tiles, "TILE", 8)
    taken, times = [], _products.RoughRows.times
    monkeypatch.setattr(
        _products.RoughRows,
        "times",
        lambda rows, bank, room: (taken.append(len(rows) * len(bank)), times(rows, bank, room))[1],
    )
    monkeypatch.setattr(tiles, "GROUP", 8)
    fused_neighbors(xy, features)
    assert sum(taken) == 64 * (64 + 8) / 2


@given(st.lists(st.floats(-9, 9, width=32) | st.just(math.inf), min_size=1, max_size=700), st.integers(1, 100))
@settings(max_examples=60)
def test_the_bound_of_the_kth_other_is_the_lowest_of_lanes(values, k):
    judged = np.array(values, dtype=np.float32)
    width = max(256, 4 * k)
    lanes = [min(values[lane::width], default=math.inf) for lane in range(width)]
    found = neighbors._kth_other(judged, k)
    assert found == sorted(lanes)[k]
    assert found >= (sorted(values)[k] if len(values) > k else math.inf)


def test_memory_does_not_grow_with_the_pairs():
    rng = np.random.default_rng(0)
    n = 16_000
    xy, features = rng.uniform(0, 1, (n, 2)), rng.normal(size=(n, 16))
    fused_neighbors(xy[:50], features[:50])
    before = resident_peak(reset=True)
    fused_neighbors(xy, features)
    assert resident_peak() - before < 100e6 < n * n


def test_embeddings_are_not_copied_in_double_precision(monkeypatch):
    monkeypatch.setattr(_products, "_rough_dtype", lambda device: torch.bfloat16)
    rng = np.random.default_rng(0)
    xy, features = rng.uniform(0, 1, (5_000, 2)), rng.normal(size=(5_000, 512)).astype(np.float32)
    fused_neighbors(xy, features)
    tracemalloc.start()
    try:
        fused_neighbors(xy, features)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert features.nbytes / 2 < peak < features.nbytes


def resident_peak(*, reset=False):
    """Peak of resident memory in bytes, since the last reset: torch's memory is not traced by Python."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def test_graph_is_the_union_of_neighbours():
    xy, features, _ = tissue(40)
    indices, distances = fused_neighbors(xy, features, k=4)
    graph = region_graph(indices, distances)
    expected = np.zeros((40, 40))
    for i, (row, ds) in enumerate(zip(indices, distances, strict=True)):
        for j, d in zip(row, ds, strict=True):
            expected[i, j] = expected[j, i] = round(math.exp(-d), 6)
    assert graph.format == "csr"
    np.testing.assert_array_equal(graph.toarray(), expected)


def test_a_distance_of_zero_is_an_edge_of_weight_one():
    graph = region_graph(*fused_neighbors([[0, 0], [0, 0], [5, 0]], [[1, 0], [1, 0], [0, 1]], k=1))
    assert graph[0, 1] == graph[1, 0] == 1


@pytest.fixture(scope="module")
def graph():
    xy, features, _ = tissue()
    return region_graph(*fused_neighbors(xy, features))


def modularity_by_hand(dense, labels, resolution):
    """Eq 8, pair by pair."""
    strength, total = dense.sum(axis=1), dense.sum()
    n = range(len(dense))
    return sum(
        (dense[i, j] - resolution * strength[i] * strength[j] / total) / total
        for i in n
        for j in n
        if labels[i] == labels[j]
    )


@pytest.mark.parametrize("resolution", [1.0, 0.4, 3.0])
def test_modularity_equals_eq_8_and_networkx(graph, resolution):
    rng = np.random.default_rng(0)
    names = np.array(["tumour", "stroma", "fat"])[rng.integers(0, 3, graph.shape[0])]
    groups = [set(np.flatnonzero(names == name)) for name in np.unique(names)]
    found = modularity(graph, names, resolution=resolution)
    reference = nx.community.modularity(nx.from_scipy_sparse_array(graph), groups, resolution=resolution)
    assert found == pytest.approx(reference, abs=1e-12)
    assert found == pytest.approx(modularity_by_hand(graph.toarray(), names, resolution), abs=1e-12)
    assert modularity(sparse.csr_matrix((3, 3)), [0, 1, 1]) == 0


@pytest.mark.parametrize("flavor", FLAVORS)
def test_two_blobs_are_found_and_numbered_by_size(flavor):
    rng = np.random.default_rng(0)
    truth = np.arange(50) % 5 == 0
    xy = rng.normal(0, 1, (50, 2)) + 30 * truth[:, None]
    features = rng.normal(0, 0.05, (50, 6)) + np.eye(2, 6)[truth.astype(int)]
    labels = leiden(region_graph(*fused_neighbors(xy, features, k=8)), flavor=flavor, resolution=0.2)
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, truth)


@pytest.mark.parametrize("flavor", FLAVORS)
def test_spots_without_edges_are_regions_of_their_own(flavor):
    assert leiden(sparse.csr_matrix((1, 1)), flavor=flavor).tolist() == [0]
    assert leiden(sparse.csr_matrix((3, 3)), flavor=flavor).tolist() == [0, 1, 2]
    pair = sparse.csr_matrix(([1.0, 1.0], ([1, 2], [2, 1])), shape=(3, 3))
    assert leiden(pair, flavor=flavor).tolist() == [1, 0, 0]


def test_leiden_reaches_the_modularity_of_the_other_flavour_and_of_networkx(graph):
    louvain = nx.community.louvain_communities(nx.from_scipy_sparse_array(graph), seed=0)
    labels = np.empty(graph.shape[0], dtype=int)
    for i, members in enumerate(louvain):
        labels[list(members)] = i
    reached = {
        flavor: np.mean([modularity(graph, leiden(graph, flavor=flavor, rng=seed)) for seed in range(5)])
        for flavor in FLAVORS
    }
    assert reached["igraph"] >= reached["leidenalg"] - 0.01
    assert reached["leidenalg"] >= modularity(graph, labels) - 0.01


@pytest.mark.parametrize("flavor", FLAVORS)
def test_seed_and_resolution_count(graph, flavor):
    first = leiden(graph, flavor=flavor, rng=3)
    np.testing.assert_array_equal(leiden(graph, flavor=flavor, rng=3), first)
    drawn = int(np.random.default_rng(7).integers(2**31))
    np.testing.assert_array_equal(
        leiden(graph, flavor=flavor, rng=np.random.default_rng(7)), leiden(graph, flavor=flavor, rng=drawn)
    )
    n_regions = [leiden(graph, flavor=flavor, resolution=r).max() + 1 for r in (0.2, 2, 8)]
    assert n_regions[0] < n_regions[1] < n_regions[2]


def test_igraph_draws_from_its_own_generator_and_then_again_from_random(graph):
    state = random.getstate()
    try:
        random.seed(1)
        first = leiden(graph, rng=0)
        random.seed(2)
        seeded = random.getstate()
        np.testing.assert_array_equal(leiden(graph, rng=0), first)
        assert random.getstate() == seeded
        igraph.Graph.Erdos_Renyi(20, p=0.5)
        assert random.getstate() != seeded
    finally:
        random.setstate(state)


RUN = """
import sys, numpy as np
from hibiost.spatial import fused_neighbors, leiden, region_graph
def run(xy, features):
    indices, distances = fused_neighbors(xy, features)
    graph = region_graph(indices, distances)
    labels = [leiden(graph, flavor=flavor, rng=5).tolist() for flavor in ("igraph", "leidenalg")]
    return str([indices.tolist(), distances.tolist(), labels])
"""


def test_same_in_other_processes_and_with_other_threads(tmp_path):
    xy, features, _ = tissue(dims=200)
    np.savez(tmp_path / "slide.npz", xy=xy, features=features)
    here = {}
    exec(RUN, here)
    n_threads = numba.get_num_threads()
    results = []
    try:
        for threads in (1, numba.config.NUMBA_NUM_THREADS):
            numba.set_num_threads(threads)
            with threadpool_limits(threads):
                results.append(here["run"](xy, features))
    finally:
        numba.set_num_threads(n_threads)
    code = RUN + "print(run(**np.load(sys.argv[1])))"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "2")
    command = [sys.executable, "-c", code, str(tmp_path / "slide.npz")]
    other = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=True).stdout
    assert results[0] == results[1] == other.strip()


def test_coherence_equals_counting():
    xy, _, quarter = tissue(80)
    shares = []
    for i in range(80):
        others = sorted((j for j in range(80) if j != i), key=lambda j: ((xy[j] - xy[i]) ** 2).sum())
        shares.append(np.mean([quarter[j] == quarter[i] for j in others[:4]]))
    names = np.array(list("abcd"))[quarter]
    assert coherence(names, xy, k=4) == pytest.approx(np.mean(shares))
    assert 0.8 < coherence(names, xy) < coherence(np.zeros(80), xy) == 1
    assert coherence(np.arange(80), xy) == 0
    assert coherence([0, 0, 1], [[0, 0], [1, 0], [2, 0]], k=9) == pytest.approx(1 / 3)
    assert math.isnan(coherence([0], [[0, 0]]))


TWO, PAIR = [[0, 0], [1, 1]], sparse.csr_matrix([[0.0, 1.0], [1.0, 0.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fused_neighbors(TWO, [[1, 2]]), r"xy of shape \(2, 2\) and features of shape \(1, 2\)"),
        (lambda: fused_neighbors(TWO, [1, 2]), r"features of shape \(2,\)"),
        (lambda: fused_neighbors(TWO, [[1, np.nan], [np.inf, 0]]), "features holds 2 NaN"),
        (lambda: fused_neighbors([[0, 0], [0, np.nan]], TWO), "xy holds 1 NaN"),
        (lambda: fused_neighbors(TWO, TWO, k=0), "k is 0"),
        (lambda: fused_neighbors(TWO, TWO, alpha=-1), "alpha is -1 and beta 0.5"),
        (lambda: fused_neighbors(TWO, TWO, beta=np.inf), "beta inf"),
        (lambda: fused_neighbors(TWO, TWO, alpha=0, beta=0), "not both 0"),
        (lambda: region_graph(np.zeros((2, 1), int), np.zeros((2, 2))), r"indices of shape \(2, 1\)"),
        (lambda: leiden(PAIR, resolution=0), "resolution is 0"),
        (lambda: leiden(PAIR, resolution=np.nan), "resolution is nan"),
        (lambda: leiden(PAIR, flavor="leidenag"), "flavor is 'leidenag'.*'leidenalg'"),
        (lambda: leiden(PAIR[:1]), r"shape \(1, 2\)"),
        (lambda: leiden(-PAIR), "negative"),
        (lambda: leiden(PAIR * np.nan), "NaN"),
        (lambda: leiden(sparse.csr_matrix([[0, 1], [0.5, 0]])), "not symmetric"),
        (lambda: leiden(sparse.csr_matrix(np.eye(2))), "to themselves"),
        (lambda: modularity(PAIR, [0]), r"labels of shape \(1,\) for a graph of 2"),
        (lambda: modularity(PAIR, [0, 0], resolution=-1), "resolution is -1"),
        (lambda: coherence([0, 1], TWO, k=0), "k is 0"),
        (lambda: coherence([0], TWO), r"labels of shape \(1,\) and xy of shape \(2, 2\)"),
        (lambda: coherence([0, 1], [[0, 0], [0, np.inf]]), "1 NaN or infinite"),
    ],
)
def test_refused(call, message):
    with pytest.raises(DataError, match=message):
        call()
