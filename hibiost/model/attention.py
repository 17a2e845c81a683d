"""Causal attention of the gene tower by the fastest kernel of the device."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class CausalAttention(nn.MultiheadAttention):
    """Self-attention to what stands before, with the weights of :class:`torch.nn.MultiheadAttention`.

    PyTorch's own takes the causal mask as a matrix, for which there is no flash kernel, and copies under autocast.
    """

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **_: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        """Attend; ``key`` and ``value`` are ``query``, batch x length x width."""
        n, length, width = query.shape
        together = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        q, k, v = together.view(n, length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out_proj(out.transpose(1, 2).reshape(n, length, width)), None


def with_causal_attention(text: Any) -> Any:
    """The gene tower, its attention replaced; the weights and their names stay."""
    for module in text.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.__class__ = CausalAttention
    return text
