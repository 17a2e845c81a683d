import numpy as np
import pandas as pd
import pytest

import hibiost as hb
from hibiost.errors import DataError, ModelError


def brute_force(images, sentences, expression, k):
    """For each image: its k most similar sentences, weighted by similarity (negative ones by 0)."""
    out = []
    for image in images:
        similarity = sentences @ image
        best = np.argsort(-similarity, kind="stable")[:k]
        weights = np.clip(similarity[best], 0, None)
        weights = weights / weights.sum() if weights.sum() else np.full(k, 1 / k)
        out.append(weights @ expression[best])
    return np.array(out)


@pytest.mark.parametrize("target", ["raw", "normalized"])
def test_equals_brute_force(embedded, model, target):
    slide, reference = embedded
    hb.tl.predict(slide, reference, model=model, target=target, top_k=20)
    table = slide.obsm["predicted_expression"]
    counts = reference.X.toarray().astype(float)
    if target == "normalized":
        totals = counts.sum(axis=1, keepdims=True)
        counts = counts / totals * np.median(totals)
    expected = brute_force(slide.obsm["X_hibiost_image"], reference.obsm["X_hibiost_gene"], np.log1p(counts), 20)
    assert isinstance(table, pd.DataFrame)
    assert (table.dtypes == np.float32).all()
    assert list(table.columns) == list(reference.var_names)
    assert table.index.equals(slide.obs_names)
    np.testing.assert_allclose(table.to_numpy(), expected, rtol=1e-3, atol=1e-4)
    params = slide.uns["predicted_expression"]["params"]
    assert (params["target"], params["top_k"]) == (target, 20)
    assert ("target_sum" in params) == (target == "normalized")


def test_it_predicts_what_the_sections_hold(embedded, model):
    slide, reference = embedded
    hb.tl.predict(slide, reference, model=model, target="normalized", top_k=20)
    truth = np.log1p(slide.X.toarray())
    pcc = hb.metrics.pcc(truth, slide.obsm["predicted_expression"].to_numpy())
    markers = (slide.var["marker_of"] != "none").to_numpy()
    assert np.nanmean(pcc[markers]) > 0.3


def test_missing_embeddings_are_computed_and_the_reference_is_left_alone(embedded, model, unchanged):
    slide, reference = embedded
    hb.tl.predict(slide, reference, model=model, genes=["ERBB2"])
    expected = slide.obsm["predicted_expression"]
    bare, bank = slide.copy(), reference.copy()
    for adata in (bare, bank):
        for key in ("X_hibiost_image", "X_hibiost_gene", "predicted_expression"):
            adata.obsm.pop(key, None)
        adata.obsm.pop("gene_sentence")
        adata.uns.pop("X_hibiost")
    bank.uns.pop("spatial")
    with unchanged(bank):
        hb.tl.predict(bare, bank, model=model, genes=["ERBB2"])
    assert set(bare.obsm) == {"spatial", "predicted_expression"}
    assert np.corrcoef(bare.obsm["predicted_expression"]["ERBB2"], expected["ERBB2"])[0, 1] > 0.9


def test_a_slide_without_expression(embedded, model):
    slide, reference = embedded
    import anndata as ad

    bare = ad.AnnData(obs=slide.obs[["library_id"]], obsm={"spatial": slide.obsm["spatial"]}, uns=dict(slide.uns))
    hb.tl.predict(bare, reference, model=model, genes="IGLL5")
    assert list(bare.obsm["predicted_expression"].columns) == ["IGLL5"]


def test_the_model_of_the_embedding_is_found_again(slide, reference, model, tmp_path):
    path = model.save(tmp_path / "m")
    hb.tl.embed(slide, model=path)
    hb.tl.predict(slide, reference, genes=["MGP"])
    assert slide.uns["predicted_expression"]["fingerprint"] == model.fingerprint()


def test_embeddings_of_other_weights_are_never_mixed(embedded, model, tmp_path, unchanged):
    slide, reference = embedded
    other = hb.model.untrained(model, rng=5)
    hb.tl.predict(slide, reference, model=other, genes=["MGP"])
    assert slide.uns["predicted_expression"]["fingerprint"] == other.fingerprint()
    hb.settings.model = other.save(tmp_path / "other")
    reference.obsm.pop("X_hibiost_gene")
    with unchanged(slide), pytest.raises(ModelError, match=r"were embedded with weights .*pass the model"):
        hb.tl.predict(slide, reference, genes=["MGP"])


def test_more_neighbours_than_spots(embedded, model):
    slide, reference = embedded
    hb.tl.predict(slide, reference[:5].copy(), model=model, top_k=100, genes=["MGP"])
    assert slide.uns["predicted_expression"]["params"]["top_k"] == 5


def test_refusals(embedded, model, unchanged):
    slide, reference = embedded
    with unchanged(slide):
        with pytest.raises(DataError, match=r"'ERBB3'.*Did you mean 'ERBB2'"):
            hb.tl.predict(slide, reference, model=model, genes=["ERBB2", "ERBB3"])
        with pytest.raises(DataError, match="method is 'magic'"):
            hb.tl.predict(slide, reference, model=model, method="magic")
        with pytest.raises(DataError, match=r"target is 'normalised'.*Did you mean 'normalized'"):
            hb.tl.predict(slide, reference, model=model, target="normalised")
        with pytest.raises(DataError, match="top_k is 0"):
            hb.tl.predict(slide, reference, model=model, top_k=0)
        reference.X.data[0] = np.nan
        with pytest.raises(DataError, match="1 NaN"):
            hb.tl.predict(slide, reference, model=model)
