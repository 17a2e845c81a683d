import itertools
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import hibiost as hb
from hibiost.errors import DataError
from hibiost.model import HibioModel, ModelConfig
from hibiost.model.losses import info_nce
from hibiost.train import Engine, Recipe, estimate, speed
from hibiost.train.estimate import numbered_vocabulary

SIZE, N_GENES, N_WORDS = 96, 500, 3
CONFIG = ModelConfig(
    embed_dim=32,
    vision_cfg={"timm_model_name": "test_vit", "timm_pool": "token", "image_size": SIZE},
    text_cfg={"context_length": 64, "width": 64, "heads": 2, "layers": 2},
)
RECIPE = Recipe(epochs=3, batch_size=16, n_genes=50, precision="32")
LENGTH = 56
"""Tokens of a sentence: 50 genes, start, end and four words."""


@cache
def estimated(*, recipe=RECIPE, n_devices=(1,), **engine):
    return estimate(
        CONFIG, recipe, n_spots=100, n_genes=N_GENES, n_words=N_WORDS, pathways=False, engine=Engine(**engine),
        n_devices=n_devices,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model():
    words = [f"organ:{number}" for number in range(N_WORDS)]
    return HibioModel(CONFIG, numbered_vocabulary(N_GENES), metadata=words).train()


def loss_of(model, n, *, bf16=False):
    pixels = torch.zeros(n, 3, SIZE, SIZE, dtype=torch.uint8)
    tokens = torch.ones(n, LENGTH, dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        image, gene = model.encode_image(pixels), model.encode_genes(tokens)
    return info_nce(image, gene, model.scale)


def size(parameters):
    return sum(each.numel() for each in parameters)


@pytest.mark.parametrize("frozen", [False, True])
def test_parameters_and_their_memory_are_those_of_the_model(model, frozen):
    found = estimated(recipe=RECIPE.updated({"freeze_image": frozen}), n_devices=())
    tokens = model.text.token_embedding.weight.numel()
    assert found.parameters == {
        "image tower": size(model.visual.parameters()),
        "gene tower": size(model.text.parameters()) - tokens,
        "gene tokens": tokens,
        "pathways": 0,
        "logit scale": 1,
    }
    model.freeze_image(frozen)
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], fused=True)
    loss_of(model, 2).backward()
    optimizer.step()
    weights = sum(each.nbytes for each in model.parameters())
    gradients = sum(each.grad.nbytes for each in model.parameters() if each.grad is not None)
    moments = sum(each.nbytes for state in optimizer.state.values() for each in state.values())
    assert found.n_trained == gradients / 4
    assert found.state == weights + gradients + moments
    assert found.checkpoint == weights + moments
    model.freeze_image(False)
    model.zero_grad()


def test_pathways_add_their_projection():
    found = estimate(CONFIG, RECIPE, n_spots=100, n_genes=N_GENES, n_devices=())
    assert found.parameters["pathways"] == 32 * 64 + 1
    without = estimate(CONFIG, RECIPE.updated({"lambda2": 0}), n_spots=100, n_genes=N_GENES, n_devices=())
    assert without.parameters["pathways"] == 0


def test_flops_by_hand(model):
    """Two for a multiplication and an addition; backward takes twice the forward, but no gradient of the pixels."""
    trunk, side = model.visual.trunk, SIZE // 16
    width, hidden, depth = trunk.embed_dim, trunk.blocks[0].mlp.fc1.out_features, len(trunk.blocks)
    n = side**2 + len(trunk.cls_token[0])
    stem = side**2 * 16 * 16 * 3 * width
    block = n * (4 * width**2 + 2 * width * hidden) + 2 * n**2 * width
    image = depth * block + width * 32
    gene = 2 * (LENGTH * 12 * 64**2 + 2 * LENGTH**2 * 64) + 64 * 32
    assert estimated().devices[0].flops == 2 * (2 * stem + 3 * (image + gene + 32))
    assert estimated(micro_batch=4).devices[0].flops == 2 * (3 * stem + 4 * (image + gene) + 3 * 32)


@pytest.mark.parametrize("bf16", [False, True])
def test_activations_are_what_the_allocator_gives(model, bf16):
    """Within 10 %, by PyTorch's record of each allocation."""
    hooks = [
        each.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
        for each in model.parameters()
    ]
    loss_of(model, 16, bf16=bf16).backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        loss_of(model, 16, bf16=bf16).backward()
    for hook in hooks:
        hook.remove()
    changes = [event.nbytes() for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = max(itertools.accumulate(changes))
    found = estimated(recipe=RECIPE.updated({"precision": "bf16" if bf16 else "32"}))
    assert found.devices[0].activations == pytest.approx(peak, rel=0.1)


def test_devices_share_a_batch():
    found = estimated(n_devices=(1, 3, 8, 32), micro_batch=6)
    shown = [(each.n_spots, each.at_a_time, each.twice) for each in found.devices]
    assert shown == [(16, 6, True), (6, 6, False), (2, 2, False), (1, 1, False)]
    memory = [each.activations for each in found.devices]
    assert memory[0] == pytest.approx(memory[1], rel=0.05)
    assert memory[1] > 2 * memory[2] > 2 * memory[3]
    twice, once = found.devices[0].flops, found.devices[1].flops
    samples = 3 * (100 // 16) * 16
    assert (found.n_steps, found.n_samples) == (18, samples)
    expected = [samples * twice / 3600e9, samples * once / 3 / 3600e9, samples * once / 8 / 3600e9]
    assert found.hours(1e9) == pytest.approx([*expected, samples * once / 16 / 3600e9]), "32 devices, 16 spots"


def test_gradient_checkpointing_takes_less_memory_and_computes_more():
    plain, kept = estimated().devices[0], estimated(gradient_checkpointing=True).devices[0]
    assert kept.activations < plain.activations / 2
    assert 1.1 * plain.flops < kept.flops < 4 / 3 * plain.flops


def test_disk_and_steps():
    found = estimate(CONFIG, RECIPE.updated({"shift": 0.25}), n_spots=10, n_genes=N_GENES, n_devices=())
    assert found.patches == 10 * (96 + 48) ** 2 * 3
    assert (found.batch_size, found.steps_per_epoch, found.n_samples) == (10, 1, 30), "all spots are one batch"
    with pytest.raises(DataError, match="1 spots; contrastive training needs two"):
        estimate(CONFIG, RECIPE, n_spots=1, n_genes=N_GENES)


def test_speed_is_that_of_the_steps_after_the_first(monkeypatch):
    times = iter([0.0, 7.0, 8.0, 9.0, 9.5, 10.0, 10.5])
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    config = ModelConfig(32, {**CONFIG.vision_cfg, "image_size": 32}, CONFIG.text_cfg)
    recipe = RECIPE.updated({"batch_size": 4, "epochs": 9})
    before = hb.settings.verbosity
    found = speed.measured_speed(config, recipe, n_genes=N_GENES, engine=Engine(), device="cpu", steps=3)
    assert found == 4 / 0.5
    assert next(times, None) is None
    assert hb.settings.verbosity == before
