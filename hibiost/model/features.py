"""Frozen image towers as they are: the features of other models beside the embeddings of one's own."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ModelError, WeightsUnavailableError, nearest
from .config import ModelConfig
from .encoders import ImageEncoder, entries, resolved
from .inference import EncoderInference
from .weights import fingerprint, fitting, read_weights

PATCH_SIZE = 224
_SHORT = {
    "densenet121": "timm:densenet121.tv_in1k",
    "openclip": "open_clip:ViT-B-16/laion2b_s34b_b88k",
    "resnet50": "timm:resnet50.tv_in1k",
    "stpath": "gigapath",
}
"""Names of the paper's tables; STPath reads the features of GigaPath, which stays as it is."""
_ON_REQUEST = {
    "umpire": "the authors give them at request, see github.com/Hanminghao/UMPIRE; no licence is told. Its image tower "
    "is that of CONCH: where its file has CONCH's names, hb.model.feature_encoder('conch', weights=...) reads it."
}
_OUTPUTS = {
    "attention": "attention pooling for contrast, before its projection (proj_contrast=False)",
    "class and mean": "class token and mean of the patch tokens",
    "clip": "image embedding of the CLIP, with its projection",
    "timm": "pooled features before the classifier",
}


@dataclass(frozen=True)
class FeatureConfig:
    """What patches a :class:`FeatureEncoder` reads, and how many features it gives.

    Parameters
    ----------
    embed_dim
        Features of a patch.
    patch_size
        Side of the patch cut around a spot, in pixels at ``mpp``.
    mpp
        Micrometres per pixel at which patches are cut; ``None`` for the pixels of the full-resolution image.
    """

    embed_dim: int
    patch_size: int
    mpp: float | None

    @property
    def image_size(self) -> int:
        """Side of the patches handed over: as they are cut, since the encoder resizes them itself."""
        return self.patch_size


@dataclass(frozen=True)
class Preparation:
    """Resize, centre crop and normalisation of patches, as timm evaluates: uint8 n x 3 x side x side to float32."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: float = 1.0
    interpolation: str = "bicubic"

    def __call__(self, patches: Tensor) -> Tensor:
        """Patches of any side as the tower wants them."""
        pixels, side = patches.float(), int(self.size / self.crop)
        if pixels.shape[-1] != side:
            mode = "bilinear" if self.interpolation == "bilinear" else "bicubic"
            pixels = F.interpolate(pixels, (side, side), mode=mode, antialias=True, align_corners=False)
            pixels = pixels.round().clamp(0, 255)
        first = round((side - self.size) / 2)
        pixels = pixels[..., first : first + self.size, first : first + self.size]
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) * 255 for values in (self.mean, self.std))
        return (pixels - mean) / std


class FeatureEncoder:
    """A frozen image tower with the preprocessing it was made with, beside :class:`HibioModel` in ``hibiost.tl.embed``.

    Made by :func:`feature_encoder`.

    Parameters
    ----------
    name
        What it is called.
    tower
        Gives features, n x dim, of prepared pixels.
    prepare
        From uint8 patches (n x 3 x side x side, on the tower's device) to pixels for the tower.
    licence, source
        Licence of the weights and where they come from, as far as they are known.
    output
        Which of the tower's outputs the features are.
    patch_size, mpp
        Side of the patches in pixels, and the pixel size at which they are cut; see :func:`feature_encoder`.
    trained_mpp
        Micrometres per pixel that the encoder was trained at, where it was one.
    castable
        Whether the tower computes in bfloat16 once its weights are cast; others stay in float32.
    """

    def __init__(
        self,
        name: str,
        tower: nn.Module,
        prepare: Callable[[Tensor], Tensor],
        *,
        licence: str,
        source: str,
        output: str,
        patch_size: int = PATCH_SIZE,
        mpp: float | None = None,
        trained_mpp: float | None = None,
        castable: bool = True,
    ) -> None:
        self.name, self.licence, self.source, self.output = name, licence, source, output
        self.training_info: dict[str, Any] = {"mpp": trained_mpp}
        self.tower = tower.eval().requires_grad_(False)  # noqa: FBT003 - torch's signature
        self.prepare, self.castable = prepare, castable
        self.device = torch.device("cpu")
        found = self._features(np.zeros((1, patch_size, patch_size, 3), np.uint8))
        if found.ndim != 2:
            raise ModelError(f"{name} gives features of shape {tuple(found.shape[1:])} for a patch; expected a vector.")
        self.config = FeatureConfig(found.shape[1], patch_size, mpp)

    @property
    def embed_dim(self) -> int:
        """Features of a patch."""
        return self.config.embed_dim

    @property
    def patch_size(self) -> int:
        """Side of the patches in pixels."""
        return self.config.patch_size

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel at which patches are cut; ``None`` for those of the slide."""
        return self.config.mpp

    def to(self, device: str | torch.device) -> FeatureEncoder:
        """Put the weights on a device; returns the encoder itself."""
        self.device = torch.device(device)
        self.tower.to(self.device)
        return self

    def inference(self, precision: str = "float32") -> EncoderInference:
        """The encoder as it embeds, in some precision; see :meth:`HibioModel.inference`."""
        return EncoderInference(self, precision)

    def embed_images(self, patches: np.ndarray) -> np.ndarray:
        """Features of uint8 patches, n x side x side x 3, in one batch; float32, n x ``embed_dim``, not normalised."""
        return self._features(patches)

    def fingerprint(self) -> str:
        """A short hash of the weights and the preprocessing: features can be compared only where it is the same."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint(self.tower.state_dict(), self.output, repr(self.config), repr(self.prepare))

    @torch.inference_mode()
    def _features(self, patches: np.ndarray) -> np.ndarray:
        pixels = self.prepare(torch.tensor(patches, device=self.device).permute(0, 3, 1, 2))
        features: np.ndarray = self.tower(pixels).float().cpu().numpy()
        return features


def feature_encoder(
    name: str | os.PathLike[str],
    weights: str | os.PathLike[str] | None = None,
    *,
    device: str = "cpu",
    patch_size: int = PATCH_SIZE,
    mpp: float | None = None,
) -> FeatureEncoder:
    """A frozen image encoder of another package, for ``hibiost.tl.embed`` and the benchmark.

    Its own preprocessing is used: input size, interpolation, crop, mean and standard deviation. Features are those
    that the encoder is usually compared by, ``encoder.output`` says which: of a CLIP such as OmiCLIP, PLIP or OpenCLIP
    its image embedding; of CONCH the attention pooling for contrast before the projection; of Virchow the class token
    and the mean of the patch tokens; of the others the pooled features before the classifier. They are not normalised.

    Parameters
    ----------
    name
        What :func:`image_encoder` takes; the folder of a model in timm's or open_clip's layout; ``"densenet121"``,
        ``"resnet50"`` (ImageNet weights of torchvision) or ``"openclip"`` (ViT-B-16 of LAION-2B); ``"stpath"``, whose
        image tower is GigaPath; or ``"zoo:NAME"``, a model of the package lazyslide-models
        (``pip install 'hibiost[zoo]'``).
    weights
        Local file or folder of the weights; by default they are taken from the cache of the hub where they are there,
        and else downloaded. Without weights there is no encoder: random ones never take their place.
    device
        Where to put the weights, such as ``"cpu"`` or ``"cuda"``.
    patch_size
        Side of the patch cut around a spot, in pixels at ``mpp``; the encoder resizes it to its own input size.
    mpp
        Micrometres per pixel at which patches are cut; by default full-resolution pixels as they are, as in the paper.
        :func:`encoders` tells what an encoder was trained at.

    Returns
    -------
    The encoder: ``name``, ``embed_dim``, ``patch_size``, ``mpp``, ``licence``, ``source``, ``output``,
    ``embed_images``, ``fingerprint`` and ``to``.

    Raises
    ------
    ModelError
        An unknown name, a file that is absent or holds other weights, or a package that is not installed.
    WeightsUnavailableError
        The weights are not on this machine and cannot be had; where they are, their licence and how to get access.

    Examples
    --------
    >>> import hibiost as hb, torch
    >>> vocabulary = hb.genes.Vocabulary(("ERBB2", "MGP"), [1, 2], [3, 3])
    >>> source = hb.model.HibioModel(hb.model.ModelConfig.preset("ResNet-10"), vocabulary).visual.trunk
    >>> torch.save(source.state_dict(), "resnet10t.pt")
    >>> encoder = hb.model.feature_encoder("timm:resnet10t", "resnet10t.pt")
    >>> encoder.embed_dim, encoder.output
    (512, 'pooled features before the classifier')
    >>> adata = hb.datasets.tissue(50)
    >>> hb.tl.embed(adata, model=encoder, modality="image", key_added="X_resnet")
    >>> hb.tl.cluster(adata, n_clusters=3, use_rep="X_resnet_image")
    """
    path = Path(name).expanduser()
    if not isinstance(name, str) or path.is_dir():
        name = f"local-dir:{path}"
    asked = _SHORT.get(name.casefold(), name)
    options: dict[str, Any] = {"patch_size": patch_size, "mpp": mpp}
    if asked.casefold() in _ON_REQUEST:
        raise WeightsUnavailableError(f"the weights of {name} are not public: {_ON_REQUEST[asked.casefold()]}")
    if asked.startswith("zoo:"):
        from .zoo import zoo_encoder

        return zoo_encoder(asked.removeprefix("zoo:"), weights, **options).to(device)
    try:
        found = resolved(asked, ModelConfig.preset("ResNet-10"), weights)
    except ModelError as error:
        if isinstance(error, WeightsUnavailableError) or ":" in asked:
            raise
        names = [*entries(), *_SHORT]
        raise ModelError(f"{error} Also: {sorted(_SHORT)} and 'zoo:NAME'.{nearest(asked, names)}") from error
    return _of(found, **options).to(device)


def _of(encoder: ImageEncoder, **options: Any) -> FeatureEncoder:
    """An encoder with its weights in it."""
    config, entry = encoder.config, entries().get(encoder.name, {})
    tower = encoder.tower()
    pool = entry.get("pool", "timm" if "timm_args" in config.vision_cfg else "clip")
    if pool == "attention":
        tower = AttentionPooled(tower)
    weights = read_weights(encoder.weights)
    if pool == "attention":  # beside what is needed, the file has another pooling and the text tower
        wanted = tower.state_dict()
        weights = {key: value for key, value in weights.items() if key.removeprefix("visual.") in wanted}
    tower.load_state_dict(fitting(tower, weights, name=encoder.name, source=str(encoder.weights)), strict=False)
    if pool == "class and mean":
        tower = ClassAndMean(tower)
    prepare = Preparation(config.image_size, config.mean, config.std, encoder.crop, encoder.interpolation)
    return FeatureEncoder(
        encoder.name,
        tower,
        prepare,
        licence=encoder.licence,
        source=encoder.source,
        output=_OUTPUTS[pool],
        trained_mpp=entry.get("mpp"),
        **options,
    )


class AttentionPooled(nn.Module):
    """The image tower of CONCH before its contrastive projection: one query attends to all tokens of a ViT."""

    def __init__(self, trunk: Any, embed_dim: int = 512, n_heads: int = 8) -> None:
        super().__init__()
        from open_clip.transformer import AttentionalPooler

        self.trunk = trunk
        self.attn_pool_contrast = AttentionalPooler(embed_dim, trunk.num_features, n_head=n_heads, n_queries=1)
        self.ln_contrast = nn.LayerNorm(embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features, n x ``embed_dim``."""
        pooled: Tensor = self.ln_contrast(self.attn_pool_contrast(self.trunk.forward_features(pixels))[:, 0])
        return pooled


class ClassAndMean(nn.Module):
    """Class token and mean of the patch tokens of a ViT, side by side."""

    def __init__(self, trunk: Any) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, pixels: Tensor) -> Tensor:
        """Features, n x twice the width."""
        tokens = self.trunk.forward_features(pixels)
        return torch.cat([tokens[:, 0], tokens[:, self.trunk.num_prefix_tokens :].mean(dim=1)], dim=1)
