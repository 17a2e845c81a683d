"""``hb.tl.fit_predictor``, and ``hb.tl.predict`` by regression."""

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import hibiost as hb
from hibiost.errors import DataError, ImageError, MissingSlotError, ModelError, RunError
from hibiost.model.ridge import ALPHAS
from hibiost.tl._predictor import drawn
from hibiost.tl._resolve import at_work

TUNED = {"epochs": 2, "batch_size": 32, "lr": 0.01, "precision": "32"}


def log_counts(adata, target_sum=None):
    counts = adata.X.toarray().astype(float)
    if target_sum is not None:
        counts *= target_sum / counts.sum(axis=1, keepdims=True)
    return np.log1p(counts)


def features_of(adata, model):
    batches = hb.tl._embed.of_patches(hb.inputs.slides(adata), model, at_work(model).features, batch_size=64, desc="")
    rows, values = zip(*batches, strict=True)
    return np.concatenate(values)[np.argsort(np.concatenate(rows))].astype(float)


def predicted(slide, predictor, **options):
    hb.tl.predict(slide, predictor, **options)
    return slide.obsm["predicted_expression"]


def test_a_ridge_equals_scikit_learn_on_the_features_of_the_tower(reference, slide, model):
    order = np.random.default_rng(0).permutation(reference.n_obs)
    reference = reference[order].copy()  # slides mixed
    totals = reference.X.sum(axis=1)
    for target, target_sum in (("raw", None), ("normalized", np.median(np.asarray(totals)))):
        predictor = hb.tl.fit_predictor(reference, model=model, target=target)
        expected = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(
            features_of(reference, model), log_counts(reference, target_sum)
        )
        assert predictor.params["alpha"] == expected[-1].alpha_
        assert predictor.params["loo_mse"] == pytest.approx(-expected[-1].best_score_, rel=1e-4)
        table = predicted(slide, predictor)
        assert (table.dtypes == np.float32).all()
        assert list(table.columns) == list(reference.var_names)
        np.testing.assert_allclose(table.to_numpy(), expected.predict(features_of(slide, model)), atol=2e-3)
        assert predictor.target_sum == target_sum


def test_a_ridge_on_tiled_images_is_the_same(reference, model):
    """Patches are read in the order of the tiles, and those that coincide once."""
    whole = reference[np.random.default_rng(0).permutation(reference.n_obs)[:100]].copy()
    whole.obsm["spatial"][1::2] = whole.obsm["spatial"][::2]
    tiled = whole.copy()
    tiled.uns["spatial"] = {}
    for name, entry in whole.uns["spatial"].items():
        fullres = da.from_array(entry["images"]["hires"], chunks=(100, 100, 3))
        tiled.uns["spatial"][name] = {**entry, "images": {"fullres": fullres}}
    options = {"model": model, "genes": ["MGP", "ERBB2"], "calibrate": False}
    expected, found = (hb.tl.fit_predictor(adata, **options) for adata in (whole, tiled))
    np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.bias, expected.bias, rtol=1e-4)


def test_it_predicts_what_the_sections_hold(reference, slide, model):
    table = predicted(slide, hb.tl.fit_predictor(reference, model=model, target="normalized"))
    pcc = hb.metrics.pcc(log_counts(slide), table.to_numpy())
    assert np.nanmean(pcc[(slide.var["marker_of"] != "none").to_numpy()]) > 0.4


def test_from_reference_predictor_and_folder(reference, slide, model, tmp_path, unchanged):
    options = {"genes": ["MGP", "ERBB2"], "target": "normalized"}
    with unchanged(reference):
        predictor = hb.tl.fit_predictor(reference, model=model, **options)
        hb.tl.predict(slide, reference, model=model, method="regression", calibrate=False, **options)
    expected = slide.obsm.pop("predicted_expression")
    assert list(expected.columns) == ["MGP", "ERBB2"]
    record = slide.uns.pop("predicted_expression")
    assert record.pop("genes").tolist() == ["MGP", "ERBB2"]
    assert record == {
        "fingerprint": model.fingerprint(),
        "params": {
            "method": "regression",
            "precision": "float32",
            "fit": "ridge",
            "predictor": predictor.fingerprint(),
            "slides": ["tissue_0", "tissue_1"],
            "target": "normalized",
            "target_sum": predictor.target_sum,
        },
    }
    for given_ in (predictor, predictor.save(tmp_path / "p")):
        assert predicted(slide, given_).equals(expected)
        found = slide.uns["predicted_expression"]
        assert found["fingerprint"] == record["fingerprint"]
        assert found["params"] == {**record["params"], "min_pcc": 0.2}
    assert predicted(slide, predictor, genes="ERBB2").equals(expected[["ERBB2"]])
    changed = hb.tl.predict(slide, predictor, key_added="p", copy=True)
    assert "p" not in slide.obsm
    changed.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    assert again.obsm["p"].equals(changed.obsm["p"])
    assert again.uns["p"]["params"]["predictor"] == predictor.fingerprint()


def test_the_model_of_the_embedding_is_found_again(reference, slide, model, tmp_path):
    hb.tl.embed(reference, model=model.save(tmp_path / "m"), modality="image")
    assert hb.tl.fit_predictor(reference, genes=3).model.fingerprint() == model.fingerprint()
    hb.model.untrained(model, rng=4).save(tmp_path / "m")
    with pytest.raises(ModelError, match="were embedded with weights"):
        hb.tl.fit_predictor(reference, genes=3)
    assert hb.tl.fit_predictor(slide, genes=3).model.fingerprint() == hb.model.list()["hibiost-mini"]["fingerprint"]


def test_an_encoder_of_another_package(reference, slide, encoder):
    table = predicted(slide, hb.tl.fit_predictor(reference, model=encoder, target="normalized"))
    batches = [list(hb.pp.iter_patches(adata, size=64)) for adata in (reference, slide)]
    seen = [encoder.embed_images(np.concatenate([patches for _, patches in each])) for each in batches]
    target_sum = np.median(np.asarray(reference.X.sum(axis=1)))
    expected = hb.benchmark.ridge(seen[0], log_counts(reference, target_sum), queries=seen[1])
    np.testing.assert_allclose(table.to_numpy(), expected, atol=1e-4)
    at_once = predicted(slide, reference, model=encoder, method="regression", target="normalized")
    assert at_once.equals(table)
    assert slide.uns["predicted_expression"]["fingerprint"] == encoder.fingerprint()
    with pytest.raises(ModelError, match="a FeatureEncoder cannot be fine-tuned"):
        hb.tl.fit_predictor(reference, model=encoder, method="finetune")


# -- trust ------------------------------------------------------------------------------------------------------------


def held_out_pcc(reference, model, alpha, target_sum, column):
    """Mean over slides of the PCC of each gene; what shares the entry of a column is held out together."""
    features, truth, found = features_of(reference, model), log_counts(reference, target_sum), []
    for name in reference.obs["library_id"].unique():
        held = (reference.obs["library_id"] == name).to_numpy()
        others = ~reference.obs[column].isin(reference.obs[column][held]).to_numpy()
        ridge = make_pipeline(StandardScaler(), Ridge(alpha)).fit(features[others], truth[others])
        found.append(hb.metrics.pcc(truth[held], ridge.predict(features[held])))
    return np.mean(found, axis=0)


def quarters(reference):
    """Two slides of each patient, spots of all mixed."""
    reference.obs["library_id"] = (reference.obs["library_id"].astype(str) + np.tile(["l", "r"], 100)).to_numpy()
    spatial = reference.uns["spatial"]
    reference.uns["spatial"] = {name: spatial[name[:-1]] for name in reference.obs["library_id"].unique()}
    return reference[np.random.default_rng(0).permutation(reference.n_obs)].copy()


@pytest.mark.parametrize(("column", "target"), [("library_id", "raw"), ("patient", "normalized")])
def test_expected_pcc_equals_a_loop_over_slides(reference, slide, model, column, target, caplog):
    reference = quarters(reference)
    options = {} if column == "patient" else {"patient_key": "nobody"}
    predictor = hb.tl.fit_predictor(reference, model=model, target=target, **options)
    assert (
        f"4 slides of the reference, predicted from its other {column.replace('library_id', 'slide')}s" in caplog.text
    )
    expected = held_out_pcc(reference, model, predictor.params["alpha"], predictor.target_sum, column)
    np.testing.assert_allclose(predictor.calibration.expected_pcc, expected, atol=1e-4)
    hb.tl.predict(slide, predictor, min_pcc=0.25, genes=list(reference.var_names[::-1]))
    entry = slide.uns["predicted_expression"]
    assert entry["genes"].tolist() == list(reference.var_names[::-1])
    np.testing.assert_array_equal(entry["expected_pcc"], predictor.calibration.expected_pcc[::-1])
    chance = 3 * np.sqrt(4 / 49) / 4
    for min_pcc, least in ((0.25, 0.25), (-1, chance)):
        hb.tl.predict(slide, predictor, min_pcc=min_pcc)
        entry = slide.uns["predicted_expression"]
        np.testing.assert_array_equal(entry["trusted"], predictor.calibration.expected_pcc > least)
        assert 0 < entry["trusted"].sum() < reference.n_vars
        assert entry["params"]["min_pcc"] == min_pcc


def test_trust_goes_with_the_predictor(reference, slide, model, tmp_path):
    counts = reference.X.toarray()
    counts[:, 3] = 2
    reference.X = counts
    hb.tl.predict(slide, reference, model=model, method="regression")
    expected = hb.get.predicted_genes(slide)
    assert expected.columns.tolist() == ["expected_pcc", "trusted"]
    assert expected.index[expected["expected_pcc"].isna()].tolist() == [reference.var_names[3]]
    folder = hb.tl.fit_predictor(reference, model=model).save(tmp_path / "p")
    predicted(slide, folder)
    pd.testing.assert_frame_equal(hb.get.predicted_genes(slide), expected)
    slide.write_h5ad(tmp_path / "slide.h5ad")
    back = ad.read_h5ad(tmp_path / "slide.h5ad")
    pd.testing.assert_frame_equal(hb.get.predicted_genes(back), expected, check_index_type=False)
    fewer = predicted(slide, folder, genes=["MGP"])
    assert hb.get.predicted_genes(slide).equals(expected.loc[list(fewer.columns)])


def test_one_slide_tells_nothing(slide, reference, model, caplog):
    predictor = hb.tl.fit_predictor(slide, model=model, genes=3)
    assert predictor.calibration is None
    assert "the reference holds 1 slide(s), of 100 spots: no expected_pcc" in caplog.text
    predicted(reference, predictor)
    assert set(reference.uns["predicted_expression"]) == {"fingerprint", "params", "genes"}
    with pytest.raises(MissingSlotError, match="tells no expected_pcc: the predictor was fitted to one slide"):
        hb.get.predicted_genes(reference)


def test_trust_is_no_part_of_what_is_predicted(reference, model, caplog):
    fits = [hb.tl.fit_predictor(reference, model=model, genes=3, calibrate=value) for value in (True, False)]
    assert fits[0].fingerprint() == fits[1].fingerprint()
    assert fits[1].calibration is None
    assert caplog.text.count("expected_pcc") == 1


# -- which spots, which genes ----------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    shares=st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)),
    seed=st.integers(0, 99),
)
def test_shares_of_each_slide_are_nested(sizes, shares, seed):
    slides = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    few, more = (set(drawn(slides, share, seed).tolist()) for share in sorted(shares))
    assert few <= more
    for rows in slides:
        assert len(few & set(rows.tolist())) == max(1, round(min(shares) * len(rows)))
    assert len(drawn(slides, 1.0, seed)) == sum(sizes)


def test_few_shots_are_as_if_the_others_were_not_there(reference, model):
    rows = drawn(hb.inputs.libraries(reference).values(), 0.25, 3)
    options = {"model": model, "genes": 5, "target": "normalized"}
    few = hb.tl.fit_predictor(reference, fraction=0.25, rng=3, **options)
    alone = hb.tl.fit_predictor(reference[np.sort(rows)].copy(), **options)
    assert few.params["n_spots"] == 50
    assert few.fingerprint() == alone.fingerprint()
    assert few.fingerprint() != hb.tl.fit_predictor(reference, fraction=0.25, rng=4, **options).fingerprint()


def test_genes_by_number_are_the_most_variable(reference, model):
    predictor = hb.tl.fit_predictor(reference, model=model, genes=7)
    assert predictor.genes == hb.benchmark.variable_genes(reference, 7)


def test_a_constant_gene_is_predicted_as_such(reference, slide, model):
    counts = reference.X.toarray()
    counts[:, 3] = 2
    reference.X = counts
    table = predicted(slide, hb.tl.fit_predictor(reference, model=model))
    np.testing.assert_allclose(table.iloc[:, 3], np.log1p(2), rtol=1e-5)


# -- fine-tuning -----------------------------------------------------------------------------------------------------


def test_held_out_slides_and_patients_are_other_slides(reference, model, unchanged):
    first, second = (reference[reference.obs["library_id"] == name].copy() for name in ("tissue_0", "tissue_1"))
    options = {"model": model, "method": "finetune", "recipe": TUNED, "genes": ["MGP", "ERBB2"], "fraction": 0.5}
    before = model.fingerprint()
    by_patient = hb.tl.fit_predictor(reference, validation="P1", **options)
    del reference.obs["patient"]
    with unchanged(reference):
        by_slide = hb.tl.fit_predictor(reference, validation=["tissue_1"], **options)
    assert model.fingerprint() == before != by_slide.model.fingerprint()
    assert by_slide.params["slides"] == ["tissue_0"]
    assert by_slide.params["recipe"]["lr"] == 0.01
    history = by_slide.params["history"]
    assert [set(entry) for entry in history] == [{"epoch", "loss", "validation_mse"}] * 2
    table = predicted(second, by_slide).to_numpy()
    truth = log_counts(second)[:, second.var_names.get_indexer(by_slide.genes)]
    assert np.mean((table - truth) ** 2) == pytest.approx(min(e["validation_mse"] for e in history), rel=1e-3)
    np.testing.assert_allclose(by_slide.calibration.expected_pcc, hb.metrics.pcc(truth, table), atol=1e-4)
    np.testing.assert_allclose(by_slide.calibration.noise, 1 / np.sqrt(99))
    other = hb.tl.fit_predictor(first, validation=second, calibrate=False, **options)
    assert other.calibration is None
    assert by_slide.fingerprint() == by_patient.fingerprint() == other.fingerprint()


def test_fine_tuning_without_validation_on_few_spots(reference, slide, model, caplog, tmp_path):
    predictor = hb.tl.fit_predictor(
        reference, model=model, method="finetune", fraction=0.1, genes=4, recipe={**TUNED, "batch_size": 64}
    )
    assert "all 20 are one batch" in caplog.text
    assert predictor.calibration is None
    assert "no expected_pcc, which fine-tuning takes from a validation=" in caplog.text
    assert [set(entry) for entry in predictor.params["history"]] == [{"epoch", "loss"}] * 2
    expected = predicted(slide, predictor)
    assert predicted(slide, predictor.save(tmp_path / "p")).equals(expected)
    assert slide.uns["predicted_expression"]["params"]["fit"] == "finetune"


# -- refusals --------------------------------------------------------------------------------------------------------


def test_refusals_of_fits(reference, slide, model, unchanged, monkeypatch):
    def fit(adata=reference, **options):
        return hb.tl.fit_predictor(adata, **{"model": model, **options})

    tuning = {"method": "finetune", "recipe": TUNED}
    with unchanged(reference):
        for options, message in (
            ({"method": "rigde"}, r"method is 'rigde'.*Did you mean 'ridge'"),
            ({"target": "normalised"}, r"target is 'normalised'.*Did you mean 'normalized'"),
            ({"fraction": 0.0}, "fraction is 0.0; expected a share above 0, at most 1"),
            ({"fraction": 1.5}, "fraction is 1.5"),
            ({"validation": ["tissue_1"]}, "validation= is for method='finetune'"),
            ({"recipe": TUNED}, "recipe= is for method='finetune'"),
            ({"genes": ["ERBB3"]}, r"1 of 1 genes are not in the reference.*Did you mean 'ERBB2'"),
            ({"genes": 81}, "genes is 81; expected 1 to 80"),
            ({"method": "finetune", "recipe": {"epoch": 2}}, r"no 'epoch'.*Did you mean 'epochs'"),
            ({**tuning, "validation": ["P9"]}, r"no patient 'P9'; there are \['P0', 'P1'\]"),
            ({**tuning, "validation": ["P0", "P1"]}, "validation holds 2 of 2 patients"),
            ({**tuning, "validation": []}, "validation holds 0 of 2 patients"),
            ({**tuning, "validation": reference}, r"\['tissue_0', 'tissue_1'\] are both in the reference and in"),
            ({**tuning, "validation": slide[:, :40].copy()}, "40 of 80 genes are not in validation="),
        ):
            with pytest.raises(DataError, match=message):
                fit(**options)
        with pytest.raises(DataError, match="1 spot is left to fit to"):
            fit(reference[:1].copy())
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
            with pytest.raises(RunError, match="only 0.0 GB are free"):
                fit(**tuning)
    del reference.uns["spatial"]["tissue_1"]
    with pytest.raises(ImageError, match="no image and no patches for slide 'tissue_1'"):
        fit()


def test_refusals_of_predictors(reference, slide, model, tmp_path, unchanged):
    predictor = hb.tl.fit_predictor(reference, model=model, genes=["ERBB2", "MGP"], target="normalized")
    with unchanged(slide):
        for given_, options, message in (
            (predictor, {"target": "raw"}, r"target is 'raw', but the predictor was fitted to 'normalized'"),
            (predictor, {"model": model}, "leave out model="),
            (predictor, {"min_pcc": 20}, "min_pcc is 20; expected a correlation"),
            (reference, {"min_pcc": np.nan, "method": "regression"}, "min_pcc is nan"),
            (predictor, {"genes": ["ERBB3"]}, r"no gene 'ERBB3'; it has 2\. Did you mean 'ERBB2'"),
            ([reference], {}, "expected an AnnData, a Predictor or the folder of one, found list"),
        ):
            with pytest.raises(DataError, match=message):
                hb.tl.predict(slide, given_, **options)
        with pytest.raises(ModelError, match="no predictor at"):
            hb.tl.predict(slide, tmp_path / "nowhere")
