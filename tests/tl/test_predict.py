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


# -- weightings and trust --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", ["softmax", "uniform", "inverse_distance"])
def test_weightings_equal_brute_force(embedded, model, weighting):
    slide, reference = embedded
    hb.tl.predict(slide, reference, model=model, top_k=20, weighting=weighting)
    logs, scale = np.log1p(reference.X.toarray()), model.scale.item()
    for image, predicted in zip(
        slide.obsm["X_hibiost_image"], slide.obsm["predicted_expression"].to_numpy(), strict=True
    ):
        similarity = reference.obsm["X_hibiost_gene"].astype(float) @ image
        best = np.argsort(-similarity, kind="stable")[:20]
        weights = {
            "softmax": np.exp(scale * similarity[best]),
            "uniform": np.ones(20),
            "inverse_distance": 1 / np.square(reference.obsm["X_hibiost_gene"][best] - image).sum(axis=1),
        }[weighting]
        np.testing.assert_allclose(predicted, weights @ logs[best] / weights.sum(), rtol=1e-3, atol=1e-3)
    params = slide.uns["predicted_expression"]["params"]
    assert params["weighting"] == weighting
    assert ("scale" in params) == (weighting == "softmax")


def held_out_pcc(reference, k):
    """Mean over slides of the PCC of each gene, each slide predicted from the others."""
    logs, library = np.log1p(reference.X.toarray()), reference.obs["library_id"].to_numpy()
    found = []
    for name in reference.obs["library_id"].unique():
        held = library == name
        predicted = brute_force(
            reference.obsm["X_hibiost_image"][held], reference.obsm["X_hibiost_gene"][~held], logs[~held], k
        )
        found.append(hb.metrics.pcc(logs[held], predicted))
    return np.nanmean(found, axis=0)


def test_trust(embedded, model):
    slide, reference = embedded
    hb.tl.predict(slide, reference, model=model, top_k=20, min_pcc=0.3)
    entry = slide.uns["predicted_expression"]
    assert list(entry["genes"]) == list(reference.var_names)
    assert entry["confidence"].shape == (reference.n_vars,)
    assert ((entry["confidence"] >= 0) & (entry["confidence"] <= 1)).all()
    np.testing.assert_allclose(entry["expected_pcc"], held_out_pcc(reference, 20), atol=1e-3)
    chance = 3 * np.sqrt(2 / 99) / 2
    np.testing.assert_array_equal(entry["trusted"], entry["expected_pcc"] > max(0.3, chance))
    assert entry["params"]["min_pcc"] == 0.3
    markers = (reference.var["marker_of"] != "none").to_numpy()
    assert entry["confidence"][markers].mean() > entry["confidence"][~markers].mean()


def test_patients_are_held_out_as_a_whole(embedded, model, caplog):
    slide, reference = embedded
    reference.obs["library_id"] = (reference.obs["library_id"].astype(str) + np.tile(["l", "r"], 100)).to_numpy()
    hb.tl.predict(slide, reference, model=model, genes=["MGP"], top_k=20)
    patients = reference.copy()
    patients.obs["library_id"] = patients.obs["patient"]
    hb.tl.predict(patients, patients[:100].copy(), model=model, genes=["MGP"])  # no patient to hold out
    assert "expected_pcc" not in patients.uns["predicted_expression"]
    assert "4 slides of the reference, predicted from its other patients" in caplog.text
    assert "the reference holds 1 slide(s), of 100 spots: no expected_pcc" in caplog.text


def test_a_reference_without_image_embeddings_is_told_how(embedded, model, caplog):
    slide, reference = embedded
    hb.tl.predict(slide, reference, model=model, genes=["MGP"], calibrate=False)
    del reference.obsm["X_hibiost_image"]
    assert "embed(reference" not in caplog.text
    hb.tl.predict(slide, reference, model=model, genes=["MGP"])
    assert caplog.text.count("call hb.tl.embed(reference, model=model) first") == 1
    assert set(slide.uns["predicted_expression"]) == {"fingerprint", "params", "genes", "confidence"}


def test_genes_constant_in_the_reference(embedded, model):
    slide, reference = embedded
    counts = reference.X.toarray()
    counts[:, :2] = [0, 3]
    reference.X = type(reference.X)(counts)
    hb.tl.predict(slide, reference, model=model)
    table = hb.get.predicted_genes(slide)
    assert set(table.index[-2:]) == set(reference.var_names[:2])
    assert table.iloc[-2:][["confidence", "expected_pcc"]].isna().all(axis=None)
    assert not table.iloc[-2:]["trusted"].any()
    assert table.iloc[:-2].notna().all(axis=None)


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_trust_survives_the_disk(embedded, model, tmp_path, ending):
    import anndata as ad

    slide, reference = embedded
    hb.tl.predict(slide, reference, model=model)
    getattr(slide, f"write_{ending}")(tmp_path / f"slide.{ending}")
    back = getattr(ad, f"read_{ending}")(tmp_path / f"slide.{ending}")
    pd.testing.assert_frame_equal(hb.get.predicted_genes(back), hb.get.predicted_genes(slide), check_index_type=False)


def test_two_models_and_none_at_hand(embedded, model, unchanged):
    slide, reference = embedded
    other = hb.model.untrained(model, rng=5)
    hb.tl.embed(reference, model=other)
    names = f"spots were embedded with weights {model.fingerprint()}, the reference with {other.fingerprint()}"
    with unchanged(slide), pytest.raises(ModelError, match=rf"{names}.*the model at hibiost-mini"):
        hb.tl.predict(slide, reference)


def test_encoders_of_images_are_refused_where_sentences_are_read(embedded, encoder, unchanged):
    slide, reference = embedded
    with unchanged(slide):
        for call in (
            lambda: hb.tl.predict(slide, reference, model=encoder),
            lambda: hb.tl.retrieve(slide, reference, model=encoder),
            lambda: hb.tl.annotate(slide, ["MGP"], model=encoder),
            lambda: hb.tl.embed(slide, model=encoder, modality="gene"),
        ):
            with pytest.raises(ModelError, match=r"colours reads images only; expected a model of hb\.tl\.pretrain"):
                call()


def test_more_refusals(embedded, model, unchanged):
    slide, reference = embedded
    foreign = reference.copy()
    foreign.var_names = [f"Gene{i}" for i in range(foreign.n_vars)]
    del foreign.obsm["X_hibiost_gene"], foreign.obsm["gene_sentence"]
    with unchanged(slide):
        with pytest.raises(DataError, match=r"weighting is 'soft-max'.*Did you mean 'softmax'"):
            hb.tl.predict(slide, reference, model=model, weighting="soft-max")
        with pytest.raises(DataError, match="min_pcc is 20"):
            hb.tl.predict(slide, reference, model=model, min_pcc=20)
        with pytest.raises(DataError, match="none of the 80 genes"):
            hb.tl.predict(slide, foreign, model=model)
        reference.obsm["X_hibiost_gene"][3] = np.nan
        with pytest.raises(DataError, match=r"obsm\['X_hibiost_gene'\] holds 16 NaN"):
            hb.tl.predict(slide, reference, model=model)
