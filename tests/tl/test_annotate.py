import anndata as ad
import numpy as np
import pandas as pd
import pytest

import hibiost as hb
from hibiost.errors import DataError
from hibiost.tl import _annotate

N_ORDERS, N_RANDOM = 6, 8
SETS = {"tumour": ["ERBB2", "GRB7", "KRT19", "EPCAM"], "plasma/B": ["IGLL5", "IGKC", "MZB1"]}


@pytest.fixture(autouse=True)
def _few_sentences(monkeypatch):
    monkeypatch.setattr(_annotate, "N_ORDERS", N_ORDERS)
    monkeypatch.setattr(_annotate, "N_RANDOM", N_RANDOM)


def known(model, genes):
    return [gene for gene in genes if gene in model.vocabulary.genes]


def mean_cosine(model, images, sentences, words):
    return np.mean([images @ model.embed_genes(model.tokenizer(one[None], words))[0] for one in sentences], axis=0)


def test_equals_the_mean_over_orders_less_that_of_random_genes(embedded, model):
    adata = embedded[1]
    assert hb.tl.annotate(adata, hb.genes.GeneSets(SETS), model=model) is None
    table = adata.obsm["pathway_score"]
    assert list(table.columns) == ["tumour", "plasma|B"]
    assert (table.dtypes == np.float32).all()
    weights = model.vocabulary.n_spots + 1
    for column, genes in zip(table, SETS.values(), strict=True):
        places = model.vocabulary.index(known(model, genes))
        random = np.random.default_rng([0, len(places)])
        draws = [
            random.choice(len(weights), len(places), replace=False, p=weights / weights.sum()) for _ in range(N_RANDOM)
        ]
        orders = np.random.default_rng(0).permuted(np.tile(places, (N_ORDERS, 1)), axis=1)
        for library, words in (("tissue_0", ["organ:breast"]), ("tissue_1", [])):
            rows = (adata.obs["library_id"] == library).to_numpy()
            images = adata.obsm["X_hibiost_image"][rows]
            expected = mean_cosine(model, images, orders, words) - mean_cosine(model, images, draws, words)
            np.testing.assert_allclose(table.loc[rows, column], expected, atol=1e-5)


def test_it_tells_tumour_from_the_rest(embedded, model):
    slide, _ = embedded
    sets = {name: list(genes.index) for name, genes in slide.var.groupby("marker_of", observed=True) if name != "none"}
    hb.tl.annotate(slide, hb.genes.GeneSets(sets), model=model)
    scores = slide.obsm["pathway_score"]
    for name in sets:
        inside = (slide.obs["region_truth"] == name).to_numpy()
        assert scores.loc[inside, name].mean() > scores.loc[~inside, name].mean()


def test_a_signature_does_not_depend_on_the_others(embedded, model):
    slide, _ = embedded
    hb.tl.annotate(slide, hb.genes.GeneSets(SETS), model=model)
    first = slide.obsm["pathway_score"]
    hb.tl.annotate(slide, hb.genes.GeneSets({"b": SETS["plasma/B"], "a": SETS["tumour"]}), model=model, rng=0)
    np.testing.assert_allclose(slide.obsm["pathway_score"]["b"], first["plasma|B"], atol=1e-6)
    np.testing.assert_allclose(slide.obsm["pathway_score"]["a"], first["tumour"], atol=1e-6)
    other = hb.tl.annotate(slide, hb.genes.GeneSets(SETS), model=model, rng=1, copy=True).obsm["pathway_score"]
    assert (other["tumour"] != first["tumour"]).any()


def test_lists_and_files(embedded, model, tmp_path):
    slide, _ = embedded
    (tmp_path / "s.gmt").write_text("signature\tx\t" + "\t".join(SETS["tumour"]) + "\n")
    tables = [
        hb.tl.annotate(slide, signatures, model=model, copy=True).obsm["pathway_score"]
        for signatures in (SETS["tumour"], {"signature": SETS["tumour"]}, tmp_path / "s.gmt")
    ]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0])


def test_long_signatures_keep_the_rarest_genes(embedded, model):
    slide, _ = embedded
    genes = list(model.vocabulary.genes)
    hb.tl.annotate(slide, hb.genes.GeneSets({"all": genes}), model=model)
    kept = slide.uns["pathway_score"]["genes"][0].split()
    most = model.tokenizer.max_genes([])
    rarest = sorted(genes, key=lambda gene: -model.vocabulary.idf[genes.index(gene)])[:most]
    assert kept == [gene for gene in genes if gene in rarest]
    assert len(kept) == most < len(genes)


@pytest.mark.filterwarnings("ignore:.*zarr v[23]:UserWarning")
def test_unknown_genes_are_told_and_all_survives_files(embedded, model, tmp_path, caplog):
    slide, _ = embedded
    sets = {"tumour": ["ERBB2", "NOGENE1", "EPCAM"], "lost": ["NOGENE2"]}
    with caplog.at_level("WARNING", logger="hibiost"):
        hb.tl.annotate(slide, hb.genes.GeneSets(sets), model=model)
    assert "2 of 4 genes are not in the model's vocabulary: NOGENE1, NOGENE2." in caplog.text
    assert "1 signatures have no gene that the model knows and are left out: lost." in caplog.text
    slide.write_h5ad(tmp_path / "a.h5ad")
    slide.write_zarr(tmp_path / "a.zarr")
    for back in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr"), slide[:, :5].copy()):
        pd.testing.assert_frame_equal(back.obsm["pathway_score"], slide.obsm["pathway_score"])
        record = back.uns["pathway_score"]
        assert [list(record[key]) for key in ("signatures", "genes", "absent")] == [
            ["tumour"],
            ["ERBB2 EPCAM"],
            ["NOGENE1"],
        ]
        assert record["fingerprint"] == model.fingerprint()


def test_refused_with_nothing_written(embedded, model, unchanged):
    slide, _ = embedded
    with unchanged(slide):
        with pytest.raises(DataError, match=r"knows none of the 2 genes .*such as 'ERBB22'.*Did you mean 'ERBB2'"):
            hb.tl.annotate(slide, hb.genes.GeneSets({"a": ["ERBB22", "NOGENE"]}), model=model)
        with pytest.raises(DataError, match="hold no genes"):
            hb.tl.annotate(slide, [], model=model)
        with pytest.raises(DataError, match="no gene sets 'reactom'.*Did you mean 'reactome'"):
            hb.tl.annotate(slide, "reactom", model=model)
