"""The README's calls on a real section: what the verbs write survives files and subsetting, and scanpy and squidpy."""

import warnings

import anndata as ad
import numpy as np
import pytest

import hibiost as hb

pytestmark = pytest.mark.data

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"timm_model_name": "resnet10t", "timm_pool": "avg", "image_size": 32},
    "text_cfg": {"context_length": 280, "width": 16, "heads": 2, "layers": 1},
    "recipe": {"epochs": 1, "batch_size": 64, "lr": 1e-3},
}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Section C2 after all verbs, with C3 as training section and reference."""
    reference, adata = hb.datasets.her2st("C3"), hb.datasets.her2st("C2")
    model = hb.tl.pretrain(reference, image_encoder=hb.model.ModelConfig.from_dict(TINY))
    with hb.settings.override(model=model.save(tmp_path_factory.mktemp("model"))):
        hb.pp.tfidf_sentences(adata)
        hb.tl.embed(adata)
        hb.tl.cluster(adata, n_clusters=6)
        hb.tl.predict(adata, reference)
    return adata


def same(first, second):
    np.testing.assert_array_equal(first.X.toarray(), second.X.toarray())
    np.testing.assert_allclose(first.layers["tfidf"].toarray(), second.layers["tfidf"].toarray())
    for key in ("gene_sentence", "X_hibiost_image", "X_hibiost_gene", "spatial"):
        np.testing.assert_array_equal(first.obsm[key], second.obsm[key])
    a, b = first.obsm["predicted_expression"], second.obsm["predicted_expression"]
    assert list(a.columns) == list(b.columns)
    np.testing.assert_array_equal(a.to_numpy(), b.to_numpy())
    for key in ("cluster", "cluster_raw"):
        assert list(first.obs[key]) == list(second.obs[key])
    assert list(hb.get.sentences(first)) == list(hb.get.sentences(second))
    for key in ("gene_sentence", "X_hibiost", "cluster", "predicted_expression"):
        assert first.uns[key]["params"].keys() == second.uns[key]["params"].keys()


def test_the_three_calls(result):
    sentences = hb.get.sentences(result)
    assert sentences.str.split().str.len().max() == 250
    assert result.obsm["X_hibiost_image"].shape == (187, 16)
    figure = hb.pl.spatial_pred(result, gene="IGLL5")
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[0] == "IGLL5 measured"
    assert "PCC" in titles[1]


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_round_trip(result, tmp_path, ending):
    path = tmp_path / f"adata.{ending}"
    fewer = result[:, :2000].copy()
    fewer.obsm["predicted_expression"] = fewer.obsm["predicted_expression"].iloc[:, :200]
    getattr(fewer, f"write_{ending}")(path)
    again = getattr(ad, f"read_{ending}")(path)
    same(fewer, again)
    hb.pl.spatial_clusters(again)
    hb.pl.spatial_pred(again, gene=str(fewer.obsm["predicted_expression"].columns[0]))
    with hb.settings.override(verbosity="error"):
        hb.tl.cluster(again, n_clusters=3)


def test_subsetting_spots_and_genes(result):
    spots = np.arange(0, result.n_obs, 2)
    part = result[spots, :50].copy()
    assert list(hb.get.sentences(part)) == list(hb.get.sentences(result).iloc[spots])
    np.testing.assert_array_equal(part.obsm["X_hibiost_gene"], result.obsm["X_hibiost_gene"][spots])
    hb.tl.cluster(part, n_clusters=3)
    gene = result.obsm["predicted_expression"].columns[100]
    assert gene not in part.var_names
    assert len(hb.pl.spatial_pred(part, gene=gene).axes) < len(hb.pl.spatial_pred(result, gene=gene).axes)


def test_scanpy_and_squidpy_run_on_it(result):
    import scanpy as sc
    import squidpy as sq

    adata = result.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.neighbors(adata, use_rep="X_hibiost_image")
        sc.tl.rank_genes_groups(adata, "cluster", layer="tfidf", method="t-test")
        sq.gr.spatial_neighbors(adata, library_key="library_id")
        sq.gr.nhood_enrichment(adata, cluster_key="cluster", show_progress_bar=False)
        sq.pl.spatial_scatter(adata, color="cluster", library_id="C2")
    assert adata.obsp["spatial_connectivities"].shape == (187, 187)
    assert adata.obsp["connectivities"].nnz > 0


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_every_term_of_the_objective_falls(precision):
    """All three levels on real sections, with Reactome."""
    reference = hb.datasets.her2st(["C2", "C3"])
    recipe = {"epochs": 24, "region_start": 8, "region_every": 8, "precision": precision}
    config = hb.model.ModelConfig.from_dict(TINY)
    history = hb.tl.pretrain(
        reference, image_encoder=config, pathways="reactome", recipe={**TINY["recipe"], **recipe}
    ).training_info["history"]
    assert all(np.isfinite(value) for entry in history for value in entry.values())
    for term, first in (("spot", 0), ("pathway", 0), ("region", 8)):
        assert np.mean([entry[term] for entry in history[-3:]]) < history[first][term], term
    assert list(reference.obsm["region_history"]) == ["0", "8", "16"]
