import json

import pytest

from hibiost.errors import DataError
from hibiost.train import Recipe


def test_defaults_are_the_papers():
    recipe = Recipe()
    assert (recipe.epochs, recipe.batch_size, recipe.lr) == (50, 512, 2.56e-5)
    assert (recipe.selection, recipe.n_genes, recipe.threshold) == ("tfidf", 250, 0.2)
    assert (recipe.lambda2, recipe.lambda3, recipe.region_start, recipe.region_every) == (0.25, 0.25, 25, 10)
    assert (recipe.betas, recipe.weight_decay, recipe.final_lr) == ((0.9, 0.95), 0.1, 0.01)
    assert (recipe.freeze_image, recipe.layer_decay) == (False, 1)


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
        ({"lambda2": -0.1}, r"lambda2 is -0.1; expected a number from 0 to inf"),
        ({"lambda3": "high"}, "lambda3 is 'high'"),
        ({"pathway_temperature": 0}, "pathway_temperature is 0; expected 0.01 or more"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"region_start": 0}, "region_start is 0; expected a whole number of 1"),
        ({"selection": "hgv"}, r"selection is 'hgv'.*Did you mean 'hvg'"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"freeze_image": "yes"}, "freeze_image is 'yes'; expected True or False"),
        ({"freeze_image": 1}, "freeze_image is 1; expected True or False"),
        ({"layer_decay": 0}, "layer_decay is 0; expected a number above 0, at most 1"),
        ({"layer_decay": 1.1}, r"layer_decay is 1\.1; expected a number above 0"),
    ],
)
def test_refusals(values, message):
    with pytest.raises(DataError, match=message):
        Recipe().updated(values)
