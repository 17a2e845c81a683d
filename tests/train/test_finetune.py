import math

import numpy as np
import pytest
import toy
from scipy import sparse

from hibiost.errors import DataError, RunError
from hibiost.train import FineTuning, Measured, finetune

RECIPE = {"epochs": 6, "batch_size": 16, "lr": 0.01, "precision": "32"}
LEVELS = np.array([[0.5, 2.0], [1.5, 0.0], [2.5, 1.0], [0.0, 0.0]], dtype=np.float32)
"""Expression of the four kinds of spots."""


def new_model():
    return toy.new_model(tower="vit")


def measured(n=48, flip=False):
    patches = toy.pairs(new_model(), n).patches[:, :32, :32]
    expression = LEVELS[np.arange(n) % 4]
    return Measured(patches, sparse.csr_matrix(3 - expression if flip else expression))


def tuned(validation=None, **recipe):
    model = new_model()
    values = FineTuning.of({**RECIPE, **recipe})
    weight, bias, history = finetune(model, measured(), recipe=values, seed=0, validation=validation, progress=False)
    return model, weight, bias, history


def error(model, weight, bias, of):
    return np.mean((model.image_features(of.patches) @ weight + bias - of.expression.toarray()) ** 2)


def test_it_learns_expression_from_colour():
    spots = measured()
    variance = spots.expression.toarray().var(axis=0).mean()
    model, weight, bias, history = tuned(spots)
    assert weight.shape == (64, 2)
    assert weight.dtype == bias.dtype == np.float32
    assert error(model, weight, bias, spots) < 0.2 * variance
    assert not model.training
    errors = [entry["validation_mse"] for entry in history]
    assert error(model, weight, bias, spots) == pytest.approx(min(errors), rel=1e-3)


def test_it_begins_with_the_mean():
    _, weight, bias, history = tuned(lr=0.0, epochs=1)
    assert not weight.any()
    np.testing.assert_allclose(bias, LEVELS.mean(axis=0), rtol=1e-6)
    assert history == [{"epoch": 1, "loss": pytest.approx(LEVELS.var(axis=0).mean(), rel=1e-5)}]


def test_the_best_epoch_is_kept_and_training_stops():
    """The validation is the opposite of what is learned."""
    model, weight, bias, history = tuned(measured(flip=True), patience=2)
    best = int(np.argmin([entry["validation_mse"] for entry in history])) + 1
    assert len(history) == best + 2 < RECIPE["epochs"]
    as_then, *head, _ = tuned(epochs=best)
    assert model.fingerprint() == as_then.fingerprint()
    np.testing.assert_array_equal(weight, head[0])
    np.testing.assert_array_equal(bias, head[1])


def test_same_seed_same_weights():
    (one, *head, _), (other, *again, _) = tuned(epochs=2), tuned(epochs=2)
    assert one.fingerprint() == other.fingerprint() != new_model().fingerprint()
    np.testing.assert_array_equal(head[0], again[0])


def test_a_frozen_tower_stays():
    model, weight, _, _ = tuned(freeze=True, epochs=2)
    assert model.fingerprint() == new_model().fingerprint()
    assert weight.any()


def test_a_loss_that_is_no_number_is_told():
    with pytest.raises(RunError, match=r"the loss is (nan|inf) in epoch \d; lower the recipe's lr"):
        tuned(lr=1e30, epochs=3)


def test_the_defaults_are_the_papers():
    recipe = FineTuning()
    assert (recipe.lr, recipe.batch_size, recipe.epochs, recipe.weight_decay) == (5e-5, 256, 30, 1e-4)
    assert FineTuning.of(recipe) is recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, r"no 'epoch'.*Did you mean 'epochs'"),
        ({"epochs": 0}, "epochs is 0; expected a whole number of 1 or more"),
        ({"patience": 1.5}, "patience is 1.5"),
        ({"lr": -1}, "lr is -1; expected a number from 0 on"),
        ({"weight_decay": math.nan}, "weight_decay is nan"),
        ({"freeze": "yes"}, "freeze is 'yes'; expected True or False"),
        ({"precision": "16"}, "precision is '16'"),
    ],
)
def test_recipes_that_are_refused(values, message):
    with pytest.raises(DataError, match=message):
        FineTuning.of(values)
