"""Several processes, or micro-batches, give what one process gives of the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy import RECIPE, new_model, pairs, trained

from hibiost.train import Engine, fit

TOY = Path(__file__).with_name("toy.py")


STILL = {"epochs": 3, "lr": 1e-7}
"""Three levels in the last epoch; Adam moves weights by the rate, whatever the gradient, so rounding stays rounding."""


def close(found, expected, *, tolerance=1e-5):
    """Losses of all steps and gradients of the last to 1e-5; regions are the same."""
    assert found["losses"] == pytest.approx(expected["losses"], rel=tolerance)
    assert {"spot", "pathway", "region"} < expected["history"][-1].keys()
    assert found["gradients"].keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        error = (found["gradients"][name] - gradient).norm()
        assert error <= tolerance * max(gradient.norm(), 0.1), name
    for ours, theirs in zip(found["history"], expected["history"], strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)
    assert found["renewals"] == expected["renewals"]
    for name, weights in expected["weights"].items():
        torch.testing.assert_close(found["weights"][name], weights, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What several processes found, by tower; torchrun itself starts those of tests/tl/test_run.py."""
    folder = tmp_path_factory.mktemp("together")
    towers = {"resnet": 2, "vit": 3}
    jobs = [[n, str(folder / tower), {"tower": tower, **STILL}] for tower, n in towers.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, str(TOY), "together", json.dumps(jobs)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return {tower: torch.load(folder / tower, weights_only=True) for tower in towers}


@pytest.mark.parametrize("tower", ["resnet", "vit"])
def test_processes_together_are_one(together, tower):
    """Three processes share 16 spots unevenly; batch normalisation of the ResNet sees those of both processes."""
    close(together[tower], trained(tower=tower, **STILL))


@pytest.fixture(scope="module")
def whole():
    return trained(**STILL)


@pytest.mark.parametrize("engine", [{"micro_batch": 5}, {"micro_batch": 1, "gradient_checkpointing": True}], ids=str)
def test_micro_batches_are_the_whole_batch(whole, engine):
    close(trained(**STILL, engine=engine), whole)


def test_running_statistics_move_once_though_features_are_computed_twice():
    """Two micro-batches a step are two statistics, as without the second computation."""
    model, kept = new_model(), []
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    norm.register_forward_pre_hook(lambda norm, args: kept.append((args[0].detach(), norm.momentum)))
    recipe = RECIPE.updated({"epochs": 1, "batch_size": 48})
    fit(model, pairs(model), recipe=recipe, seed=0, engine=Engine(micro_batch=24), progress=False)
    assert [momentum for _, momentum in kept] == [0.1, 0.1, 0.0, 0.0]
    expected = torch.zeros(norm.num_features)
    for x, _ in kept[:2]:
        expected = 0.9 * expected + 0.1 * x.mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, expected)


@pytest.mark.slow
def test_compiled_towers_are_the_same(whole):
    found = trained(**STILL, engine={"compile": True})
    close(found, whole)
    assert found["weights"].keys() == whole["weights"].keys()
