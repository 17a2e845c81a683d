"""Training parameters: typed, with the paper's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..errors import DataError, nearest

PRECISIONS = ("auto", "32", "bf16")


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the defaults are the paper's (HiBio-ST, section 3 and C.1).

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
    precision
        ``"32"``, ``"bf16"`` (autocast), or ``"auto"``: bf16 where the processor or GPU computes in it.
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
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 2)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise DataError(f"recipe: {name} is {value!r}; expected a whole number of {low} or more.")
        for name in ("lr", "weight_decay", "warmup", "final_lr", "shift", "colour_jitter"):
            value = getattr(self, name)
            high = float("inf") if name in ("lr", "weight_decay") else 1.0
            if not 0 <= value <= high:
                raise DataError(f"recipe: {name} is {value!r}; expected a number from 0 to {high:g}.")
        if self.precision not in PRECISIONS:
            raise DataError(f"recipe: precision is {self.precision!r}; expected one of {list(PRECISIONS)}.")

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
