"""The paper's protocols, and the floors that stand beside every model."""

from ._floors import colour_statistics, ridge
from ._paper import Recipe, gene_corrections, genes, paper_results, recipe, recipes
from ._spots import spot_level, variable_genes

__all__ = [
    "Recipe",
    "colour_statistics",
    "gene_corrections",
    "genes",
    "paper_results",
    "recipe",
    "recipes",
    "ridge",
    "spot_level",
    "variable_genes",
]
