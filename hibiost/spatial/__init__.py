"""Kernels on spot coordinates: neighbours, regions, votes; arrays in, arrays out."""

from .clusters import kmeans
from .neighbors import fused_neighbors, region_graph
from .regions import coherence, leiden, modularity
from .vote import majority_vote

__all__ = ["coherence", "fused_neighbors", "kmeans", "leiden", "majority_vote", "modularity", "region_graph"]
