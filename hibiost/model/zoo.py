"""lazyslide-models, an optional package: its encoders for hibiost, and models of hibiost for LazySlide."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DataError, ModelError, WeightsUnavailableError, nearest
from ..settings import logger
from .features import FeatureEncoder
from .hibio import HibioModel
from .registry import load
from .tokens import trimmed


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
        castable=False,
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


class Tile:
    """From one tile, an RGB image or array of it, to uint8 pixels of an image tower: 3 x size x size.

    Resized as patches around spots are; the tower scales and normalises them itself.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Any) -> Tensor:
        """Pixels of the tile."""
        from PIL import Image

        tile = Image.fromarray(np.asarray(image)).convert("RGB")
        if tile.size != (self.size, self.size):
            tile = tile.resize((self.size, self.size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(tile)).permute(2, 0, 1)


class LazySlideModel:
    """A model with the methods that LazySlide calls; made by :func:`lazyslide`."""

    def __init__(self, model: HibioModel, name: str) -> None:
        self.model, self.name = model, name

    def get_transform(self) -> Tile:
        """What makes pixels for :meth:`encode_image` of one tile."""
        return Tile(self.model.config.image_size)

    def to(self, device: str | torch.device) -> LazySlideModel:
        """Put the weights on a device; returns the model itself."""
        self.model.to(device)
        return self

    def try_compile(self, **options: Any) -> None:
        """Compile the image tower, with options of ``torch.compile``, when it is called next."""
        self.model.visual.compile(**options)

    @torch.inference_mode()
    def encode_image(self, image: Tensor) -> Tensor:
        """l2-normalised embeddings, n x ``embed_dim``, of what the transform gave, n x 3 x size x size."""
        return self.model.encode_image(image.to(self.model.device))

    @torch.inference_mode()
    def encode_text(self, text: str | Iterable[str | Sequence[str]]) -> Tensor:
        """l2-normalised embeddings, n x ``embed_dim``, of gene sentences as :meth:`tokenize` takes them."""
        tokens = trimmed(self.tokenize(text).numpy())
        return self.model.encode_genes(torch.from_numpy(tokens).to(self.model.device))

    def tokenize(self, text: str | Iterable[str | Sequence[str]]) -> Tensor:
        """Token ids, int32, n x context, of gene sentences: texts, or lists of genes and metadata words."""
        sentences = [_words(each) for each in ([text] if isinstance(text, str) else text)]
        return torch.from_numpy(np.concatenate([self._row(words) for words in sentences]))

    def _row(self, words: Sequence[str]) -> np.ndarray:
        tokenizer, vocabulary = self.model.tokenizer, self.model.vocabulary
        metadata = [word for word in words if word in tokenizer.metadata]
        names = [word for word in words if word not in tokenizer.metadata]
        genes = vocabulary.index(names)
        if not (genes >= 0).any():
            hint = nearest(names[0], vocabulary.genes) if names else ""
            raise DataError(
                f"none of {names[:5]} is among the {len(vocabulary)} genes that the model reads; expected gene "
                f"sentences, such as {' '.join(vocabulary.genes[:3])!r}.{hint}"
            )
        if unknown := [name for name, gene in zip(names, genes, strict=True) if gene < 0]:
            logger.warning("%d of %d genes are unknown to the model, such as %s", len(unknown), len(names), unknown[0])
        return tokenizer(genes[None], metadata)


def _words(sentence: str | Sequence[str]) -> list[str]:
    return re.findall(r"[^\s,]+", sentence) if isinstance(sentence, str) else list(sentence)


def lazyslide(
    model: str | os.PathLike[str] | HibioModel, *, name: str = "hibiost", device: str = "cpu"
) -> LazySlideModel:
    """A model for LazySlide, in the place of its own models of images and text.

    It has what LazySlide's ``ImageTextModelProtocol`` asks for: ``model``, ``name``, ``get_transform``, ``to``,
    ``try_compile``, ``encode_image`` and ``encode_text``. Text are gene sentences, genes of highest TF-IDF first, as
    texts (``"IGLL5 MZB1 JCHAIN"``) or lists of genes; metadata words such as ``"organ:breast"`` may stand among them.
    Genes that the model does not know are left out, with a warning. The package lazyslide is not needed here.

    Parameters
    ----------
    model
        What :func:`load` takes. Tiles should be cut at its ``config.mpp``, ``config.patch_size`` pixels wide.
    name
        What LazySlide calls the features.
    device
        Where to put the weights; LazySlide moves them to its own.

    Returns
    -------
    The model, for ``lazyslide.tl.feature_extraction(wsi, model)`` and ``lazyslide.tl.text_embedding(texts, model)``.

    Raises
    ------
    ModelError
        No such model.

    Examples
    --------
    >>> import hibiost as hb
    >>> vocabulary = hb.genes.Vocabulary(("ERBB2", "MGP"), [1, 2], [3, 3])
    >>> model = hb.model.HibioModel(hb.model.ModelConfig.preset("ResNet-10"), vocabulary)
    >>> hb.model.lazyslide(model).encode_text(["ERBB2 MGP", "MGP"]).shape
    torch.Size([2, 128])
    """
    return LazySlideModel(load(model, device=device), name)
