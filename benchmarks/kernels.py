"""The hot steps at small sizes, under pytest-benchmark: ``make bench-kernels`` tells which got slower since last time.

No part of the tests: pytest collects this file only where it is named.
"""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from scipy import sparse

import hibiost as hb
from hibiost.images.resize import resize_into
from hibiost.model.retrieval import most_similar
from hibiost.model.ridge import fit_ridge
from hibiost.spatial.neighbors import fused_neighbors, region_graph
from hibiost.spatial.regions import leiden
from hibiost.spatial.vote import majority_vote

hb.settings.verbosity, hb.settings.progress = "error", False


@pytest.fixture
def rng() -> np.random.Generator:
    """The same draws for each."""
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def spots() -> tuple[np.ndarray, np.ndarray]:
    """Places of 2,000 spots, and embeddings that follow them."""
    rng = np.random.default_rng(1)
    xy = rng.uniform(0, 1_000, (2_000, 2))
    features = np.sin(xy @ rng.normal(0, 0.01, (2, 128))) + 0.3 * rng.normal(size=(2_000, 128))
    return xy, features.astype(np.float32)


def test_sentences(benchmark: BenchmarkFixture, rng: np.random.Generator) -> None:
    """1,000 spots x 6,000 genes."""
    rate = rng.gamma(0.3, 4, 6_000)
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(rate, (1_000, 6_000)).astype(np.float32)))
    timed(benchmark, hb.pp.tfidf_sentences, adata, weights=False)


def test_overlaps(benchmark: BenchmarkFixture, rng: np.random.Generator) -> None:
    """2,000 sentences x 1,000 sets."""
    sentences = np.argsort(rng.random((2_000, 3_000)), axis=1)[:, :250].astype(np.int32)
    members = sparse.random(1_000, 3_000, density=0.01, format="csr", rng=rng)
    timed(benchmark, hb.genes.overlap_coefficients, sentences, members, threshold=0.1)


def test_fused_neighbors(benchmark: BenchmarkFixture, spots: tuple[np.ndarray, np.ndarray]) -> None:
    """2,000 spots, 128 dimensions."""
    timed(benchmark, fused_neighbors, *spots)


def test_leiden(benchmark: BenchmarkFixture, spots: tuple[np.ndarray, np.ndarray]) -> None:
    """The graph of 2,000 spots."""
    timed(benchmark, leiden, region_graph(*fused_neighbors(*spots)))


def test_search(benchmark: BenchmarkFixture, rng: np.random.Generator) -> None:
    """1,000 queries in a bank of 20,000, 128 dimensions, the best 50."""
    queries, bank = (rng.normal(size=(n, 128)).astype(np.float32) for n in (1_000, 20_000))
    timed(benchmark, most_similar, queries, bank, 50)


def test_kmeans(benchmark: BenchmarkFixture, spots: tuple[np.ndarray, np.ndarray]) -> None:
    """2,000 spots, 7 clusters, of the best of many starts, and the vote."""
    xy, features = spots
    adata = ad.AnnData(np.zeros((len(xy), 1), np.float32), obsm={"spatial": xy, "X_image": features})
    timed(benchmark, hb.tl.cluster, adata, use_rep="X_image", n_clusters=7)


def test_resize(benchmark: BenchmarkFixture, rng: np.random.Generator) -> None:
    """A patch of hibiost-mini, 308 to 112 px."""
    pixels = rng.integers(256, size=(308, 308, 3), dtype=np.uint8)
    timed(benchmark, resize_into, np.empty((112, 112, 3), np.uint8), pixels, (0.0, 0.0, 308.0, 308.0))


def test_vote(benchmark: BenchmarkFixture, rng: np.random.Generator) -> None:
    """50,000 spots."""
    timed(benchmark, majority_vote, rng.integers(7, size=50_000), rng.uniform(0, 1_000, (50_000, 2)))


def test_patches(benchmark: BenchmarkFixture, tmp_path_factory: pytest.TempPathFactory) -> None:
    """2,000 overlapping patches of 224 pixels of a tiled TIFF."""
    adata = hb.datasets.tissue(2_000, n_genes=50, pitch_px=32, image_path=tmp_path_factory.mktemp("slide"))
    timed(benchmark, lambda: sum(len(batch) for _, batch in hb.pp.iter_patches(adata, size=224)))


def test_ridge(benchmark: BenchmarkFixture, rng: np.random.Generator) -> None:
    """2,000 spots, 256 features, 100 genes."""
    features, targets = (rng.normal(size=(2_000, n)).astype(np.float32) for n in (256, 100))
    timed(benchmark, fit_ridge, features, targets)


def timed(benchmark: BenchmarkFixture, way: Any, *args: Any, **options: Any) -> None:
    """Ten rounds after one that compiles."""
    benchmark.pedantic(way, args=args, kwargs=options, rounds=10, warmup_rounds=1)
