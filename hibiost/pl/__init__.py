"""Figures of what is in the AnnData."""

from ._clusters import spatial_clusters
from ._pred import spatial_pred

__all__ = ["spatial_clusters", "spatial_pred"]
