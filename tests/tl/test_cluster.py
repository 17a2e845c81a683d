from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits

from hibiost import metrics
from hibiost.errors import DataError, MissingSlotError
from hibiost.spatial import kmeans, majority_vote
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
    params = {"n_clusters": 2, "use_rep": REP, "together": False, "n_neighbors": 3, "n_init": 50, "max_iter": 500}
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


# -- how many clusters -----------------------------------------------------------------------------------------------


def unit(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


@pytest.mark.parametrize("n_clusters", [range(2, 6), np.array([5, 2, 4, 3])])
def test_the_number_of_highest_silhouette_is_chosen(adata, n_clusters):
    cluster(adata, n_clusters=n_clusters, n_init=5)
    found = adata.uns["cluster"]
    assert found["candidates"].tolist() == [2, 3, 4, 5]
    assert found["libraries"].tolist() == ["B", "A"]
    for slide, scores, chosen in zip(found["libraries"], found["silhouette"], found["n_clusters"], strict=True):
        rows = (adata.obs["library_id"] == slide).to_numpy()
        features = unit(adata.obsm[REP][rows])
        expected = [
            silhouette_score(features, kmeans(features, k, n_init=5, max_iter=500, rng=0).labels) for k in (2, 3, 4, 5)
        ]
        np.testing.assert_allclose(scores, expected, rtol=1e-4)
        assert chosen == 2 + np.argmax(expected) == adata.obs.loc[rows, "cluster_raw"].nunique()
    assert found["n_clusters"].tolist() == [3, 3]


def test_large_slides_are_measured_on_a_sample(adata, monkeypatch):
    everything = cluster(adata, n_clusters="auto", n_init=1, copy=True).uns["cluster"]
    monkeypatch.setattr("hibiost.tl._cluster.SILHOUETTE_SPOTS", 40)
    sampled, again = (cluster(adata, n_clusters="auto", n_init=1, copy=True).uns["cluster"] for _ in range(2))
    assert everything["candidates"].tolist() == list(range(2, 11))
    assert (sampled["silhouette"] != everything["silhouette"]).all()
    assert np.abs(sampled["silhouette"] - everything["silhouette"]).max() < 0.2
    np.testing.assert_array_equal(sampled["silhouette"], again["silhouette"])


@pytest.mark.filterwarnings("ignore:.*zarr v[23]:UserWarning")
def test_a_number_for_each_slide(adata, tmp_path):
    cluster(adata, n_clusters={"A": 2, "B": 4})
    assert adata.obs.groupby("library_id", observed=True)["cluster_raw"].nunique().to_dict() == {"A": 2, "B": 4}
    alone = cluster(adata, n_clusters=4, copy=True)
    rows = adata.obs["library_id"] == "B"
    assert adata.obs["cluster"][rows].tolist() == alone.obs["cluster"][rows].tolist()
    assert adata.uns["cluster"].keys() == {"libraries", "n_clusters", "params"}
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for back in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        assert dict(zip(back.uns["cluster"]["libraries"], back.uns["cluster"]["n_clusters"], strict=True)) == {
            "A": 2,
            "B": 4,
        }


def test_together_means_the_same_on_all_slides(adata):
    apart = cluster(adata, n_clusters=3, copy=True)
    cluster(adata, n_clusters=3, together=True)
    expected = KMeans(3, n_init=50, max_iter=500, random_state=0).fit_predict(unit(adata.obsm[REP]))
    raw = adata.obs["cluster_raw"].cat.codes.to_numpy()
    assert metrics.ari(expected, raw) == 1
    assert metrics.ari(adata.obs["truth"], adata.obs["cluster_raw"]) > 0.5
    assert (adata.obs["cluster_raw"] != apart.obs["cluster_raw"]).any()
    for slide in ("A", "B"):
        rows = np.flatnonzero(adata.obs["library_id"] == slide)
        smooth = majority_vote(raw[rows], adata.obsm["spatial"][rows], k=5)
        np.testing.assert_array_equal(adata.obs["cluster"].cat.codes.to_numpy()[rows], smooth)
    cluster(adata, n_clusters=[2, 3], together=True, n_init=5)
    assert adata.uns["cluster"]["libraries"].tolist() == ["all slides"]
    assert adata.uns["cluster"]["silhouette"].shape == (1, 2)


def test_joint_is_image_and_gene_side_by_side(adata):
    rng = np.random.default_rng(1)
    adata.obsm["X_hibiost_gene"] = rng.normal(size=(160, 5)) + 3 * np.eye(2, 5)[rng.choice(2, 160)]
    adata.obsm["both"] = np.hstack([unit(adata.obsm[REP]), unit(adata.obsm["X_hibiost_gene"])])
    expected = cluster(adata, n_clusters=4, use_rep="both", copy=True).obs["cluster_raw"]
    cluster(adata, n_clusters=4, use_rep="joint")
    assert metrics.ari(expected, adata.obs["cluster_raw"]) == 1
    assert metrics.ari(expected, cluster(adata, n_clusters=4, copy=True).obs["cluster_raw"]) < 1
    del adata.obsm["X_hibiost_gene"]
    with pytest.raises(MissingSlotError, match=r"X_hibiost_gene.*hb\.tl\.embed"):
        cluster(adata, n_clusters=4, use_rep="joint")


# -- refusals --------------------------------------------------------------------------------------------------------


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
        (None, {"n_clusters": range(2, 81)}, DataError, r"n_clusters = 80 \(and one more.*'B': 80"),
        (None, {"n_clusters": range(1, 4)}, DataError, r"n_clusters is range\(1, 4\); expected at least 2"),
        (None, {"n_clusters": []}, DataError, r"n_clusters is \[\]; expected at least one number"),
        (None, {"n_clusters": "many"}, DataError, "n_clusters is 'many'; expected 'auto'"),
        (None, {"n_clusters": {"A": 2}}, DataError, r"no number for the slides \['B'\]"),
        (None, {"n_clusters": {"A": 2, "B": 81}}, DataError, r"n_clusters = 81.*'B': 80"),
        (None, {"n_clusters": {"A1": 2, "A": 2, "B": 2}}, DataError, r"slides \['A1'\]; there are.*mean 'A'"),
        (None, {"n_clusters": {"A": 2, "B": 2}, "together": True}, DataError, "together=True clusters all at once"),
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
