import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hibiost.errors import DataError, ModelError
from hibiost.model import FeatureEncoder, Predictor, load_predictor, untrained
from hibiost.model.confidence import Calibration

GENES = ["MGP", "IGLL5"]


def patches(n, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.fixture
def predictor(model):
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(512, 2)).astype(np.float32), np.array([1, 2], dtype=np.float32)
    return Predictor(model, GENES, weight, bias, "normalized", 950.5, {"method": "ridge", "alpha": 10.0})


@pytest.fixture
def saved(predictor, tmp_path):
    return predictor.save(tmp_path / "predictor")


def test_it_is_a_linear_map_of_what_the_tower_sees_before_its_projection(model, predictor):
    features = model.image_features(patches(3))
    projected = features @ model.visual.head.proj.weight.detach().numpy().T
    embedded = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(model.embed_images(patches(3)), embedded, atol=1e-5)
    found = predictor.predict(patches(3))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, features @ predictor.weight + [1, 2], rtol=1e-4)


def test_an_encoder_without_projection_and_without_genes(model, predictor):
    class Encoder:
        config, fingerprint = model.config, model.fingerprint
        embed_images = staticmethod(lambda patches: patches.reshape(len(patches), -1)[:, :512] / np.float32(255))

    found = replace(predictor, model=Encoder()).predict(patches(2))
    expected = patches(2).reshape(2, -1)[:, :512] / 255 @ predictor.weight + predictor.bias
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_weights_of_other_packages_are_not_kept(model, predictor, tmp_path):
    tower = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten())
    encoder = FeatureEncoder("toy", tower, torch.Tensor.float, licence="", source="", output="", patch_size=32)
    other = replace(predictor, model=encoder, weight=predictor.weight[:48])
    assert other.predict(patches(2)).shape == (2, 2)
    assert load_predictor(other) is other
    with pytest.raises(ModelError, match="a predictor on a FeatureEncoder cannot be saved"):
        other.save(tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_round_trip_keeps_everything(predictor, saved):
    again = load_predictor(saved)
    assert again.fingerprint() == predictor.fingerprint()
    for name in ("genes", "target", "target_sum", "params"):
        assert getattr(again, name) == getattr(predictor, name)
    np.testing.assert_array_equal(again.predict(patches(3)), predictor.predict(patches(3)))
    assert load_predictor(again) is again
    names = sorted(str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file())
    in_model = ["model/README.md", "model/config.json", "model/model.safetensors"]
    assert names == [*in_model, "predictor.json", "predictor.safetensors"]


def test_round_trip_of_the_calibration(predictor, saved):
    assert load_predictor(saved).calibration is None
    measured = replace(predictor, calibration=Calibration(np.array([0.3, np.nan]), np.array([0.1, np.nan]), 4))
    found = load_predictor(measured.save(saved)).calibration
    np.testing.assert_array_equal(found[:2], measured.calibration[:2])
    assert found.expected_pcc.dtype == np.float64
    assert found.n_slides == 4
    assert measured.fingerprint() == predictor.fingerprint()
    tensors = load_file(saved / "predictor.safetensors")
    del tensors["calibration.noise"]
    save_file(tensors, saved / "predictor.safetensors")
    with pytest.raises(ModelError, match=r"lacks the entry 'calibration\.noise'"):
        load_predictor(saved)


def test_the_fingerprint_tells_every_part(predictor, model):
    others = [
        predictor,
        replace(predictor, weight=predictor.weight + 1),
        replace(predictor, bias=predictor.bias + 1),
        replace(predictor, genes=GENES[::-1]),
        replace(predictor, target_sum=900.0),
        replace(predictor, target="raw", target_sum=None),
        replace(predictor, model=untrained(model, rng=1)),
    ]
    assert len({each.fingerprint() for each in others}) == len(others)


def test_parts_that_do_not_fit_are_refused(predictor):
    with pytest.raises(ModelError, match=r"\(512, 2\) and \(3,\); expected width x 2 and \(2,\)"):
        replace(predictor, bias=np.zeros(3))
    with pytest.raises(ModelError, match="target is 'raw' and target_sum 950"):
        replace(predictor, target="raw")
    with pytest.raises(ModelError, match="calibration is not that of 2 genes"):
        replace(predictor, calibration=Calibration(np.zeros(3), np.zeros(3), 2))


@pytest.mark.parametrize("name", ["predictor.json", "predictor.safetensors", "model/config.json"])
def test_absent_file(saved, name):
    (saved / name).unlink()
    with pytest.raises(ModelError, match=r"no (predictor|model) at .* is missing"):
        load_predictor(saved)


def test_damaged_description(saved):
    (saved / "predictor.json").write_text("{}")
    with pytest.raises(ModelError, match="no predictor description"):
        load_predictor(saved)


def test_other_format_version(saved):
    about = json.loads((saved / "predictor.json").read_text())
    (saved / "predictor.json").write_text(json.dumps({**about, "format_version": 7}))
    with pytest.raises(ModelError, match="predictor format 7, this hibiost reads format 1"):
        load_predictor(saved)


def test_a_description_that_lacks_an_entry(saved):
    about = json.loads((saved / "predictor.json").read_text())
    del about["genes"]
    (saved / "predictor.json").write_text(json.dumps(about))
    with pytest.raises(ModelError, match="lacks the entry 'genes'"):
        load_predictor(saved)


def test_parts_of_others(predictor, saved, model):
    head = load_file(saved / "predictor.safetensors")
    save_file({**head, "bias": head["bias"] + 1}, saved / "predictor.safetensors")
    with pytest.raises(ModelError, match="do not belong together"):
        load_predictor(saved)
    predictor.save(saved)
    untrained(model, rng=3).save(saved / "model")
    with pytest.raises(ModelError, match="do not belong together"):
        load_predictor(saved)


def test_a_failed_save_leaves_the_old_predictor(predictor, saved, monkeypatch):
    before = {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    other = replace(predictor, weight=predictor.weight + 1)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(DataError, match=r"model\.safetensors cannot be written \(disk full\)"):
        other.save(saved)
    assert {path: path.read_bytes() for path in saved.rglob("*") if path.is_file()} == before
