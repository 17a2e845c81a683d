"""Models in the precision that they infer in."""

import numpy as np
import pytest
import timm
import torch
from torch import nn

from hibiost.errors import ModelError
from hibiost.genes import Vocabulary
from hibiost.model import FeatureEncoder, HibioModel, ModelConfig
from hibiost.model.features import Preparation
from hibiost.model.inference import arrays, resolved_precision

VOCABULARY = Vocabulary(tuple(f"G{i}" for i in range(50)), np.arange(1, 51), np.full(50, 60))
TEXT = {"context_length": 24, "width": 16, "heads": 2, "layers": 2}
TOWERS = {
    "ResNet": {"timm_model_name": "resnet10t", "timm_pool": "avg", "image_size": 32},
    "ResNet of its own arguments": {"timm_model_name": "resnet10t", "timm_args": {}, "image_size": 32},
    "ViT of open_clip": {"layers": 2, "width": 64, "patch_size": 16, "image_size": 32},
}


def patches(n, size=32):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def sentences(model, n=5):
    rng = np.random.default_rng(1)
    rows = np.stack([rng.permutation(50)[:20] for _ in range(n)])
    rows[np.arange(20) >= rng.integers(1, 21, n)[:, None]] = -1
    return model.tokenizer(rows)


def with_statistics(module):
    """Batch norms as after training: random statistics, scales and offsets."""
    rng = torch.Generator().manual_seed(0)
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor, low in ((norm.running_mean, -0.5), (norm.running_var, 0.5), (norm.weight, 0.5), (norm.bias, 0)):
                tensor.data.uniform_(low, low + 1, generator=rng)
    return module


@pytest.fixture(params=TOWERS)
def model(request):
    config = ModelConfig(embed_dim=16, vision_cfg=TOWERS[request.param], text_cfg=TEXT, patch_size=32)
    return with_statistics(HibioModel(config, VOCABULARY))


def lowest_cosine(some, others):
    assert some.dtype == others.dtype == np.float32
    norms = np.linalg.norm(some, axis=1) * np.linalg.norm(others, axis=1)
    return ((some * others).sum(axis=1) / norms).min()


def test_float32_is_the_model_itself_up_to_rounding(model):
    running = model.inference()
    assert running.precision == "float32"
    np.testing.assert_allclose(running.images(patches(5)).numpy(), model.embed_images(patches(5)), atol=1e-6)
    features = model.image_features(patches(5))
    np.testing.assert_allclose(running.features(patches(5)).numpy(), features, rtol=1e-4, atol=1e-5)
    tokens = sentences(model)
    np.testing.assert_allclose(running.genes(tokens).numpy(), model.embed_genes(tokens), atol=1e-6)


def test_batch_norms_of_a_resnet_are_folded():
    def n_norms(module):
        return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())

    config = ModelConfig(embed_dim=16, vision_cfg=TOWERS["ResNet"], text_cfg=TEXT, patch_size=32)
    model = HibioModel(config, VOCABULARY)
    model.visual.set_grad_checkpointing()
    before = n_norms(model.visual)
    assert before > 10
    assert n_norms(model.inference()._visual) == 0
    assert n_norms(model.visual) == before
    assert model.visual.trunk.grad_checkpointing


@pytest.mark.parametrize("name", ["ResNet-10", "ViT-S-16"])
def test_bfloat16_on_the_presets(name):
    model = HibioModel(ModelConfig.preset(name), VOCABULARY)
    running, some = model.inference("bfloat16"), patches(2, model.config.image_size)
    assert running.precision == "bfloat16"
    assert lowest_cosine(running.images(some).numpy(), model.embed_images(some)) > 0.999
    assert lowest_cosine(running.features(some).numpy(), model.image_features(some)) > 0.999
    tokens = sentences(model, 2)
    assert lowest_cosine(running.genes(tokens).numpy(), model.embed_genes(tokens)) > 0.999


def test_bfloat16_leaves_the_model_as_it_is(model):
    before, some = model.fingerprint(), patches(3)
    embedded = model.embed_images(some)
    running = model.inference("bfloat16")
    reduced = running.images(some).numpy()
    running.genes(sentences(model))
    assert np.abs(reduced - embedded).max() > 1e-5
    np.testing.assert_allclose(np.linalg.norm(reduced, axis=1), 1, rtol=1e-5)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert model.fingerprint() == before
    np.testing.assert_array_equal(model.embed_images(some), embedded)


@pytest.mark.parametrize(
    ("told", "precision"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bfloat16"),
        ({"avx512_f": True, "avx512_bf16": False}, "float32"),
        ({"neon": True, "bf16": True}, "float32"),
        (None, "float32"),
    ],
)
def test_auto_goes_by_what_the_cpu_multiplies_in(monkeypatch, told, precision):
    if told is None:  # torch before it could tell
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert resolved_precision("auto", torch.device("cpu")) == precision
    assert resolved_precision("bfloat16", torch.device("cpu")) == "bfloat16"
    assert resolved_precision("float32", torch.device("cpu")) == "float32"
    assert resolved_precision("auto", torch.device("mps")) == "float32"


@pytest.mark.parametrize(("there", "precision"), [(True, "bfloat16"), (False, "float32")])
def test_auto_on_a_gpu(monkeypatch, there, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: there and not including_emulation)
    assert resolved_precision("auto", torch.device("cuda")) == precision


def test_an_unknown_precision(tiny):
    with pytest.raises(ModelError, match=r"precision is 'bf16'; expected one of \['float32', 'bfloat16', 'auto'\]"):
        tiny.inference("bf16")


@pytest.mark.parametrize("castable", [True, False])
def test_an_encoder_of_another_package(castable):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = with_statistics(timm.create_model("resnet10t", num_classes=0)).eval()
    options = {"licence": "", "source": "", "output": "", "patch_size": 48, "castable": castable}
    encoder = FeatureEncoder("resnet", tower, Preparation(32, (0.5,) * 3, (0.25,) * 3), **options)
    before, expected = encoder.fingerprint(), encoder.embed_images(patches(4, 48))
    exact, reduced = (encoder.inference(precision) for precision in ("float32", "bfloat16"))
    np.testing.assert_allclose(exact.images(patches(4, 48)).numpy(), expected, rtol=1e-4, atol=1e-5)
    assert (exact.precision, reduced.precision) == ("float32", "bfloat16" if castable else "float32")
    found = reduced.features(patches(4, 48)).numpy()
    assert lowest_cosine(found, expected) > 0.999
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5) != castable
    assert {tensor.dtype for tensor in tower.parameters()} == {torch.float32}
    assert encoder.fingerprint() == before


def test_a_batch_is_handed_over_once_the_next_is_under_way():
    started = []

    def batches():
        for number in range(3):
            started.append(number)
            yield np.array([number]), torch.full((1, 2), float(number))

    seen = []
    for rows, values in arrays(batches()):
        np.testing.assert_array_equal(values, np.full((1, 2), rows[0]))
        seen.append((int(rows[0]), started[-1]))
    assert seen == [(0, 1), (1, 2), (2, 2)]
    assert list(arrays([])) == []
