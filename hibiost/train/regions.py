"""Regions of the training spots, renewed from the embeddings as they are learned."""

from __future__ import annotations

import numpy as np

from ..model import HibioModel
from ..spatial import coherence, fused_neighbors, leiden, region_graph
from .data import Pairs, centre


class Regions:
    """The region of each training spot; before the first renewal every slide is one region.

    Parameters
    ----------
    slide
        int, (n_spots,): the slide of each spot, from 0 on.
    xy
        Spot centres, n_spots x 2, in any unit that is the same within a slide.
    n_neighbors
        Neighbours of a spot in the graph that is clustered.
    seed
        Seed of the clustering.
    """

    def __init__(self, slide: np.ndarray, xy: np.ndarray, *, n_neighbors: int, seed: int) -> None:
        self.slide, self.xy = slide, xy
        self.ids = np.array(slide, dtype=np.int64)
        self.history: dict[int, np.ndarray] = {0: self._numbered()}
        self._n_neighbors, self._seed = n_neighbors, seed

    def renew(self, embeddings: np.ndarray, epoch: int) -> dict[str, float]:
        """Cluster each slide anew by fused distance and modularity (HiBio-ST, eqs 7 and 8).

        Parameters
        ----------
        embeddings
            Image and gene embeddings side by side, n_spots x dim.
        epoch
            Epochs trained so far.

        Returns
        -------
        ``epoch``, ``n_regions`` of all slides, and ``coherence``: the share of a spot's six nearest spots in space that
        are in its region.
        """
        n_regions, shares, sizes = 0, [], []
        for slide in np.unique(self.slide):
            rows = np.flatnonzero(self.slide == slide)
            neighbors = fused_neighbors(self.xy[rows], embeddings[rows], k=self._n_neighbors)
            labels = leiden(region_graph(*neighbors), rng=self._seed)
            self.ids[rows] = labels + n_regions
            n_regions += int(labels.max()) + 1
            if len(rows) > 1:
                shares.append(coherence(labels, self.xy[rows]))
                sizes.append(len(rows))
        self.history[epoch] = self._numbered()
        share = float(np.average(shares, weights=sizes)) if shares else 1.0
        return {"epoch": epoch, "n_regions": n_regions, "coherence": share}

    def _numbered(self) -> np.ndarray:
        """Regions numbered from 0 on within each slide."""
        slides, place = np.unique(self.slide, return_inverse=True)
        lowest = np.array([self.ids[self.slide == slide].min() for slide in slides])
        return (self.ids - lowest[place]).astype(np.int32)


def joint_embeddings(model: HibioModel, pairs: Pairs, batch_size: int) -> np.ndarray:
    """Image and gene embeddings side by side of all spots, float32, n_spots x 2 ``embed_dim``, without augmentation."""
    training, size = model.training, model.config.image_size
    parts = []
    for start in range(0, len(pairs), batch_size):
        batch = slice(start, start + batch_size)
        sides = model.embed_images(centre(pairs.patches[batch], size)), model.embed_genes(pairs.tokens[batch])
        parts.append(np.concatenate(sides, axis=1))
    model.train(training)
    return np.concatenate(parts)
