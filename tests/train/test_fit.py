import math
import signal

import lightning
import numpy as np
import pytest
import torch
from torch import nn

from hibiost.genes import Vocabulary
from hibiost.model import HibioModel, ModelConfig
from hibiost.train import Pairs, Recipe, fit
from hibiost.train.fit import learning_rate, parameter_groups

RECIPE = Recipe(epochs=6, batch_size=16, lr=3e-3, precision="32")


def new_model(seed=0):
    config = ModelConfig(
        embed_dim=16,
        vision_cfg={"timm_model_name": "resnet10t", "timm_pool": "avg", "image_size": 32},
        text_cfg={"context_length": 8, "width": 16, "heads": 2, "layers": 1},
    )
    return HibioModel(config, Vocabulary(("A", "B", "C", "D"), [4] * 4, [9] * 4), rng=seed)


def pairs(model, n=48):
    """Four kinds of spots: a colour and the genes that go with it."""
    kind = np.arange(n) % 4
    noise = np.random.default_rng(0).integers(0, 30, (n, 36, 36, 3))
    patches = np.array([[30, 30, 200], [200, 30, 30], [30, 200, 30], [150, 150, 150]])[kind][:, None, None] + noise
    return Pairs(patches.astype(np.uint8), model.tokenizer(np.stack([kind, (kind + 1) % 4], axis=1)))


def test_loss_falls_and_is_recorded():
    model = new_model()
    history = fit(model, pairs(model), recipe=RECIPE, seed=0, progress=False)
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["loss"] < history[0]["loss"] - 0.3


def test_same_seed_same_weights_whatever_the_workers():
    prints = []
    for seed, workers in ((0, 0), (0, 2), (1, 0)):
        model = new_model()
        fit(model, pairs(model), recipe=RECIPE.updated({"epochs": 2}), seed=seed, n_workers=workers, progress=False)
        prints.append(model.fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_bf16_is_close_to_float32():
    losses = []
    for precision in ("32", "bf16"):
        model = new_model()
        recipe = RECIPE.updated({"epochs": 1, "lr": 0.0, "precision": precision})
        losses.append(fit(model, pairs(model), recipe=recipe, seed=0, progress=False)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_rate_warms_up_then_falls_to_its_share():
    recipe = Recipe(warmup=0.2, final_lr=0.01)
    rates = [learning_rate(step, 100, recipe) for step in range(101)]
    np.testing.assert_allclose(rates[:20], np.arange(1, 21) / 20)
    expected = [0.01 + 0.99 * (1 + math.cos(math.pi * (s - 20) / 80)) / 2 for s in range(20, 101)]
    np.testing.assert_allclose(rates[20:], expected)
    assert rates[100] == pytest.approx(0.01)


def test_weight_decay_spares_biases_norms_positions_and_scale():
    model = new_model()
    decayed, plain = parameter_groups(model, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0
    spared = {id(p) for p in plain["params"]}
    assert len(spared) + len(decayed["params"]) == len(list(model.parameters()))
    norms = (nn.LayerNorm, nn.BatchNorm2d)
    for module in model.modules():
        if isinstance(module, norms):
            assert all(id(p) in spared for p in module.parameters())
    assert id(model.logit_scale) in spared
    assert id(model.text.positional_embedding) in spared
    assert id(model.text.token_embedding.weight) not in spared


def test_a_loss_that_is_no_number_stops_with_a_message():
    model = new_model()
    with torch.no_grad():
        model.logit_scale.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"loss is nan in epoch 1; lower"):
        fit(model, pairs(model), recipe=RECIPE, seed=0, progress=False)


def test_an_interrupt_is_passed_on():
    class Interrupt(lightning.Callback):
        def on_train_batch_end(self, *args):
            raise KeyboardInterrupt

    model, handler = new_model(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(model, pairs(model), recipe=RECIPE, seed=0, progress=False, callbacks=[Interrupt()])
    assert signal.getsignal(signal.SIGINT) is handler
