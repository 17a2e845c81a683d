"""Preprocessing: gene sentences from counts, patches from images."""

from ._patches import iter_patches
from ._sentences import tfidf_sentences

__all__ = ["iter_patches", "tfidf_sentences"]
