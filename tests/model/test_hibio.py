import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import hibiost as hb
from hibiost.errors import DataError, ModelError
from hibiost.model import HibioModel, ModelConfig, load, untrained
from hibiost.model.tokens import END, START


def patches(n, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.fixture
def saved(model, tmp_path):
    return model.save(tmp_path / "model")


def test_round_trip_keeps_everything(model, saved):
    again = load(saved)
    assert again.fingerprint() == model.fingerprint()
    assert again.config == model.config
    assert again.vocabulary == model.vocabulary
    np.testing.assert_allclose(again.vocabulary.idf, np.log([5 / 4, 5 / 2, 4 / 3]))
    assert again.tokenizer.metadata == ["organ:breast"]
    assert again.training_info == {"seed": 3, "n_genes": 2}
    assert not again.training
    np.testing.assert_array_equal(again.embed_images(patches(3)), model.embed_images(patches(3)))
    tokens = model.tokenizer(np.array([[0, 2], [1, -1]]), ["organ:breast"])
    np.testing.assert_array_equal(again.embed_genes(tokens), model.embed_genes(tokens))
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_embeddings_are_unit_float32(model):
    for rows in (model.embed_images(patches(5)), model.embed_genes(model.tokenizer(np.array([[0, 1], [2, -1]])))):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-5)


def test_padding_does_not_reach_the_embedding(model):
    """What stands after the end token is masked: other ids there leave the embedding as it is."""
    row = model.tokenizer(np.array([[0, 2]]))
    other = row.copy()
    assert row[0, 3] == END
    other[0, 4:] = START
    np.testing.assert_allclose(model.embed_genes(row), model.embed_genes(other), atol=1e-6)
    other[0, 1] = model.tokenizer.first_gene + 1
    assert np.abs(model.embed_genes(row) - model.embed_genes(other)).max() > 1e-3


def test_pixels_are_normalised_by_the_config(model):
    pixels = torch.full((1, 3, 32, 32), 51.0)
    expected = (0.2 - np.array(model.config.mean)) / np.array(model.config.std)
    np.testing.assert_allclose(model.normalise(pixels)[0, :, 0, 0].numpy(), expected, rtol=1e-5)


def test_scale_is_at_most_100(model):
    assert model.scale.item() == pytest.approx(1 / 0.07, rel=1e-5)
    with torch.no_grad():
        model.logit_scale.fill_(50)
    assert model.scale.item() == pytest.approx(100)


def test_seeds(model):
    same, other = untrained(model, rng=0), untrained(model, rng=1)
    assert same.fingerprint() == model.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("name", hb.model.presets())
def test_presets_build(name, vocabulary):
    config = ModelConfig.preset(name)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.context_length == 280
    model = HibioModel(config, vocabulary)
    assert model.text.token_embedding.weight.shape[0] == model.tokenizer.vocab_size == 6
    images = model.embed_images(patches(2, config.image_size))
    genes = model.embed_genes(model.tokenizer(np.array([[0, 1], [2, -1]])))
    assert images.shape == genes.shape == (2, config.embed_dim)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-5)


def test_vit_b_16_is_the_papers(vocabulary):
    with torch.device("meta"):
        model = HibioModel(ModelConfig.preset("ViT-B-16"), vocabulary)
    trunk = model.visual.trunk
    assert (len(trunk.blocks), trunk.embed_dim, trunk.patch_embed.patch_size) == (12, 768, (16, 16))
    assert len(model.text.transformer.resblocks) == 12


def test_unknown_names_are_refused_with_the_nearest(model, vocabulary):
    with pytest.raises(ModelError, match=r"ViT-B16.*Did you mean 'ViT-B-16'"):
        ModelConfig.preset("ViT-B16")
    with pytest.raises(ModelError, match=r"patchsize.*Did you mean 'patch_size'"):
        ModelConfig.from_dict({"patchsize": 1})
    values = model.config.to_dict()
    values["text_cfg"]["widht"] = 3
    with pytest.raises(ModelError, match=r"widht.*Did you mean 'width'"):
        HibioModel(ModelConfig.from_dict(values), vocabulary)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_absent_file(saved, name):
    (saved / name).unlink()
    with pytest.raises(ModelError, match=rf"no model at .*{name} is missing.*hb\.tl\.pretrain"):
        load(saved)


def test_other_format_version(saved):
    description = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**description, "format_version": 99}))
    with pytest.raises(ModelError, match=r"format 99.*reads format 1"):
        load(saved)


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json"])
def test_damaged_description(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(ModelError, match="no model description"):
        load(saved)


def test_damaged_weights(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="damaged or no safetensors"):
        load(saved)


def test_pickle_is_never_opened(saved, tmp_path):
    canary = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (canary.touch, ())

    torch.save({"weights": Evil()}, saved / "model.safetensors")
    with pytest.raises(ModelError, match="damaged or no safetensors"):
        load(saved)
    assert not canary.exists()


def test_weights_of_another_model(saved, model):
    weights = load_file(saved / "model.safetensors")
    weights["logit_scale"] += 1
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(ModelError, match=r"not those its config\.json describes"):
        load(saved)
    weights["logit_scale"] = torch.zeros(2)
    save_file(weights, saved / "model.safetensors")
    with pytest.raises(ModelError, match=r"do not belong together.*logit_scale"):
        load(saved)


def test_a_failed_save_leaves_the_old_model(saved, model, monkeypatch):
    before = load(saved).fingerprint()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(20))
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(DataError, match=r"model\.safetensors cannot be written \(disk full\)"):
        model.save(saved)
    monkeypatch.undo()
    assert load(saved).fingerprint() == before
    assert len(list(saved.iterdir())) == 3


def test_mismatched_torchvision_is_explained(monkeypatch, model, vocabulary):
    import builtins

    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "open_clip":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(ModelError, match="reinstall both"):
        HibioModel(model.config, vocabulary)
