"""The training task, its data, its recipe and its engine."""

from .data import Pairs
from .engine import Engine
from .estimate import Estimate, OnDevices, estimate
from .finetune import FineTuning, Measured, finetune
from .fit import fit
from .pathways import PathwayAnchors
from .recipe import Recipe
from .regions import Regions
from .run import Run
from .store import PatchStore

__all__ = [
    "Engine",
    "Estimate",
    "FineTuning",
    "Measured",
    "OnDevices",
    "Pairs",
    "PatchStore",
    "PathwayAnchors",
    "Recipe",
    "Regions",
    "Run",
    "estimate",
    "finetune",
    "fit",
]
