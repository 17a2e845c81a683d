import math
import re
import signal

import lightning
import numpy as np
import pytest
import torch
from toy import RECIPE, levels, new_model, pairs

from hibiost.errors import RunError
from hibiost.train import Engine, Recipe, Regions, fit
from hibiost.train.task import learning_rate


def test_loss_falls_and_is_recorded():
    model = new_model()
    history, _ = fit(model, pairs(model), recipe=RECIPE, seed=0, progress=False)
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4, 5, 6]
    assert history[-1]["loss"] < history[0]["loss"] - 0.3


def test_same_seed_same_weights_whatever_the_workers():
    prints = []
    for seed, workers in ((0, 0), (0, 2), (1, 0)):
        model = new_model()
        fit(
            model,
            pairs(model),
            recipe=RECIPE.updated({"epochs": 2}),
            seed=seed,
            engine=Engine(n_workers=workers),
            progress=False,
        )
        prints.append(model.fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_bf16_is_close_to_float32():
    losses = []
    for precision in ("32", "bf16"):
        model = new_model()
        recipe = RECIPE.updated({"epochs": 1, "lr": 0.0, "precision": precision})
        losses.append(fit(model, pairs(model), recipe=recipe, seed=0, progress=False)[0][0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_rate_warms_up_then_falls_to_its_share():
    recipe = Recipe(warmup=0.2, final_lr=0.01)
    rates = [learning_rate(step, 100, recipe) for step in range(101)]
    np.testing.assert_allclose(rates[:20], np.arange(1, 21) / 20)
    expected = [0.01 + 0.99 * (1 + math.cos(math.pi * (s - 20) / 80)) / 2 for s in range(20, 101)]
    np.testing.assert_allclose(rates[20:], expected)
    assert rates[100] == pytest.approx(0.01)


def test_a_loss_that_is_no_number_stops_with_a_message():
    model = new_model()
    with torch.no_grad():
        model.logit_scale.fill_(float("nan"))
    with pytest.raises(RunError, match=r"loss is nan after step 3; lower"):
        fit(model, pairs(model), recipe=RECIPE, seed=0, progress=False)


def test_an_interrupt_is_passed_on():
    class Interrupt(lightning.Callback):
        def on_train_batch_end(self, *args):
            raise KeyboardInterrupt

    model, handler = new_model(), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(model, pairs(model), recipe=RECIPE, seed=0, progress=False, callbacks=[Interrupt()])
    assert signal.getsignal(signal.SIGINT) is handler


# -- levels two and three --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_every_term_falls(precision):
    model = new_model()
    history, renewals = fit(model, pairs(model), **levels(model, epochs=20, lambda2=4.0, precision=precision))
    assert all(math.isfinite(value) for entry in history for value in entry.values())
    assert "region" not in history[1]
    assert [entry["epoch"] for entry in renewals] == list(range(2, 20, 2))
    for term, first in (("spot", 0), ("pathway", 0), ("region", 2)):
        assert np.mean([entry[term] for entry in history[-4:]]) < history[first][term], term
    assert {entry["with_pathway"] for entry in history[:2]} == {0.5}
    loss = history[-1]["spot"] + 4 * history[-1]["pathway"] + 0.25 * history[-1]["region"]
    assert history[-1]["loss"] == pytest.approx(loss)


def test_without_their_weights_it_is_level_one():
    prints = []
    for weights in (None, {"lambda2": 0, "lambda3": 0}, {}):
        model = new_model()
        if weights is None:
            fit(model, pairs(model), recipe=RECIPE, seed=0, progress=False)
        else:
            options = levels(model, **weights)
            if weights:
                options["regions"] = None
            fit(model, pairs(model), **options)
        prints.append(model.fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_same_seed_same_weights_on_all_levels():
    prints, histories = [], []
    for workers in (0, 2):
        model = new_model()
        options = levels(model)
        histories.append(fit(model, pairs(model), engine=Engine(n_workers=workers), **options)[0])
        prints.append(model.fingerprint())
    assert prints[0] == prints[1]
    assert histories[0] == histories[1]


def test_regions_are_renewed_within_slides_and_remembered():
    model = new_model()
    options = levels(model)
    regions = options["regions"]
    _, renewals = fit(model, pairs(model), **options)
    assert list(regions.history) == [0, 2, 4]
    assert not regions.history[0].any()
    assert not set(regions.ids[:24]) & set(regions.ids[24:])
    for entry in renewals:
        ids = regions.history[entry["epoch"]]
        assert ids.dtype == np.int32
        assert ids[:24].min() == ids[24:].min() == 0
        assert entry["n_regions"] == ids[:24].max() + ids[24:].max() + 2
        assert 0 < entry["coherence"] <= 1


def test_regions_of_lone_spots():
    regions = Regions(np.array([0, 0, 0, 1]), np.array([[0, 0], [1, 0], [9, 9], [5, 5]]), n_neighbors=2, seed=0)
    entry = regions.renew(lambda rows: np.eye(4)[rows], 1)
    assert regions.ids[3] not in regions.ids[:3]
    assert 0 <= entry["coherence"] <= 1


def test_epochs_are_told_with_chance_beside(caplog):
    model = new_model()
    with caplog.at_level("INFO", logger="hibiost"):
        fit(model, pairs(model), **levels(model, epochs=3))
    epoch = [line for line in caplog.messages if line.startswith("epoch 3/3")]
    assert len(epoch) == 1
    assert re.search(r"spot \d\.\d+ \(chance 2\.773\), pathway .*50% of the spots.*, region .*chance", epoch[0])
    assert any(re.search(r"after epoch 2: \d+ regions; \d+% of a spot's nearest", line) for line in caplog.messages)
