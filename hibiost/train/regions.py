"""Regions of the training spots, renewed from the embeddings as they are learned."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._ranks import ALONE, Ranks
from ..spatial import coherence, fused_neighbors, leiden, region_graph


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

    def renew(
        self,
        embed: Callable[[np.ndarray], np.ndarray],
        epoch: int,
        ranks: Ranks = ALONE,
    ) -> dict[str, float]:
        """Cluster each slide anew by fused distance and modularity (HiBio-ST, eqs 7 and 8).

        Each process takes some slides, and memory holds the embeddings of one.

        Parameters
        ----------
        embed
            Image and gene embeddings side by side of some spots, n x dim.
        epoch
            Epochs trained so far.
        ranks
            The processes that share the slides.

        Returns
        -------
        ``epoch``, ``n_regions`` of all slides, and ``coherence``: the share of a spot's six nearest spots in space that
        are in its region.
        """
        slides = np.unique(self.slide)
        own = {int(slide): self._clustered(int(slide), embed) for slide in slides[ranks.rank :: ranks.size]}
        found = {slide: entry for part in ranks.collect(own) for slide, entry in part.items()}
        n_regions, shares, sizes = 0, [], []
        for slide in slides:
            labels, share = found[int(slide)]
            self.ids[self.slide == slide] = labels + n_regions
            n_regions += int(labels.max()) + 1
            if share is not None:
                shares.append(share)
                sizes.append(len(labels))
        self.history[epoch] = self._numbered()
        return {
            "epoch": epoch,
            "n_regions": n_regions,
            "coherence": float(np.average(shares, weights=sizes)) if shares else 1.0,
        }

    def _clustered(self, slide: int, embed: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, float | None]:
        rows = np.flatnonzero(self.slide == slide)
        neighbors = fused_neighbors(self.xy[rows], embed(rows), k=self._n_neighbors)
        labels = leiden(region_graph(*neighbors), rng=self._seed)
        return labels, coherence(labels, self.xy[rows]) if len(rows) > 1 else None

    def _numbered(self) -> np.ndarray:
        """Regions numbered from 0 on within each slide."""
        slides, place = np.unique(self.slide, return_inverse=True)
        lowest = np.array([self.ids[self.slide == slide].min() for slide in slides])
        return (self.ids - lowest[place]).astype(np.int32)
