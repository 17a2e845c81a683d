from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from hibiost import metrics
from hibiost.errors import DataError, MissingSlotError
from hibiost.spatial import majority_vote
from hibiost.tl._cluster import cluster

REP = "X_hibiost_image"


@pytest.fixture
def adata() -> AnnData:
    """Two slides, their spots interleaved, with three noisy groups of directions in embedding space."""
    rng = np.random.default_rng(0)
    n = 160
    truth = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    obs = pd.DataFrame({"library_id": pd.Categorical(np.array(["B", "A"])[np.arange(n) % 2])}, index=map(str, range(n)))
    adata = AnnData(obs=obs)
    adata.obs["truth"] = truth
    adata.obsm["spatial"] = rng.uniform(0, 1000, (n, 2)) + truth[:, None] * 900
    directions = np.eye(3, 8)[truth] + rng.normal(0, 0.25, (n, 8))
    adata.obsm[REP] = (directions * rng.uniform(0.5, 20, (n, 1))).astype(np.float32)
    return adata


def test_equals_normalised_kmeans_and_the_vote_per_slide(adata):
    cluster(adata, n_clusters=3)
    for slide in ("A", "B"):
        rows = np.flatnonzero(adata.obs["library_id"] == slide)
        unit = adata.obsm[REP][rows] / np.linalg.norm(adata.obsm[REP][rows], axis=1, keepdims=True)
        expected = KMeans(3, n_init=50, max_iter=500, random_state=0).fit_predict(unit)
        raw = adata.obs["cluster_raw"].cat.codes.to_numpy()[rows]
        assert metrics.ari(expected, raw) == 1
        assert metrics.ari(adata.obs["truth"].iloc[rows], raw) > 0.5
        assert (np.diff(np.bincount(raw)) <= 0).all()
        smooth = majority_vote(raw, adata.obsm["spatial"][rows], k=5)
        np.testing.assert_array_equal(adata.obs["cluster"].cat.codes.to_numpy()[rows], smooth)
    assert (adata.obs["cluster"] != adata.obs["cluster_raw"]).any()


@pytest.mark.filterwarnings("ignore:.*zarr v[23]:UserWarning")  # anndata 0.12 announces its next default
def test_slots_written_and_round_trip(adata, tmp_path):
    assert cluster(adata, n_clusters=2, key_added="domain", n_neighbors=3) is None
    params = {"n_clusters": 2, "use_rep": REP, "n_neighbors": 3, "n_init": 50, "max_iter": 500}
    assert adata.uns["domain"] == {"params": params | {"library_key": "library_id", "rng": 0}}
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for back in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        for key in ("domain", "domain_raw"):
            assert list(back.obs[key].cat.categories) == ["0", "1"]
            assert (back.obs[key].astype(str) == adata.obs[key].astype(str)).all()
        assert back.uns["domain"]["params"] == adata.uns["domain"]["params"]


def test_same_seed_same_result_whatever_threads_and_other_slides(adata):
    first = cluster(adata, n_clusters=4, copy=True)
    assert "cluster" not in adata.obs
    with threadpool_limits(2):
        again = cluster(adata, n_clusters=4, copy=True)
    alone = cluster(adata[adata.obs["library_id"] == "A"].copy(), n_clusters=4, copy=True)
    assert first.obs["cluster"].equals(again.obs["cluster"])
    assert first.obs["cluster"][alone.obs_names].equals(alone.obs["cluster"])
    drawn = np.random.default_rng(3)
    cluster(adata, n_clusters=4, rng=drawn)
    assert adata.uns["cluster"]["params"]["rng"] == np.random.default_rng(3).integers(2**31)


def test_other_representations(adata):
    dense = cluster(adata, n_clusters=3, copy=True)
    adata.obsm["sparse"] = sparse.csr_matrix(adata.obsm[REP])
    adata.obsm["frame"] = pd.DataFrame(adata.obsm[REP], index=adata.obs_names).rename(columns=str)
    for use_rep in ("sparse", "frame"):
        cluster(adata, n_clusters=3, use_rep=use_rep)
        assert metrics.ari(dense.obs["cluster_raw"], adata.obs["cluster_raw"]) == 1


def test_no_smoothing_needs_no_coordinates(adata):
    del adata.obsm["spatial"]
    cluster(adata, n_clusters=3, n_neighbors=0)
    assert (adata.obs["cluster"] == adata.obs["cluster_raw"]).all()
    with pytest.raises(MissingSlotError, match="spatial"):
        cluster(adata, n_clusters=3)


def test_one_cluster_and_one_spot_each(adata):
    cluster(adata, n_clusters=1)
    assert set(adata.obs["cluster"]) == {"0"}
    few = adata[:8].copy()
    cluster(few, n_clusters=4, n_neighbors=0)
    assert few.obs.groupby("library_id", observed=True)["cluster"].nunique().tolist() == [4, 4]


def test_equal_sizes_are_numbered_by_first_spot():
    adata = AnnData(obs=pd.DataFrame(index=list("abcd")))
    adata.obsm[REP] = np.eye(2)[[1, 0, 0, 1]]
    cluster(adata, n_clusters=2, n_neighbors=0)
    assert adata.obs["cluster"].tolist() == ["0", "1", "1", "0"]


def with_nan(adata):
    adata.obsm[REP][3, 1] = np.nan


def with_equal_rows(adata):
    adata.obsm[REP][:] = 1


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (None, {"n_clusters": 0}, DataError, "n_clusters is 0"),
        (None, {"n_clusters": 2, "n_neighbors": -1}, DataError, "n_neighbors is -1"),
        (None, {"n_clusters": 2, "n_init": 0}, DataError, "n_init is 0"),
        (None, {"n_clusters": 2, "max_iter": 0}, DataError, "max_iter is 0"),
        (None, {"n_clusters": 81}, DataError, r"fewer spots than n_clusters = 81.*'B': 80"),
        (None, {"n_clusters": 2, "use_rep": "X_hibiost"}, MissingSlotError, r"hb\.tl\.embed.*'X_hibiost_image'"),
        (with_nan, {"n_clusters": 2}, DataError, "holds 1 NaN"),
        (with_equal_rows, {"n_clusters": 2}, DataError, "slide 'B'.*distinct"),
    ],
)
def test_refused_with_nothing_written(adata, change, options, error, message):
    if change:
        change(adata)
    columns = list(adata.obs)
    with pytest.raises(error, match=message):
        cluster(adata, **options)
    assert list(adata.obs) == columns
    assert "cluster" not in adata.uns


def test_scanpy_works_on_the_same_slots(adata):
    import scanpy as sc

    cluster(adata, n_clusters=3)
    sc.pp.neighbors(adata, use_rep=REP, n_neighbors=10)
    assert adata.obsp["connectivities"].shape == (160, 160)
    neighbours = adata.obsp["connectivities"][0].indices
    assert (adata.obs["cluster_raw"].iloc[neighbours] == adata.obs["cluster_raw"].iloc[neighbours[0]]).any()
