"""Trained models by name as rows of the benchmark."""

import numpy as np
import pytest
from huggingface_hub import constants

import hibiost as hb
from hibiost.benchmark._contestants import Setting, contestants
from hibiost.model import registry

TINY = hb.model.ModelConfig(
    embed_dim=16,
    vision_cfg={"timm_model_name": "resnet10t", "timm_pool": "avg", "image_size": 32},
    text_cfg={"context_length": 300, "width": 16, "heads": 2, "layers": 1},
    patch_size=64,
)


@pytest.fixture(scope="module")
def slides():
    return hb.datasets.tissue(12, n_genes=30)


@pytest.fixture
def model(slides):
    ones = np.ones(slides.n_vars, int)
    return hb.model.HibioModel(TINY, hb.genes.Vocabulary(tuple(slides.var_names), ones, 2 * ones))


def first_row(name):
    return contestants([name])[0]


def embedded(row, slides, out):
    return row.embedded(Setting(slides, None, "library_id", "cpu", out), None, 0)


def test_a_model_that_ships(model, slides, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "SHIPPED", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    model.save(tmp_path / "shipped" / "toy" / "model")
    (tmp_path / "toy").mkdir()
    row = first_row("toy")
    assert (row.name, row.description()) == ("toy", model.fingerprint())
    found = embedded(row, slides, tmp_path)
    assert found.images.shape == found.sentences.shape == (12, 16)
    assert found.features.shape == (12, 512)


def test_a_model_of_the_hub(model, slides, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path / "hub" / "models--lab--toy"
    model.save(cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    row = first_row("hf-hub:lab/toy")
    assert row.name == row.description() == "hf-hub:lab/toy"
    assert embedded(row, slides, tmp_path).sentences.shape == (12, 16)
    other = first_row("hf-hub:lab/other")
    with pytest.raises(hb.errors.WeightsUnavailableError, match="lab/other are not on this machine"):
        embedded(other, slides, tmp_path)
