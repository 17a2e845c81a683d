"""The format of model files: one that was written at its beginning is read for ever."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hibiost.errors import ModelError
from hibiost.model import Predictor, load, load_predictor


@pytest.fixture
def copy(format_1, tmp_path):
    return shutil.copytree(format_1, tmp_path / "copy")


def test_a_file_of_format_1_gives_the_embeddings_it_gave(format_1):
    model = load(format_1)
    patches = (np.arange(2 * 32 * 32 * 3) * 7 % 256).astype(np.uint8).reshape(2, 32, 32, 3)
    tokens = model.tokenizer(np.array([[1, 0], [2, -1]]), ["organ:breast"])
    stored = json.loads((format_1 / "embeddings.json").read_text())
    np.testing.assert_allclose(model.embed_images(patches), stored["image"], atol=1e-5)
    np.testing.assert_allclose(model.embed_genes(tokens), stored["genes"], atol=1e-5)
    assert model.training_info == {"seed": 3, "slides": ["a", "b"], "n_spots": 7, "mpp": 0.4}
    assert model.card_info == {}


def test_what_is_written_now_is_format_1(tiny, format_1, tmp_path):
    folder = tiny.save(tmp_path / "model")
    assert (folder / "config.json").read_text() == (format_1 / "config.json").read_text()
    assert (folder / "model.safetensors").read_bytes() == (format_1 / "model.safetensors").read_bytes()


def test_format_2_is_refused(copy):
    about = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**about, "format_version": 2}))
    with pytest.raises(
        ModelError, match="has model format 2, this hibiost reads format 1; install the hibiost version"
    ):
        load(copy)


def test_pickles_are_refused(copy):
    torch.save({"logit_scale": torch.ones(())}, copy / "model.safetensors")
    with pytest.raises(ModelError, match="no safetensors file"):
        load(copy)
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="model.safetensors is missing"):
        load(copy)
    (copy / "config.json").write_bytes(pickle.dumps({"format_version": 1}))
    (copy / "model.safetensors").touch()
    with pytest.raises(ModelError, match="no model description"):
        load(copy)


@pytest.mark.parametrize("entry", ["config", "vocabulary", "metadata", "training", "fingerprint"])
def test_an_entry_that_is_absent(copy, entry):
    about = json.loads((copy / "config.json").read_text())
    del about[entry]
    (copy / "config.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match=f"lacks the entry '{entry}'"):
        load(copy)


# -- half precision --------------------------------------------------------------------------------------------------


def some_patches(n, size=32):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.fixture
def normed(model):
    """With statistics of batch norms that float16 cannot hold."""
    norm = model.visual.trunk.bn1
    norm.running_mean += torch.linspace(-1e5, 1e5, len(norm.running_mean))
    norm.running_var *= torch.logspace(-9, 6, len(norm.running_var))
    norm.num_batches_tracked += 70_001
    return model


def test_float16_halves_the_file_and_is_float32_again(normed, tmp_path):
    full, half = (normed.save(tmp_path / precision, precision=precision) for precision in ("float32", "float16"))
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (full, half)]
    assert 0.5 < sizes[1] / sizes[0] < 0.51
    again, expected = load(half).state_dict(), normed.state_dict()
    for name, tensor in load_file(half / "model.safetensors").items():
        assert again[name].dtype == expected[name].dtype
        if expected[name].ndim < 2:
            assert torch.equal(again[name], expected[name])
        else:
            assert tensor.dtype == torch.float16
            assert torch.equal(again[name], expected[name].half().float())
    assert again["visual.trunk.bn1.num_batches_tracked"] == 70_001


def test_float16_has_a_fingerprint_of_its_own(model, tmp_path):
    half = load(model.save(tmp_path / "half", precision="float16"))
    assert half.fingerprint() == model.fingerprint(precision="float16") != model.fingerprint()
    assert load(half.save(tmp_path / "again", precision="float16")).fingerprint() == half.fingerprint()
    assert load(half.save(tmp_path / "full")).fingerprint() == half.fingerprint()
    images, halved = model.embed_images(some_patches(4)), half.embed_images(some_patches(4))
    assert 0 < np.abs(images - halved).max() < 5e-3


def test_what_float16_cannot_hold_stays(tiny, tmp_path):
    with torch.no_grad():
        tiny.visual.conv1.weight[0, 0, 0, 0] = 7e4
    again = load(tiny.save(tmp_path / "model", precision="float16"))
    assert torch.equal(again.visual.conv1.weight, tiny.visual.conv1.weight)


def test_an_unknown_precision(tiny, tmp_path):
    with pytest.raises(ModelError, match=r"precision is 'float61'; .*Did you mean 'float16'"):
        tiny.save(tmp_path / "model", precision="float61")
    assert not list(tmp_path.iterdir())


def test_a_predictor_in_float16(tiny, tmp_path):
    weight = np.random.default_rng(0).normal(size=(16, 2)).astype(np.float32)
    predictor = Predictor(tiny, ["ERBB2", "MGP"], weight, np.zeros(2, np.float32))
    again = load_predictor(predictor.save(tmp_path / "p", precision="float16", card={"licence": "mit"}))
    assert again.fingerprint() != predictor.fingerprint()
    assert again.model.card_info == {"licence": "mit"}
    np.testing.assert_array_equal(again.weight, weight)
    assert load_predictor(again.save(tmp_path / "q")).fingerprint() == again.fingerprint()
    np.testing.assert_allclose(again.predict(some_patches(3)), predictor.predict(some_patches(3)), atol=0.02)
