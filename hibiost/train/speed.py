"""The speed of training on this machine, by a few steps on random data."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import lightning
import numpy as np
import torch

from ..model import HibioModel, ModelConfig
from ..settings import settings
from .data import Pairs
from .engine import Engine
from .estimate import numbered_vocabulary
from .fit import fit
from .recipe import Recipe
from .store import stored_side

WARM, STEPS = 3, 10
"""Steps before the clock counts, and after that."""


def measured_speed(
    config: ModelConfig, recipe: Recipe, *, n_genes: int, engine: Engine, device: str, steps: int = STEPS
) -> float:
    """Samples a second of :func:`fit` on one device, as recipe and engine say: the median of a few steps.

    Patches and sentences are random and in memory. Pathways and regions, less than 1 % of a step, are left out.
    """
    rng, batch, clock = np.random.default_rng(0), recipe.batch_size, _Clock()
    model = HibioModel(config, numbered_vocabulary(n_genes)).to(device)
    n_spots, side = batch * (1 + WARM + steps), stored_side(config.image_size, recipe.shift)
    patches = rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    tokens = model.tokenizer(rng.integers(0, n_genes, (n_spots, recipe.n_genes)))
    with settings.override(verbosity="error"):
        fit(
            model,
            Pairs(patches, tokens, np.arange(n_spots) % batch),
            recipe=recipe.updated({"epochs": 1}),
            seed=0,
            engine=replace(engine, loggers=()),
            accelerator=device,
            progress=False,
            callbacks=[clock],
        )
    return float(batch / np.median(np.diff(clock.times)[WARM:]))


class _Clock(lightning.Callback):
    """When each step was over."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())
