"""Figures of what is in the AnnData, of training, and of benchmarks."""

from ._benchmark import benchmark
from ._clusters import spatial_clusters
from ._history import region_history
from ._pred import spatial_pred
from ._score import spatial_score
from ._training import training

__all__ = ["benchmark", "region_history", "spatial_clusters", "spatial_pred", "spatial_score", "training"]
