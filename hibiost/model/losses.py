"""Training objectives on embeddings, each a reading of its equation of HiBio-ST."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA = 1.0
"""Divergence (in nats) at which the pathway loss reaches 1 - 1/e (eq 11)."""


def info_nce(image: Tensor, gene: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE between matching rows (HiBio-ST, eqs 9 and 10).

    Parameters
    ----------
    image, gene
        l2-normalised embeddings, batch x dim; row i of one belongs to row i of the other.
    logit_scale
        Factor on the cosine similarities, that is one over the temperature.

    Returns
    -------
    The mean of the two cross-entropies, a scalar; a model that knows nothing reaches ln(batch).
    """
    logits = logit_scale * image @ gene.T
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def pathway_alignment(
    queries: Tensor, prototypes: Tensor, overlap: Tensor, among: Tensor, logit_scale: Tensor
) -> Tensor:
    """Soft alignment of images with the prototypes of their pathways (HiBio-ST, eq 11).

    ``q`` is the softmax of the overlaps of a spot's candidates (zero for a negative), ``q_hat`` that of the scaled
    cosine similarities; the loss of a spot is ``1 - exp(-KL(q_hat || q) / alpha)`` with alpha 1.

    Parameters
    ----------
    queries
        Projected image embeddings, batch x width.
    prototypes
        Mean token embedding of each candidate pathway (eq 6), n_candidates x width.
    overlap
        Overlap coefficients (eq 5), batch x n_candidates; above zero for a positive.
    among
        bool, batch x n_candidates: the spot's positives and its sampled negatives.
    logit_scale
        Factor on the cosine similarities.

    Returns
    -------
    The mean over the spots that have a positive, a scalar; 0 where none has.
    """
    rows = ((overlap > 0) & among).any(dim=1)
    queries, overlap, among = queries[rows], overlap[rows], among[rows]
    logits = logit_scale * F.normalize(queries, dim=-1) @ F.normalize(prototypes, dim=-1).T
    predicted = logits.masked_fill(~among, -torch.inf).log_softmax(dim=1)
    target = overlap.masked_fill(~among, -torch.inf).log_softmax(dim=1)
    divergence = (predicted.exp() * (predicted - target).masked_fill(~among, 0)).sum(dim=1)
    return -torch.expm1(-divergence / ALPHA).sum() / max(1, len(queries))


def region_alignment(image: Tensor, gene: Tensor, regions: Tensor, logit_scale: Tensor) -> tuple[Tensor, int]:
    """Symmetric InfoNCE between the mean image and the mean gene embedding of each region (HiBio-ST, eqs 12 and 13).

    Parameters
    ----------
    image, gene
        l2-normalised embeddings, batch x dim.
    regions
        int, (batch,): the region of each spot. Regions with one member in the batch are left out.
    logit_scale
        Factor on the cosine similarities.

    Returns
    -------
    The loss, a scalar, and the number R of regions compared: a model that knows nothing reaches ln(R). The loss is 0
    where fewer than two regions are left.
    """
    _, place, sizes = torch.unique(regions, return_inverse=True, return_counts=True)
    prototypes = [
        F.normalize(
            torch.zeros(len(sizes), side.shape[1], dtype=side.dtype, device=side.device).index_add(0, place, side)
        )
        for side in (image, gene)
    ]
    several = sizes > 1
    n_regions = int(several.sum())
    if n_regions < 2:
        return (image.sum() + gene.sum()) * 0, n_regions
    return info_nce(prototypes[0][several], prototypes[1][several], logit_scale), n_regions
