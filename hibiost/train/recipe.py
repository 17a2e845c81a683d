"""Training parameters: typed, with the paper's defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, get_args

from ..errors import DataError, check_choice, nearest
from ..genes.tfidf import Selection

PRECISIONS = ("auto", "32", "bf16")
MIN_TEMPERATURE = 0.01
_WHOLE = {
    "epochs": 1,
    "batch_size": 2,
    "n_genes": 1,
    "min_spots": 1,
    "n_negatives": 1,
    "region_start": 1,
    "region_every": 1,
    "n_neighbors": 1,
}
"""Lowest values."""
_NUMBERS = dict.fromkeys(("lr", "weight_decay", "lambda2", "pathway_temperature", "lambda3"), math.inf) | dict.fromkeys(
    ("warmup", "final_lr", "shift", "colour_jitter", "threshold"), 1.0
)
"""Highest values."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the defaults are the paper's (HiBio-ST, sections 2 and 3, C.1).

    Parameters
    ----------
    epochs
        Passes over the spots.
    batch_size
        Spots a step; every other spot of the batch is a negative.
    lr
        Highest learning rate of AdamW.
    weight_decay
        On weight matrices only, not on biases, norms and the logit scale.
    betas
        AdamW's decay rates.
    warmup
        Share of the steps in which the rate rises linearly; a cosine follows.
    final_lr
        Last learning rate as a share of the highest.
    shift
        Patches are cut around a point up to this share of their side away from the spot's centre, anew at each step.
    colour_jitter
        Largest relative change of each colour channel and of the contrast.
    selection
        How the genes of a sentence are chosen, see :func:`hibiost.pp.tfidf_sentences`.
    n_genes
        Length of a sentence.
    min_spots
        Leave genes seen in fewer spots out of the vocabulary.
    threshold
        Pathways whose overlap with a spot's sentence is above it are its positives (eq 5).
    lambda2
        Weight of the pathway loss (eq 14); 0 leaves level two out.
    pathway_temperature
        First value of the learned temperature of the pathway loss. At 1, cosines that equal the overlaps are the target
        of eq 11.
    n_negatives
        Pathways drawn for each batch beside the positives of its spots.
    lambda3
        Weight of the region loss (eq 14); 0 leaves level three out.
    region_start
        Epochs before regions are first found and aligned.
    region_every
        Epochs from one renewal of the regions to the next.
    n_neighbors
        Neighbours of a spot in the graph that gives the regions.
    precision
        ``"32"``, ``"bf16"`` (autocast), or ``"auto"``: bf16 where the processor or GPU computes in it.
    freeze_image
        Train nothing of the image tower but its last projection; for towers that start from other weights, see
        :func:`hibiost.model.image_encoder`.
    layer_decay
        Each layer of the image tower learns at this share of the rate of the next deeper one; the last projection, the
        gene tower and the heads learn at the full rate. 1 for one rate; 0.65 to 0.9 spare the first layers of a trained
        tower.
    """

    epochs: int = 50
    batch_size: int = 512
    lr: float = 2.56e-5
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 0.1
    final_lr: float = 0.01
    shift: float = 0.0
    colour_jitter: float = 0.0
    selection: Selection = "tfidf"
    n_genes: int = 250
    min_spots: int = 1
    threshold: float = 0.2
    lambda2: float = 0.25
    pathway_temperature: float = 1.0
    n_negatives: int = 64
    lambda3: float = 0.25
    region_start: int = 25
    region_every: int = 10
    n_neighbors: int = 15
    precision: str = "auto"
    freeze_image: bool = False
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        for name, low in _WHOLE.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise DataError(f"recipe: {name} is {value!r}; expected a whole number of {low} or more.")
        for name, high in _NUMBERS.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= high:
                raise DataError(f"recipe: {name} is {value!r}; expected a number from 0 to {high:g}.")
        for name, kind, low, expected in (
            ("freeze_image", bool, -1, "True or False"),
            ("layer_decay", int | float, 0, "a number above 0, at most 1"),
        ):
            value = getattr(self, name)
            if not isinstance(value, kind) or not low < value <= 1:
                raise DataError(f"recipe: {name} is {value!r}; expected {expected}.")
        if not self.pathway_temperature >= MIN_TEMPERATURE:
            raise DataError(
                f"recipe: pathway_temperature is {self.pathway_temperature!r}; expected {MIN_TEMPERATURE} or more."
            )
        for name, known in (("selection", get_args(Selection)), ("precision", PRECISIONS)):
            check_choice(f"recipe: {name}", getattr(self, name), known)

    def updated(self, values: Mapping[str, Any]) -> Recipe:
        """The recipe with some values replaced; unknown names are refused."""
        known = {f.name for f in fields(self)}
        for key in values:
            if key not in known:
                raise DataError(f"a recipe has no {key!r}; it has {sorted(known)}.{nearest(key, known)}")
        values = dict(values)
        if "betas" in values:
            values["betas"] = tuple(values["betas"])
        return replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "betas": list(self.betas)}
