"""Models that ship, by name, and the cards of models."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

import hibiost as hb
from hibiost.errors import DataError, ModelError
from hibiost.model import Predictor, load, load_predictor, registry, untrained

CARD = {
    "name": "toy",
    "licence": "bsd-3-clause",
    "datasets": ["lab/slides"],
    "data": "Two slides of a toy tissue.",
    "evaluation": "| task | value |\n|---|---|\n| ARI | 0.3 |",
    "limitations": "Blurred slides.",
    "command": "hibiost pretrain toy.toml",
    "hardware": "two cores",
    "duration": "3 min",
    "environment": {"python": "3.11", "torch": "2.6"},
}


@pytest.fixture
def predictor(tiny):
    return Predictor(tiny, ["ERBB2"], np.ones((16, 1), np.float32), np.zeros(1, np.float32))


@pytest.fixture
def toy(predictor, tmp_path, monkeypatch):
    """One model ships, called toy."""
    monkeypatch.setattr(registry, "SHIPPED", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    return predictor.save(tmp_path / "shipped" / "toy", card=CARD)


def test_what_ships(toy, tiny):
    size = os.path.getsize(toy / "model" / "model.safetensors")
    assert hb.model.list() == {
        "toy": {
            "n_bytes": size,
            "embed_dim": 16,
            "n_genes": 3,
            "patch_size": 64,
            "mpp": 0.5,
            "licence": "bsd-3-clause",
            "trained_on": "7 spots of 2 slides",
            "fingerprint": tiny.fingerprint(),
        }
    }


@pytest.mark.parametrize("make", [False, True], ids=["absent", "empty"])
def test_nothing_ships(make, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "SHIPPED", tmp_path / "shipped")
    if make:
        (tmp_path / "shipped" / "unfinished").mkdir(parents=True)
    assert hb.model.list() == {}
    with pytest.raises(ModelError, match=r"no model at toy: config.json is missing.*hb.model.list\(\) tells"):
        load("toy")


def test_a_shipped_model_and_its_predictor_by_name(toy, tiny, predictor):
    assert load("toy").fingerprint() == tiny.fingerprint()
    assert load("toy").card_info == CARD
    assert load_predictor("toy").fingerprint() == predictor.fingerprint()
    for make in (load, load_predictor):
        with pytest.raises(ModelError, match="Did you mean 'toy'|no predictor at toyy"):
            make("toyy")


def test_a_name_is_the_model_that_ships_and_a_path_the_folder(toy, tiny):
    other = untrained(tiny, rng=9)
    other.save("toy")
    assert load("toy").fingerprint() == tiny.fingerprint()
    for path in ("./toy", Path("toy"), os.path.abspath("toy")):
        assert load(path).fingerprint() == other.fingerprint()
    with pytest.raises(ModelError, match=r"no predictor at toy: predictor.json is missing"):
        load_predictor(Path("toy"))


def test_which_names_are_ours_and_how_they_are_recorded(toy, tiny):
    tiny.save("folder")
    assert [registry.ours(name) for name in ("toy", "folder", "uni", "timm:resnet18")] == [True, True, False, False]
    assert registry.absolute("toy") == "toy"
    assert registry.absolute("hf-hub:lab/toy@v1") == "hf-hub:lab/toy@v1"
    assert registry.absolute("folder") == os.path.abspath("folder")
    assert registry.absolute(Path("toy")) == os.path.abspath("toy")


def test_in_the_settings_and_what_embed_records(toy, tiny):
    adata = hb.datasets.tissue(20)
    with hb.settings.override(model="toy"):
        hb.tl.embed(adata)
    assert adata.uns["X_hibiost"]["fingerprint"] == tiny.fingerprint()
    assert adata.uns["X_hibiost"]["params"]["model"] == "toy"


# -- cards -----------------------------------------------------------------------------------------------------------


def sections(text):
    return dict(re.findall(r"^## (.*?)\n\n(.*?)\n*(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL))


def test_a_full_card(toy, tiny):
    text = hb.model.card("toy")
    assert (
        text
        == (toy / "model" / "README.md").read_text()
        == hb.model.card(toy / "model").replace(str(toy / "model"), "toy")
    )
    data = ModelCard(text).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("bsd-3-clause", "hibiost", "feature-extraction")
    assert data.datasets == ["lab/slides"]
    assert "spatial-transcriptomics" in data.tags
    found = sections(text)
    assert list(found) == [
        "How to use it", "Training data", "Recipe", "Evaluation", "Intended use", "Known failures", "Licence",
        "Environment",
    ]  # fmt: skip
    assert text.count("# toy\n") == 1
    assert f"`{tiny.fingerprint()}`" in text
    assert "patches of 64 pixels at 0.5 µm per pixel" in text
    assert 'hb.model.load("toy")' in found["How to use it"]
    for part in (CARD["data"], "Trained on 7 spots of 2 slides.", "`a`, `b`", "0.4 µm", "`organ:breast`"):
        assert part in found["Training data"]
    assert json.loads(found["Recipe"].strip("`json\n")) == {"seed": 3}
    assert found["Evaluation"] == CARD["evaluation"]
    assert "Not for clinical use" in found["Intended use"]
    assert found["Known failures"] == "Blurred slides."
    assert found["Licence"] == "bsd-3-clause"
    for part in ("- python: 3.11", "- hardware: two cores", "- duration: 3 min", "```sh\nhibiost pretrain toy.toml"):
        assert part in found["Environment"]


def test_a_card_tells_nothing_that_is_not_known(tiny):
    tiny.training_info = {}
    tiny.tokenizer.metadata.clear()
    found = sections(hb.model.card(tiny))
    assert "Recipe" not in found
    assert "Environment" not in found
    assert [found[name] for name in ("Training data", "Evaluation", "Known failures", "Licence")] == ["Not told."] * 4
    assert "license" not in hb.model.card(tiny).split("---")[1]
    assert '"path/to/the/folder"' in found["How to use it"]


def test_the_card_tells_the_terms_of_the_weights_it_started_from(tiny):
    tiny.training_info["image_encoder"] = {"name": "uni", "source": "huggingface.co/x", "licence": "CC-BY-NC-ND-4.0"}
    found = sections(hb.model.card(tiny))
    assert "started from uni (huggingface.co/x)" in found["Training data"]
    assert "started from uni, whose licence is CC-BY-NC-ND-4.0" in found["Licence"]


def test_a_card_goes_with_the_model_until_another_is_given(toy, tiny, tmp_path):
    model = load("toy")
    assert load(model.save(tmp_path / "a")).card_info == CARD
    assert load(model.save(tmp_path / "b", card={"licence": "mit"})).card_info == {"licence": "mit"}
    assert model.card_info == CARD


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"license": "mit"}, r"no entry 'license'; the entries are \['name', .*Did you mean 'licence'"),
        ({"licence": 3}, "the entry 'licence' of a card is 3; expected text"),
        ({"datasets": "lab/slides"}, "expected a list of texts"),
        ({"environment": {"python": 3.11}}, "expected a dict of texts"),
    ],
)
def test_what_is_no_card(card, message, tiny, tmp_path):
    with pytest.raises(ModelError, match=message):
        tiny.save(tmp_path / "model", card=card)
    assert not list(tmp_path.iterdir())


def test_a_card_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "model" / "README.md").mkdir(parents=True)
    with pytest.raises(DataError, match=r"README\.md cannot be written"):
        tiny.save(tmp_path / "model")
