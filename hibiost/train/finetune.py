"""Expression from images by regression: image tower and linear head, trained together (HiBio-ST, C.2.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import DataError, RunError, check_choice, nearest
from ..model import HibioModel
from .data import Batches, Draws, augment, hash_seed
from .fit import lightning_precision
from .recipe import PRECISIONS


@dataclass(frozen=True)
class FineTuning:
    """How a tower is fine-tuned; the defaults are the paper's (HiBio-ST, C.2.2), but ``patience`` and ``precision``.

    Parameters
    ----------
    epochs
        Passes over the spots.
    batch_size
        Spots a step.
    lr
        Learning rate of SGD with a momentum of 0.9.
    weight_decay
        On all weights.
    freeze
        Train the head alone: linear probing.
    patience
        Epochs without a better validation error before training stops; counts only where there is a validation.
    precision
        As of :class:`hibiost.train.Recipe`.
    """

    epochs: int = 30
    batch_size: int = 256
    lr: float = 5e-5
    weight_decay: float = 1e-4
    freeze: bool = False
    patience: int = 5
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise DataError(f"recipe: {name} is {value!r}; expected a whole number of 1 or more.")
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise DataError(f"recipe: {name} is {value!r}; expected a number from 0 on.")
        if not isinstance(self.freeze, bool):
            raise DataError(f"recipe: freeze is {self.freeze!r}; expected True or False.")
        check_choice("recipe: precision", self.precision, PRECISIONS)

    @classmethod
    def of(cls, values: Mapping[str, Any] | FineTuning | None) -> FineTuning:
        """From a mapping; unknown names are refused."""
        if isinstance(values, FineTuning):
            return values
        known = {f.name for f in fields(cls)}
        for key in values or {}:
            if key not in known:
                raise DataError(f"a recipe of fine-tuning has no {key!r}; it has {sorted(known)}.{nearest(key, known)}")
        return replace(cls(), **(values or {}))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """Spots with patches and expression.

    Parameters
    ----------
    patches
        uint8, n_spots x size x size x 3; a memory map is read as its rows are asked for.
    expression
        float32, n_spots x n_genes.
    """

    patches: np.ndarray
    expression: sparse.csr_matrix

    def batch(self, spots: np.ndarray | slice, device: torch.device) -> tuple[Tensor, Tensor]:
        """Patches and expression of some spots, on a device."""
        pixels, values = torch.tensor(self.patches[spots]), torch.from_numpy(self.expression[spots].toarray())
        return pixels.to(device), values.to(device)


def finetune(
    model: HibioModel,
    training: Measured,
    *,
    recipe: FineTuning,
    seed: int,
    validation: Measured | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray, list[dict[str, float]]]:
    """Train the image tower of a model, in place, and a linear head by the mean squared error.

    Patches are turned and mirrored at random as in pretraining. The head begins with weight zero and the training mean
    as bias, so that the first prediction is that mean. With a validation, the weights of its best epoch are kept.

    Parameters
    ----------
    model
        The model, changed in place, on the device to train on. The head reads the tower before its projection, which
        stays as it is, as does the gene tower.
    training
        Training spots.
    recipe
        Training parameters.
    seed
        The same seed gives the same weights.
    validation
        Spots that are not trained on.
    progress
        Show a progress bar.

    Returns
    -------
    Weight and bias of the head, float32, width x n_genes and (n_genes,); and one entry an epoch: means of ``loss``, and
    ``validation_mse``.

    Raises
    ------
    RunError
        The loss is no longer finite.

    Examples
    --------
    >>> import numpy as np, hibiost as hb
    >>> from scipy import sparse
    >>> vocabulary = hb.genes.Vocabulary(("ERBB2", "MGP"), np.array([1, 2]), np.array([3, 3]))
    >>> model = hb.model.HibioModel(hb.model.ModelConfig.preset("ResNet-10"), vocabulary)
    >>> expression = sparse.csr_matrix(np.eye(4, 2, dtype=np.float32))
    >>> spots = hb.train.Measured(np.zeros((4, 112, 112, 3), dtype=np.uint8), expression)
    >>> recipe = hb.train.FineTuning(epochs=1, batch_size=4)
    >>> weight, bias, history = hb.train.finetune(model, spots, recipe=recipe, seed=0, progress=False)
    >>> weight.shape, bias.shape
    ((512, 2), (2,))
    """
    device = model.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        task = _Regression(model, training, recipe, seed)
        n_spots = len(task.batches) * recipe.batch_size * recipe.epochs
        with tqdm(total=n_spots, desc="fine-tune", unit=" spots", unit_scale=True, disable=not progress) as bar:
            history = _fitted(task, validation, bar)
    model.eval()
    weight, bias = (each.detach().float().cpu().numpy() for each in (task.head.weight.T, task.head.bias))
    return np.ascontiguousarray(weight), bias, history


def _fitted(task: _Regression, validation: Measured | None, bar: Any) -> list[dict[str, float]]:
    """The history; the weights are those of the best epoch, where there is a validation."""
    history: list[dict[str, float]] = []
    best, kept = 0, dict[str, Tensor]()
    for epoch in range(task.recipe.epochs):
        history.append({"epoch": epoch + 1, "loss": task.epoch(epoch, bar)})
        if validation is None:
            continue
        history[-1]["validation_mse"] = task.error(validation)
        if not kept or history[-1]["validation_mse"] < history[best]["validation_mse"]:
            best, kept = epoch, {name: value.detach().clone() for name, value in task.trained.state_dict().items()}
        if epoch - best >= task.recipe.patience:
            break
    if kept:
        task.trained.load_state_dict(kept)
    return history


class _Regression:
    """Image tower and head, the spots they are trained on, and their optimiser."""

    def __init__(self, model: HibioModel, training: Measured, recipe: FineTuning, seed: int) -> None:
        self.model, self.training, self.recipe, self.seed = model, training, recipe, seed
        self.batches = Batches(len(training.patches), recipe.batch_size, seed)
        bfloat = lightning_precision(recipe.precision, model.device.type) == "bf16-mixed"
        self.autocast = torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=bfloat)
        mean = np.asarray(training.expression.astype(np.float64).mean(axis=0), dtype=np.float32).ravel()
        width = model.image_features(training.patches[:1]).shape[1]
        self.head = nn.Linear(width, len(mean), device=model.device)
        nn.init.zeros_(self.head.weight)
        self.head.bias.data.copy_(torch.from_numpy(mean))
        self.trained = nn.ModuleList([model.visual, self.head])
        model.freeze_image(recipe.freeze)
        weights = [each for each in self.trained.parameters() if each.requires_grad]
        self.optimizer = torch.optim.SGD(weights, lr=recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)

    def predicted(self, pixels: Tensor) -> Tensor:
        """Expression of patches in 0-255, batch x 3 x size x size."""
        with self.autocast:
            features = self.model.encode_features(pixels)
        predicted: Tensor = self.head(features.float())
        return predicted

    def epoch(self, number: int, bar: Any) -> float:
        """Train on all batches of an epoch; returns the mean loss."""
        self.batches.set_epoch(number)
        losses = []
        for step, spots in enumerate(self.batches):
            self.model.train()
            pixels, values = self.training.batch(spots, self.model.device)
            chance = torch.Generator().manual_seed(hash_seed(self.seed, number * len(self.batches) + step))
            draws = Draws.of(len(spots), 0, 0.0, chance).part(slice(None), pixels.device)
            loss = F.mse_loss(self.predicted(augment(pixels, pixels.shape[1], draws)), values)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise RunError(f"the loss is {losses[-1]:g} in epoch {number + 1}; lower the recipe's lr.")
            bar.update(len(spots))
            bar.set_postfix_str(f"epoch {number + 1}, loss {losses[-1]:.3f}", refresh=False)
        return float(np.mean(losses))

    @torch.inference_mode()
    def error(self, measured: Measured) -> float:
        """Mean squared error on other spots."""
        self.model.eval()
        total, step = 0.0, self.recipe.batch_size
        for start in range(0, len(measured.patches), step):
            pixels, values = measured.batch(slice(start, start + step), self.model.device)
            predicted = self.predicted(pixels.permute(0, 3, 1, 2))
            total += F.mse_loss(predicted, values, reduction="sum").item()
        return total / math.prod(measured.expression.shape)
