"""Image towers: a timm model with a projection, and which of a tower's weights is the projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class TimmTower(nn.Module):
    """A timm model without its classifier, and a linear projection; any argument of the model can be given.

    open_clip's own tower for timm models takes no arguments beyond the name; weights such as UNI's need some.

    Parameters
    ----------
    name
        Architecture, as timm knows it.
    embed_dim
        Width of the projection.
    args
        Further arguments of ``timm.create_model``, as JSON values; ``mlp_layer`` is a name of ``timm.layers``.
    """

    def __init__(self, name: str, embed_dim: int, args: Mapping[str, Any]) -> None:
        super().__init__()
        import timm

        options = dict(args)
        if "mlp_layer" in options:
            options["mlp_layer"] = getattr(timm.layers, options["mlp_layer"])
        self.trunk: Any = timm.create_model(name, pretrained=False, num_classes=0, **options)
        width: Any = getattr(self.trunk, "head_hidden_size", self.trunk.num_features)
        self.head = nn.Sequential()
        self.head.add_module("proj", nn.Linear(width, embed_dim, bias=False))

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings, batch x ``embed_dim``, of normalised pixels (batch x 3 x size x size)."""
        projected: Tensor = self.head(self.trunk(pixels))
        return projected

    def set_grad_checkpointing(self, enable: bool = True) -> None:  # noqa: FBT001, FBT002 - open_clip's signature
        """Keep fewer activations and compute them again in the backward pass, as in open_clip's towers."""
        self.trunk.set_grad_checkpointing(enable)


def tower_features(tower: Any, pixels: Tensor) -> Tensor:
    """What a timm model in an image tower makes of normalised pixels, before the projection.

    Of other towers, such as those of CLIP, what they end with.
    """
    if not hasattr(tower, "trunk"):
        return tower(pixels)
    found = tower.trunk(pixels)
    return tower.head.pool(found) if hasattr(tower.head, "pool") else found


def projection(tower: Any) -> list[nn.Parameter]:
    """The weights with which an image tower ends; none where its features are the embeddings, as in SigLIP."""
    if hasattr(tower, "trunk"):
        return list(tower.head.parameters())
    if hasattr(tower, "attnpool"):
        return list(tower.attnpool.c_proj.parameters())
    last = getattr(tower, "proj", None)
    return [] if last is None else [last]
