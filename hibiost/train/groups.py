"""Which weights decay, and at which rate each layer of the image tower learns."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import ModelError
from .recipe import Recipe

_PLAIN = ("positional_embedding", "pos_embed", "cls_token", "reg_token")
_BESIDE = (99999,)
"""In timm's rules of grouping: to the layer before."""
_OPEN_CLIP = {
    "stem": r"^(?:conv\d|bn\d|class_embedding|positional_embedding|ln_pre)",
    "blocks": [
        (r"^transformer\.resblocks\.(\d+)", None),
        (r"^layer(\d+)\.(\d+)", None),
        (r"^ln_post", _BESIDE),
    ],
}
"""Layers of open_clip's own towers, in timm's rules of grouping; what is left, the last projection, comes last."""


def parameter_groups(module: nn.Module, recipe: Recipe, *, tower: nn.Module | None = None) -> list[dict[str, Any]]:
    """Groups of trainable weights for an optimiser: by decay, and by the learning rate of their layer.

    Matrices and embeddings decay; biases, norms, positions, class tokens and the logit scale do not.

    Parameters
    ----------
    module
        What is trained; weights without gradient are left out.
    recipe
        Gives ``lr``, ``weight_decay`` and ``layer_decay``.
    tower
        The image tower in ``module``. A weight of its layer i of n, counted from 0, learns at
        ``lr * layer_decay ** (n - 1 - i)``; the last layer is the projection.

    Returns
    -------
    ``params``, ``weight_decay`` and ``lr`` of each group; the highest rate first, and of each rate the decaying first.
    """
    depth = {} if tower is None or recipe.layer_decay == 1 else layers(tower)
    last = max(depth.values(), default=0)
    plain = _undecayed(tower)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            spared = parameter.ndim < 2 or name.endswith(_PLAIN) or parameter in plain
            groups.setdefault((last - depth.get(parameter, last), spared), []).append(parameter)
    return [
        {
            "params": groups[below, spared],
            "weight_decay": 0.0 if spared else recipe.weight_decay,
            "lr": recipe.lr * recipe.layer_decay**below,
        }
        for below, spared in sorted(groups)
    ]


def layers(tower: Any) -> dict[nn.Parameter, int]:
    """The layer of each weight of an image tower, from 0 at the pixels on; the last projection is the last layer."""
    from timm.models import group_parameters

    trunk: Any = getattr(tower, "trunk", tower)
    if trunk is tower:
        rules: Any = _OPEN_CLIP
    elif hasattr(trunk, "group_matcher"):
        rules = trunk.group_matcher(coarse=False)
    else:
        raise ModelError(
            f"timm does not tell the layers of {type(trunk).__name__}; leave layer_decay at 1 in the recipe."
        )
    numbers = group_parameters(trunk, rules, reverse=True)
    depth = {trunk.get_parameter(name): number for name, number in numbers.items()}
    if trunk is not tower:
        depth |= dict.fromkeys(tower.head.parameters(), max(numbers.values()) + 1)
    return depth


def _undecayed(tower: nn.Module | None) -> set[nn.Parameter]:
    """Weights that the authors of a timm model spare from decay, such as tables of relative positions."""
    trunk: Any = getattr(tower, "trunk", None)
    names = trunk.no_weight_decay() if hasattr(trunk, "no_weight_decay") else ()
    known = dict(trunk.named_parameters()) if names else {}
    return {known[name] for name in names if name in known}
