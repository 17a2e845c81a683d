"""Model configuration: presets, and what a model file stores beside the weights."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import resources
from typing import Any

from ..errors import ModelError, nearest

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and pixel preprocessing of a model.

    Parameters
    ----------
    embed_dim
        Width of the space that images and gene sentences share.
    vision_cfg
        Image tower, in open_clip's terms (``open_clip.CLIPVisionCfg``). With ``timm_args`` beside ``timm_model_name``
        and ``image_size``, the tower is that timm model with these arguments of ``timm.create_model``, and a linear
        projection.
    text_cfg
        Gene-sentence tower, in open_clip's terms (``open_clip.CLIPTextCfg``); the vocabulary size follows from the
        vocabulary and is not given here.
    patch_size
        Side of the patch cut around a spot, in pixels at ``mpp``; it is resized to ``vision_cfg["image_size"]``.
    mpp
        Micrometres per pixel at which patches are cut; ``None`` for the pixels of the full-resolution image.
    mean, std
        Channel statistics of images scaled to 0–1.
    quick_gelu
        Both towers use the approximation of GELU that some weights of CLIP were trained with.
    recipe
        Training values that suit this architecture (fields of :class:`hibiost.train.Recipe`).
    """

    embed_dim: int
    vision_cfg: dict[str, Any]
    text_cfg: dict[str, Any]
    patch_size: int = 224
    mpp: float | None = None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    quick_gelu: bool = False
    recipe: dict[str, Any] = field(default_factory=dict)

    @property
    def image_size(self) -> int:
        """Side of the image tower's input in pixels."""
        return int(self.vision_cfg.get("image_size", 224))

    @property
    def context_length(self) -> int:
        """Tokens of a sentence, with start, metadata, end and padding."""
        return int(self.text_cfg["context_length"])

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """From plain JSON values; unknown keys are refused by name."""
        known = {f.name for f in fields(cls)}
        for key in values:
            if key not in known:
                raise ModelError(
                    f"unknown key {key!r} in a model configuration; known: {sorted(known)}.{nearest(key, known)}"
                )
        values = dict(values)
        for key in ("mean", "std"):
            if key in values:
                values[key] = tuple(values[key])
        return cls(**values)

    @classmethod
    def preset(cls, name: str) -> ModelConfig:
        """A preset by name, see :func:`presets`."""
        known = presets()
        if name not in known:
            raise ModelError(
                f"no model preset {name!r}; the presets are {known}. Encoders from elsewhere: see "
                f"hb.model.image_encoder.{nearest(name, known)}"
            )
        return cls.from_dict(json.loads((_folder() / f"{name}.json").read_text()))

    def with_mpp(self, mpp: float | None) -> ModelConfig:
        """The same configuration, with patches cut at another physical scale."""
        return replace(self, mpp=mpp)


def _folder() -> Any:
    return resources.files(__package__) / "presets"


def presets() -> list[str]:
    """Names of the model presets, for ``hibiost.tl.pretrain(image_encoder=...)``.

    Returns
    -------
    The names, sorted.

    Examples
    --------
    >>> import hibiost as hb
    >>> "ViT-B-16" in hb.model.presets()
    True
    """
    return sorted(entry.name.removesuffix(".json") for entry in _folder().iterdir() if entry.name.endswith(".json"))
