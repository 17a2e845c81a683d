"""Preprocessing: gene sentences from counts, their overlap with pathways, patches from images."""

from ._overlap import pathway_overlap
from ._patches import iter_patches
from ._sentences import tfidf_sentences

__all__ = ["iter_patches", "pathway_overlap", "tfidf_sentences"]
