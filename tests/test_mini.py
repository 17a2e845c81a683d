"""The model that ships, as a new user meets it: without network, folder or setting."""

import numpy as np
import pytest

import hibiost as hb
from hibiost.errors import DataError
from hibiost.model import registry
from hibiost.model.files import tensors_of

NAME = "hibiost-mini"


@pytest.fixture
def slide():
    return hb.datasets.tissue(60)


def test_what_is_in_the_wheel():
    files = [path for path in registry.shipped()[NAME].rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".md"}
    assert sum(path.stat().st_size for path in files) < 25e6
    weights = tensors_of(registry.shipped()[NAME] / "model" / "model.safetensors")
    assert {str(weight.dtype) for weight in weights.values() if weight.ndim > 1} == {"torch.float16"}


def test_the_card_tells_the_scores_and_what_it_is_not_for():
    text = hb.model.card(NAME)
    assert text == (registry.shipped()[NAME] / "model" / "README.md").read_text(encoding="utf-8")
    for told in ("Not for clinical use", "one patient", "Recall@10 %", "colour statistics", "| self-supervised", "sha"):
        assert told.casefold() in text.casefold()


def test_the_calls_as_typed(slide, caplog):
    hb.pp.tfidf_sentences(slide)
    hb.tl.embed(slide)
    assert slide.obsm["X_hibiost_image"].shape == slide.obsm["X_hibiost_gene"].shape == (60, 128)
    hb.tl.cluster(slide, n_clusters=3)
    hb.tl.predict(slide)
    assert "the predictor of hibiost-mini is taken" in caplog.text
    assert "on other patients expect less" in caplog.text
    assert slide.uns["predicted_expression"]["params"]["slides"] == ["C2", "C3", "C4", "C5", "C6"]
    assert slide.uns["predicted_expression"]["params"]["target"] == "normalized"
    assert {"IGLL5", "IFI27", "MGP"} <= set(slide.obsm["predicted_expression"].columns)
    trusted = hb.get.predicted_genes(slide)
    assert trusted.loc["MGP", "trusted"]
    assert not trusted.loc["IGLL5", "trusted"]
    assert hb.pl.spatial_pred(slide, gene="IGLL5", show=False) is not None


def test_other_models_bring_no_predictor(slide):
    mini = hb.model.load(NAME)
    with pytest.raises(DataError, match=r"no reference given, and the model brings no predictor.*model='hibiost-mini'"):
        hb.tl.predict(slide, model=mini)
    with pytest.raises(DataError, match=r"no reference given, and some/folder brings no predictor"):
        hb.tl.predict(slide, model="some/folder")


def test_a_section_it_was_trained_on_is_told(her2st_dir, caplog):
    section = hb.datasets.her2st("C6")
    hb.tl.predict(section)
    assert "fitted to slides called ['C6']" in caplog.text
    predicted = section.obsm["predicted_expression"]
    target_sum = section.uns["predicted_expression"]["params"]["target_sum"]
    counts = section[:, predicted.columns].X.toarray()
    measured = np.log1p(counts / section.X.sum(axis=1).A1[:, None] * target_sum)
    assert np.nanmean(hb.metrics.pcc(measured, predicted.to_numpy())) > 0.25
