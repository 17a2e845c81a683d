"""Training objectives on embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
