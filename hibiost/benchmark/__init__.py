"""The paper's protocols, and the floors that stand beside every model."""

from ._floors import colour_statistics, ridge
from ._spots import spot_level, variable_genes

__all__ = ["colour_statistics", "ridge", "spot_level", "variable_genes"]
