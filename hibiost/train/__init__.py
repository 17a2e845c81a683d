"""The training task, its data and its recipe."""

from .data import Pairs, store_patches
from .fit import fit
from .pathways import PathwayAnchors
from .recipe import Recipe
from .regions import Regions

__all__ = ["Pairs", "PathwayAnchors", "Recipe", "Regions", "fit", "store_patches"]
