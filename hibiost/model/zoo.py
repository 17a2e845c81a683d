"""Encoders of lazyslide-models, an optional package."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError, WeightsUnavailableError, nearest
from .features import FeatureEncoder


class ZooTower(nn.Module):
    """A model of the zoo as a module."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model
        self._encode = model.encode_image

    def forward(self, pixels: Tensor) -> Tensor:
        """Features, n x dim."""
        return torch.as_tensor(self._encode(pixels))


class ZooPreparation:
    """The transform that a model of the zoo has for one image, for a batch of patches."""

    def __init__(self, transform: Any) -> None:
        self._transform = transform

    def __repr__(self) -> str:
        return repr(self._transform)

    def __call__(self, patches: Tensor) -> Tensor:
        """Pixels for the tower, on the device of the patches."""
        from PIL import Image

        images = patches.permute(0, 2, 3, 1).cpu().numpy()
        return torch.stack([self._transform(Image.fromarray(image)) for image in images]).to(patches.device)


def zoo_encoder(key: str, weights: str | os.PathLike[str] | None, **options: Any) -> FeatureEncoder:
    """A model of lazyslide-models that encodes images."""
    kind = _registered(key)
    with torch.random.fork_rng(devices=[]):
        model = _made(key, kind, weights)
    return FeatureEncoder(
        f"zoo:{key}",
        ZooTower(model),
        ZooPreparation(model.get_transform()),
        licence=str(getattr(kind, "license", None) or "not told"),
        source=str(getattr(kind, "hf_url", None) or "lazyslide-models"),
        output="what lazyslide-models gives",
        **options,
    )


def _registered(key: str) -> Any:
    try:
        registry = importlib.import_module("lazyslide_models").MODEL_REGISTRY
    except ImportError as error:
        raise ModelError(
            f"'zoo:{key}' is of the package lazyslide-models, which cannot be imported ({error}): "
            "pip install 'hibiost[zoo]'."
        ) from error
    images = sorted(name for name in registry if hasattr(registry[name], "encode_image"))
    if key not in images:
        raise ModelError(f"lazyslide-models has no image encoder {key!r}; it has {images}.{nearest(key, images)}")
    return registry[key]


def _made(key: str, kind: Any, weights: str | os.PathLike[str] | None) -> Any:
    """The model with its weights."""
    from huggingface_hub.errors import HfHubHTTPError

    given = {} if weights is None else {"model_path": str(weights)}
    try:
        return kind(**given)
    except ImportError as error:
        raise ModelError(f"'zoo:{key}' needs another package: {error}") from error
    except (OSError, HfHubHTTPError) as error:
        gated = "access has to be asked for there, " if getattr(kind, "is_gated", False) else ""
        raise WeightsUnavailableError(
            f"the weights of 'zoo:{key}' are not on this machine and cannot be had ({error}). They are at "
            f"{getattr(kind, 'hf_url', None) or 'a place that lazyslide-models does not tell'}; {gated}licence: "
            f"{getattr(kind, 'license', None) or 'not told'}."
        ) from error
