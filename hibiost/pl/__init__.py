"""Figures of what is in the AnnData."""

from ._clusters import spatial_clusters
from ._history import region_history
from ._pred import spatial_pred

__all__ = ["region_history", "spatial_clusters", "spatial_pred"]
