import json

import pytest

from hibiost.errors import DataError
from hibiost.train import Recipe


def test_defaults_are_the_papers():
    recipe = Recipe()
    assert (recipe.epochs, recipe.batch_size, recipe.lr) == (50, 512, 2.56e-5)
    assert (recipe.betas, recipe.weight_decay, recipe.final_lr) == ((0.9, 0.95), 0.1, 0.01)


def test_json_round_trip():
    recipe = Recipe(epochs=3, betas=(0.8, 0.9))
    assert Recipe().updated(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, r"no 'epoch'.*Did you mean 'epochs'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"epochs": 2.5}, "epochs is 2.5"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"warmup": 2.0}, r"warmup is 2\.0; expected a number from 0 to 1"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
    ],
)
def test_refusals(values, message):
    with pytest.raises(DataError, match=message):
        Recipe().updated(values)
