from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import hibiost as hb
from hibiost import metrics
from hibiost.errors import DataError, MissingSlotError
from hibiost.spatial import coherence, fused_neighbors, leiden, modularity, region_graph
from hibiost.tl._regions import regions

IMAGE, GENE = "X_hibiost_image", "X_hibiost_gene"


@pytest.fixture
def adata() -> AnnData:
    """Two slides, their spots interleaved, each with a left and a right half that look different."""
    rng = np.random.default_rng(0)
    n = 160
    obs = pd.DataFrame({"library_id": pd.Categorical(np.array(["B", "A"])[np.arange(n) % 2])}, index=map(str, range(n)))
    adata = AnnData(sparse.csr_matrix((n, 3), dtype=np.float32), obs=obs)
    adata.obsm["spatial"] = rng.uniform(0, 1000, (n, 2))
    adata.obs["half"] = (adata.obsm["spatial"][:, 0] > 400).astype(int)
    for key, dims in ((IMAGE, 8), (GENE, 5)):
        rows = np.eye(2, dims)[adata.obs["half"]] + rng.normal(0, 0.15, (n, dims))
        adata.obsm[key] = (rows * rng.uniform(0.5, 20, (n, 1))).astype(np.float32)
    return adata


def unit(values):
    """Rounded to the precision of the representation."""
    rows = np.asarray(values, dtype=float)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.asarray(values).dtype)


@pytest.fixture
def told(caplog):
    """What hibiost says; its own logger passes it on."""
    caplog.set_level(logging.INFO, logger="hibiost")
    return caplog


def test_equals_the_array_code_per_slide(adata, told):
    assert regions(adata, n_neighbors=6, alpha=0.3, beta=0.7) is None
    numbers = adata.obs["region"].astype(int).to_numpy()
    offset = 0
    for slide in ("B", "A"):
        rows = np.flatnonzero(adata.obs["library_id"] == slide)
        xy, features = adata.obsm["spatial"][rows], np.hstack([unit(adata.obsm[key][rows]) for key in (IMAGE, GENE)])
        indices, distances = fused_neighbors(xy, features, k=6, alpha=0.3, beta=0.7)
        graph = region_graph(indices, distances)
        labels = leiden(graph)
        np.testing.assert_array_equal(numbers[rows], labels + offset)
        block = adata.obsp["region_distances"][rows]
        np.testing.assert_array_equal(np.diff(block.indptr), 6)
        dense = block.toarray()
        np.testing.assert_array_equal(dense[np.arange(80)[:, None], rows[indices]], distances)
        np.testing.assert_array_equal(adata.obsp["region_connectivities"][rows][:, rows].toarray(), graph.toarray())
        line = f"slide '{slide}': {labels.max() + 1} regions of 80 spots, modularity {modularity(graph, labels):.3f}"
        assert f"{line}, coherence in space {coherence(labels, xy):.3f}." in told.text
        offset += labels.max() + 1
    assert f"{offset} regions in 2 slides, by X_hibiost_image and X_hibiost_gene: obs['region']" in told.text
    assert (abs(adata.obsp["region_connectivities"] - adata.obsp["region_connectivities"].T)).nnz == 0
    assert adata.obs["region"].cat.categories.tolist() == [str(i) for i in range(offset)]


def test_finds_the_halves_and_no_region_spans_two_slides(adata):
    regions(adata, resolution=0.3)
    table = pd.crosstab(adata.obs["region"], adata.obs["library_id"])
    assert ((table > 0).sum(axis=1) == 1).all()
    assert metrics.ari(adata.obs["region"], adata.obs["library_id"].astype(str) + adata.obs["half"].astype(str)) > 0.8


def test_representations(adata):
    by_default = regions(adata, copy=True)
    both = regions(adata, use_rep=[IMAGE, GENE], copy=True)
    assert by_default.obs["region"].equals(both.obs["region"])
    assert both.uns["region"]["params"]["representations"] == [IMAGE, GENE]
    adata.obsm["stretched"] = adata.obsm[GENE] * 1024
    stretched = regions(adata, use_rep=[IMAGE, "stretched"], copy=True)
    assert (abs(stretched.obsp["region_distances"] - both.obsp["region_distances"]) > 2e-9).nnz == 0
    one = regions(adata, use_rep=GENE, copy=True)
    adata.obsm["sparse"] = sparse.csr_matrix(adata.obsm[GENE])
    adata.obsm["frame"] = pd.DataFrame(adata.obsm[GENE], index=adata.obs_names).rename(columns=str)
    del adata.obsm[IMAGE]
    for use_rep in (None, "sparse", "frame", ["frame"]):
        regions(adata, use_rep=use_rep)
        assert adata.obs["region"].equals(one.obs["region"])
        assert (adata.obsp["region_distances"] != one.obsp["region_distances"]).nnz == 0


def test_same_seed_same_result_whatever_the_other_slides(adata):
    first = regions(adata, rng=3, copy=True)
    assert "region" not in adata.obs
    assert not adata.obsp
    assert first.obs["region"].equals(regions(adata, rng=3, copy=True).obs["region"])
    alone = regions(adata[adata.obs["library_id"] == "A"].copy(), rng=3, copy=True)
    both = first[alone.obs_names]
    numbers = both.obs["region"].astype(int)
    np.testing.assert_array_equal(numbers - numbers.min(), alone.obs["region"].astype(int))
    assert (both.obsp["region_connectivities"] != alone.obsp["region_connectivities"]).nnz == 0
    regions(adata, rng=np.random.default_rng(3))
    assert adata.uns["region"]["params"]["rng"] == np.random.default_rng(3).integers(2**31)


@pytest.mark.filterwarnings("ignore:.*zarr v[23]:UserWarning")  # anndata 0.12 announces its next default
def test_slots_survive_files_and_subsetting(adata, tmp_path):
    for key in ("spatial", IMAGE, GENE):
        adata.obsm[key][[2, 4]] = adata.obsm[key][0]
    regions(adata, n_neighbors=4, resolution=2, flavor="leidenalg", key_added="niche")
    found = adata.obsp["niche_distances"]
    assert found.nnz == 160 * 4
    assert found[0].data.min() == 0
    params = {"method": "hibiost", "metric": "fused", "n_neighbors": 4, "use_rep": IMAGE, "alpha": 0.5, "beta": 0.5}
    params |= {"resolution": 2, "flavor": "leidenalg", "library_key": "library_id", "rng": 0}
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    for back in (adata, ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        assert back.obs["niche"].astype(str).equals(adata.obs["niche"].astype(str))
        assert back.obs["niche"].cat.categories.tolist() == adata.obs["niche"].cat.categories.tolist()
        for name in ("niche_distances", "niche_connectivities"):
            assert back.obsp[name].nnz == adata.obsp[name].nnz
            assert (back.obsp[name] != adata.obsp[name]).nnz == 0
        entry = back.uns["niche"]
        assert (entry["distances_key"], entry["connectivities_key"]) == ("niche_distances", "niche_connectivities")
        assert list(entry["params"]["representations"]) == [IMAGE, GENE]
        assert {key: value for key, value in entry["params"].items() if key != "representations"} == params
    part = adata[adata.obs["niche"].isin(["0", "1"]), :2].copy()
    assert part.obsp["niche_connectivities"].shape == (part.n_obs, part.n_obs)
    regions(part, n_neighbors=4, resolution=2, key_added="niche")
    assert part.obsp["niche_distances"].shape == (part.n_obs, part.n_obs)


@pytest.mark.global_rng
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("use_rep", [None, GENE])
def test_scanpy_reads_the_graph(adata, use_rep):
    import scanpy as sc

    regions(adata, use_rep=use_rep, n_neighbors=10)
    slide = adata[adata.obs["library_id"] == "A"].copy()
    sc.tl.leiden(slide, neighbors_key="region", flavor="igraph", directed=False, n_iterations=-1, key_added="theirs")
    graph = slide.obsp["region_connectivities"]
    ours, theirs = (modularity(graph, slide.obs[key].astype(str)) for key in ("region", "theirs"))
    assert theirs == pytest.approx(ours, abs=0.02)
    sc.tl.umap(adata, neighbors_key="region", maxiter=5)
    assert np.isfinite(adata.obsm["X_umap"]).all()
    assert adata.obsm["X_umap"].shape == (160, 2)


@pytest.mark.global_rng
@pytest.mark.filterwarnings("ignore")
def test_squidpy_reads_the_graph(adata):
    import squidpy as sq

    regions(adata, n_neighbors=10)
    options = {"connectivity_key": "region_connectivities", "show_progress_bar": False}
    sq.gr.nhood_enrichment(adata, "region", seed=0, n_perms=20, **options)
    zscore = adata.uns["region_nhood_enrichment"]["zscore"]
    assert zscore.shape == (adata.obs["region"].nunique(),) * 2
    assert (zscore.argmax(axis=1) == np.arange(len(zscore))).all()


def test_small_slides(adata, told):
    few = adata[[0, 1, 3, 5, 7, 9]].copy()
    regions(few, n_neighbors=4)
    assert "fewer than n_neighbors + 1 = 5 spots in the slides {'B': 1}" in told.text
    assert "modularity 0.000, coherence in space nan" in told.text
    assert few.obs["region"].iloc[0] == "0"
    assert (few.obs["region"] == "0").sum() == 1
    assert np.diff(few.obsp["region_distances"].indptr).tolist() == [0, 4, 4, 4, 4, 4]
    regions(few, n_neighbors=50)
    assert "{'B': 1, 'A': 5}" in told.text
    single = adata[:1].copy()
    regions(single)
    assert single.obs["region"].tolist() == ["0"]
    assert single.obsp["region_connectivities"].nnz == single.obsp["region_distances"].nnz == 0


def test_terms_that_tell_nothing(adata, told):
    rows = (adata.obs["library_id"] == "A").to_numpy()
    adata.obsm[IMAGE][rows] = adata.obsm[IMAGE][1] * np.arange(1, 81)[:, None]
    regions(adata, use_rep=IMAGE)
    assert "slide 'A': all embeddings are identical, so the embedding term of the distance is 0" in told.text
    adata.obsm["spatial"][~rows] = 7
    regions(adata, use_rep=GENE)
    assert "slide 'B': all spots lie at one place, so the spatial term" in told.text
    assert told.text.count("tells nothing apart") == 2


def with_nan(adata):
    adata.obsm[GENE][3:5, 1] = np.nan


def with_sparse_nan(adata):
    adata.obsm["sparse"] = sparse.csr_matrix([[np.inf]] * 160)


def with_words(adata):
    adata.obsm["words"] = pd.DataFrame({"a": ["x"] * 160}, index=adata.obs_names)


def without_embeddings(adata):
    del adata.obsm[IMAGE], adata.obsm[GENE]


def without_coordinates(adata):
    del adata.obsm["spatial"]


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (None, {"n_neighbors": 0}, DataError, "n_neighbors is 0"),
        (None, {"alpha": -1}, DataError, "alpha is -1"),
        (None, {"alpha": 0, "beta": 0}, DataError, "not both 0"),
        (None, {"resolution": -1}, DataError, "resolution is -1"),
        (None, {"flavor": "igrap"}, DataError, "flavor is 'igrap'.*Did you mean 'igraph'"),
        (None, {"use_rep": "X_hibiost"}, MissingSlotError, r"hb\.tl\.embed.*'X_hibiost_image'"),
        (None, {"use_rep": "X_pca"}, MissingSlotError, r"no obsm\['X_pca'\].*sc\.pp\.pca"),
        (None, {"use_rep": []}, MissingSlotError, "no embeddings"),
        (None, {"library_key": "slide"}, MissingSlotError, "no obs"),
        (with_nan, {}, DataError, "'X_hibiost_gene'.*holds 2 NaN"),
        (with_sparse_nan, {"use_rep": "sparse"}, DataError, "'sparse'.*holds 160 NaN"),
        (with_words, {"use_rep": "words"}, DataError, "'words'.*expected numbers"),
        (without_embeddings, {}, MissingSlotError, r"no embeddings.*hb\.tl\.embed\(adata\).*use_rep=\"X_pca\""),
        (without_coordinates, {}, MissingSlotError, "spatial"),
    ],
)
def test_refused_with_nothing_written(adata, change, options, error, message):
    if change:
        change(adata)
    columns = list(adata.obs)
    with pytest.raises(error, match=message):
        regions(adata, **options)
    assert list(adata.obs) == columns
    assert not adata.obsp
    assert "region" not in adata.uns


@pytest.mark.data
def test_real_section_by_expression(her2st_dir):
    import scanpy as sc

    adata = hb.datasets.her2st("C2", image=False)
    lognorm = sc.pp.log1p(sc.pp.normalize_total(adata, copy=True), copy=True)
    adata.obsm["X_pca"] = sc.pp.pca(lognorm.X, n_comps=20)
    regions(adata, use_rep="X_pca")
    labels, xy = adata.obs["region"].astype(str).to_numpy(), adata.obsm["spatial"]
    shuffled = np.random.default_rng(0).permutation(labels)
    assert 2 <= len(set(labels)) <= 12
    assert modularity(adata.obsp["region_connectivities"], labels) > 0.3
    assert coherence(labels, xy) > 2 * coherence(shuffled, xy)
