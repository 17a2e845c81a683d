"""What the optimiser does with each weight."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight matrices and embeddings with decay; biases, norms, positions and the logit scale without."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        without = parameter.ndim < 2 or name.endswith(("positional_embedding", "pos_embed", "cls_token"))
        (plain if without else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
