"""Preprocessing: gene sentences from counts, their overlap with pathways; tissue, spots and patches of images."""

from ._grid import grid
from ._map_genes import map_genes
from ._overlap import pathway_overlap
from ._patches import extract_patches, iter_patches
from ._sentences import tfidf_sentences
from ._tissue import tissue_mask

__all__ = ["extract_patches", "grid", "iter_patches", "map_genes", "pathway_overlap", "tfidf_sentences", "tissue_mask"]
