"""Known public data and synthetic tissue, as AnnData."""

from ._dlpfc import dlpfc
from ._genesets import gene_sets
from ._her2st import her2st
from ._hgnc import hgnc_symbols
from ._mob_st import mob_st
from ._tissue import tissue

__all__ = ["dlpfc", "gene_sets", "her2st", "hgnc_symbols", "mob_st", "tissue"]
