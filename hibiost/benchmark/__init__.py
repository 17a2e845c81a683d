"""The paper's protocols, and the floors that stand beside every model."""

from ._floors import colour_statistics, ridge
from ._genes import variable_genes
from ._paper import DatasetRecipe, gene_corrections, genes, paper_results, recipe, recipes
from ._run import run
from ._splits import Fold, folds
from ._spots import spot_level
from ._summary import compare, summary
from ._tables import tables

__all__ = [
    "DatasetRecipe",
    "Fold",
    "colour_statistics",
    "compare",
    "folds",
    "gene_corrections",
    "genes",
    "paper_results",
    "recipe",
    "recipes",
    "ridge",
    "run",
    "spot_level",
    "summary",
    "tables",
    "variable_genes",
]
