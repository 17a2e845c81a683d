import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse
from scipy.stats import false_discovery_control, fisher_exact

import hibiost as hb
from hibiost.errors import DataError, MissingSlotError

GENES = [f"G{i}" for i in range(12)]
KEY, PATHWAYS = "rank_keywords", "rank_keywords_pathways"


@pytest.fixture
def adata():
    """60 spots in three groups, one spot without; group ``b`` speaks of G3, group ``T/NK`` of the pathway ``two``."""
    rng = np.random.default_rng(0)
    labels = np.array(["a"] * 25 + ["b"] * 20 + ["T/NK"] * 14 + [None])
    chance = np.full((60, 12), 0.4)
    chance[labels == "b", 3] = 0.95
    chance[:, 11] = 0
    counts = rng.poisson(2, (60, 12)) * (rng.random((60, 12)) < chance)
    counts[:, 0] += 1
    adata = ad.AnnData(
        sparse.csr_matrix(counts, dtype=np.float32), obs=pd.DataFrame(index=[f"s{i}" for i in range(60)])
    )
    adata.var_names = GENES
    adata.obs["kind"] = pd.Categorical(labels)
    hb.pp.tfidf_sentences(adata, n_genes=4)
    overlap = rng.uniform(0.2, 1, (60, 2)) * (rng.random((60, 2)) < [0.3, 0.2])
    overlap[labels == "T/NK", 1] = 0.5
    adata.obsm["pathway_overlap"] = sparse.csr_matrix(overlap, dtype=np.float32)
    adata.uns["pathway_overlap"] = {"pathways": np.array(["one", "two"], dtype=object), "params": {}}
    return adata


def row_of(adata, group, name, key=KEY):
    return sc.get.rank_genes_groups_df(adata, group=group, key=key).set_index("names").loc[name]


def field(adata, table, group, name, key=KEY):
    found = adata.uns[key]
    return found[table][group][list(found["names"][group]).index(name)]


def test_genes_equal_fisher_on_the_sentences(adata):
    assert hb.tl.rank_keywords(adata, "kind") is None
    words = hb.get.sentences(adata).str.split()
    labelled = adata.obs["kind"].notna()
    tfidf = adata.layers["tfidf"].toarray()
    for group in ("a", "b", "T/NK"):
        inside = (adata.obs["kind"] == group).to_numpy()
        rest = (labelled & ~inside).to_numpy()
        for gene in GENES[1:11]:
            held = words.apply(lambda sentence, gene=gene: gene in sentence).to_numpy()
            table = [[(held & part).sum(), (~held & part).sum()] for part in (inside, rest)]
            row = row_of(adata, group, gene)
            assert row["pvals"] == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
            assert field(adata, "shares", group, gene) == held[inside].mean()
            assert field(adata, "shares_rest", group, gene) == held[rest].mean()
            weights = tfidf[:, GENES.index(gene)]
            assert field(adata, "means", group, gene) == pytest.approx(weights[inside].mean())
            assert field(adata, "means_rest", group, gene) == pytest.approx(weights[rest].mean())
        scores = adata.uns[KEY]["scores"][group]
        assert (np.diff(scores) <= 0).all()
        unseen = row_of(adata, group, "G11")
        assert unseen[["scores", "pvals", "pvals_adj", "logfoldchanges"]].tolist() == [0, 1, 1, 0]
        table = sc.get.rank_genes_groups_df(adata, group=group, key=KEY).set_index("names")
        assert set(table.index) == set(GENES)
        held_by_any = table.drop(["G0", "G11"])  # one is in every spot, the other in none: no sentence holds them
        expected = false_discovery_control(held_by_any["pvals"])
        np.testing.assert_allclose(held_by_any["pvals_adj"], expected)
    best = sc.get.rank_genes_groups_df(adata, group="b", key=KEY).iloc[0]
    assert best["names"] == "G3"
    assert best["pvals_adj"] < 0.01
    assert best["logfoldchanges"] > 1


def test_pathways_equal_fisher_on_the_positives(adata):
    hb.tl.rank_keywords(adata, "kind")
    overlap = adata.obsm["pathway_overlap"].toarray()[:59]
    inside = (adata.obs["kind"] == "T/NK").to_numpy()[:59]
    positive = overlap[:, 1] > 0
    table = [[(positive & part).sum(), (~positive & part).sum()] for part in (inside, ~inside)]
    row = row_of(adata, "T/NK", "two", PATHWAYS)
    assert row["pvals"] == pytest.approx(fisher_exact(table, alternative="greater").pvalue)
    assert row["pvals_adj"] < 0.01
    assert field(adata, "means", "T/NK", "two", PATHWAYS) == pytest.approx(overlap[inside, 1].mean())
    assert field(adata, "means_rest", "T/NK", "two", PATHWAYS) == pytest.approx(overlap[~inside, 1].mean())
    assert sc.get.rank_genes_groups_df(adata, group=None, key=PATHWAYS)["group"].nunique() == 3
    del adata.obsm["pathway_overlap"]
    hb.tl.rank_keywords(adata, "kind")
    assert PATHWAYS not in adata.uns


def test_it_finds_the_markers_of_the_tissue():
    adata = hb.datasets.tissue(200)
    hb.pp.tfidf_sentences(adata, n_genes=30)
    hb.tl.rank_keywords(adata, "region_truth")
    for region in adata.obs["region_truth"].unique():
        best = sc.get.rank_genes_groups_df(adata, group=region, key=KEY)["names"].head(5)
        assert (adata.var["marker_of"][best] == region).mean() >= 0.8


def test_scanpy_draws_it(adata):
    from matplotlib import pyplot as plt

    hb.tl.rank_keywords(adata, "kind")
    drawn = adata[:59].copy()
    sc.pl.rank_genes_groups(drawn, key=KEY, n_genes=3, show=False)
    assert next(text.get_text() for text in plt.gcf().axes[2].texts) == "G3"
    sc.pl.rank_genes_groups(drawn, key=PATHWAYS, n_genes=2, show=False)
    for options in ({}, {"values_to_plot": "logfoldchanges"}, {"values_to_plot": "log10_pvals_adj"}):
        axes = sc.pl.rank_genes_groups_dotplot(drawn, key=KEY, n_genes=2, show=False, dendrogram=False, **options)
        assert "G3" in [label.get_text() for label in axes["mainplot_ax"].get_xticklabels()]


@pytest.mark.filterwarnings("ignore:.*zarr v[23]:UserWarning")
def test_round_trip_and_subsets(adata, tmp_path):
    hb.tl.rank_keywords(adata, "kind")
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata.write_zarr(tmp_path / "a.zarr")
    expected = sc.get.rank_genes_groups_df(adata, group=None, key=KEY)
    for back in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr"), adata[:5, :3].copy()):
        pd.testing.assert_frame_equal(sc.get.rank_genes_groups_df(back, group=None, key=KEY), expected)
        assert back.uns[PATHWAYS]["params"] == adata.uns[PATHWAYS]["params"]
    cut = hb.tl.rank_keywords(adata[:, :6].copy(), "kind", copy=True)
    pd.testing.assert_frame_equal(sc.get.rank_genes_groups_df(cut, group=None, key=KEY), expected)
    assert field(cut, "means", "b", "G3") == field(adata, "means", "b", "G3")
    assert np.isnan(field(cut, "means", "b", "G8"))


def test_a_group_of_one_spot_is_told_and_counts_as_rest(adata, caplog):
    adata.obs["kind"] = adata.obs["kind"].cat.add_categories("lonely")
    adata.obs.loc["s0", "kind"] = "lonely"
    with caplog.at_level("WARNING", logger="hibiost"):
        hb.tl.rank_keywords(adata, "kind")
    assert "1 groups of obs['kind'] are a single spot and not ranked: ['lonely']" in caplog.text
    assert adata.uns[KEY]["names"].dtype.names == ("T/NK", "a", "b")
    held = hb.get.sentences(adata).str.split().apply(lambda s: "G3" in s)[:59]
    rest = (adata.obs["kind"] != "b").to_numpy()[:59]
    assert field(adata, "shares_rest", "b", "G3") == held[rest].mean()


def test_refused_with_nothing_written(adata):
    adata.obs["one"] = "same"
    adata.obs["each"] = [f"c{i}" for i in range(60)]
    adata.obs["value"] = 0.5
    before = set(adata.uns)
    for groupby, error, message in (
        ("one", DataError, r"holds the groups \['same'\]; expected two or more"),
        ("each", DataError, "each of the 60 groups .* is a single spot"),
        ("value", DataError, "continuous values"),
        ("kinds", MissingSlotError, "no obs.*Did you mean 'kind'"),
    ):
        with pytest.raises(error, match=message):
            hb.tl.rank_keywords(adata, groupby)
    adata.obsm["gene_sentence"][:] = -1
    with pytest.raises(DataError, match="no sentence in obsm.* holds a gene"):
        hb.tl.rank_keywords(adata, "kind")
    del adata.obsm["gene_sentence"]
    with pytest.raises(MissingSlotError, match=r"hb\.pp\.tfidf_sentences"):
        hb.tl.rank_keywords(adata, "kind")
    assert set(adata.uns) == before
