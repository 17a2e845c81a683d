"""Pathways as anchors of the images: what level two learns beside the towers."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from ..model.losses import pathway_alignment
from .recipe import MIN_TEMPERATURE

MAX_LOGIT_SCALE = -math.log(MIN_TEMPERATURE)


class PathwayAnchors(nn.Module):
    """Projection of image embeddings to the width of the gene tokens, where pathways have their prototypes.

    Parameters
    ----------
    overlap
        Overlap coefficients of the training spots (HiBio-ST, eq 5), n_spots x n_pathways.
    members
        n_pathways x n_genes of the vocabulary, 1 for a member.
    embed_dim, width
        Of the image embeddings and of the token embeddings.
    n_negatives
        Pathways drawn for each batch beside the positives of its spots.
    temperature
        First value of the learned temperature.
    """

    def __init__(
        self,
        overlap: sparse.csr_matrix,
        members: sparse.csr_matrix,
        *,
        embed_dim: int,
        width: int,
        n_negatives: int,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.project = nn.Linear(embed_dim, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.n_negatives = n_negatives
        self._overlap = overlap
        self._members = members

    def prototypes(self, gene_embeddings: Tensor, pathways: Tensor) -> Tensor:
        """Mean token embedding of the genes of some pathways (HiBio-ST, eq 6), n_pathways x width."""
        members = self._members[pathways.numpy()]
        genes = torch.from_numpy(members.indices).long().to(gene_embeddings.device)
        starts = torch.from_numpy(members.indptr[:-1]).long().to(gene_embeddings.device)
        return F.embedding_bag(genes, gene_embeddings, starts, mode="mean")

    def forward(
        self, image: Tensor, spots: np.ndarray, gene_embeddings: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, float]:
        """Loss of a batch (HiBio-ST, eq 11), and the share of its spots that have a positive pathway.

        Parameters
        ----------
        image
            Image embeddings, batch x embed_dim.
        spots
            Rows of the batch among the training spots.
        gene_embeddings
            Token embeddings of the vocabulary, n_genes x width.
        generator
            CPU generator of the negatives.
        """
        overlap = torch.from_numpy(self._overlap[spots].toarray())
        candidates, negative = draw_candidates(overlap > 0, self.n_negatives, generator)
        overlap = overlap[:, candidates]
        among = ((overlap > 0) | negative).to(image.device)
        prototypes = self.prototypes(gene_embeddings, candidates)
        scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        loss = pathway_alignment(self.project(image), prototypes, overlap.to(image), among, scale)
        return loss, (overlap > 0).any(dim=1).float().mean().item()


def draw_candidates(positive: Tensor, n_negatives: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The pathways that a batch is compared with.

    Negatives are drawn from the pathways that are positive for no spot of the batch, and from the others where those
    are too few.

    Parameters
    ----------
    positive
        bool, batch x n_pathways.
    n_negatives
        How many to draw; fewer where there are fewer pathways.
    generator
        CPU generator.

    Returns
    -------
    The pathways, rising, and whether each was drawn as a negative.
    """
    in_batch = positive.any(dim=0)
    order = torch.randperm(len(in_batch), generator=generator)
    drawn = order[torch.argsort(in_batch[order].int(), stable=True)][:n_negatives]
    negative = torch.zeros_like(in_batch)
    negative[drawn] = True
    candidates = torch.nonzero(in_batch | negative).squeeze(1)
    return candidates, negative[candidates]
