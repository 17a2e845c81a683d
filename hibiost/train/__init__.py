"""The training task, its data and its recipe."""

from .data import Pairs, store_patches
from .fit import fit
from .recipe import Recipe

__all__ = ["Pairs", "Recipe", "fit", "store_patches"]
