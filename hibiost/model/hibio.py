"""The two towers with their vocabulary, and how they go to a file and back."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._random import RNG, seed
from ..errors import ModelError, nearest
from ..genes import Vocabulary
from .attention import with_causal_attention
from .config import ModelConfig
from .files import read, tensors_of, writing
from .tokens import END, PAD, SentenceTokenizer, trimmed
from .towers import TimmTower, projection, tower_features
from .weights import fingerprint

FORMAT_VERSION = 1
_FILES = _WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_MAX_LOGIT_SCALE = math.log(100)
_UNUSED = {"layers": 1, "width": 64, "patch_size": 32, "image_size": 32}
"""open_clip builds both towers or none: a small image tower, where another takes its place."""


def _open_clip() -> Any:
    try:
        import open_clip
    except RuntimeError as error:
        if "torchvision" not in str(error):
            raise
        raise ModelError(
            f"torch and torchvision do not belong together ({error}); reinstall both from the same place, for example "
            "'pip install --force-reinstall torch torchvision'."
        ) from error
    return open_clip


def _checked(kind: type, values: Mapping[str, Any]) -> Any:
    known = {f.name for f in fields(kind)}
    for key in values:
        if key not in known:
            raise ModelError(f"open_clip's {kind.__name__} has no field {key!r}.{nearest(key, known)}")
    return kind(**values)


class HibioModel(nn.Module):
    """Image tower and gene-sentence tower in one space, with the vocabulary they were trained on.

    An image encoder of timm or open_clip with a linear projection, and open_clip's causal text transformer, which reads
    one token per gene and is pooled at the end token (HiBio-ST, section 2 and C.1).

    Parameters
    ----------
    config
        Architecture and preprocessing.
    vocabulary
        Genes with their spot counts (hence idf); token ids follow its order.
    metadata
        Metadata words with a token of their own, see ``hibiost.model.tokens.metadata_words``.
    training
        What is known of the training run; stored with the weights.
    rng
        Seed of the first weights.

    Examples
    --------
    >>> import numpy as np
    >>> import hibiost as hb
    >>> vocabulary = hb.genes.Vocabulary(("ERBB2", "MGP"), [1, 2], [3, 3])
    >>> model = hb.model.HibioModel(hb.model.ModelConfig.preset("ResNet-10"), vocabulary)
    >>> model.embed_genes(model.tokenizer(np.array([[1, 0], [0, -1]]))).shape
    (2, 128)
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Vocabulary,
        *,
        metadata: Sequence[str] = (),
        training: Mapping[str, Any] | None = None,
        rng: RNG = 0,
    ) -> None:
        super().__init__()
        open_clip = _open_clip()
        self.config = config
        self.vocabulary = vocabulary
        self.training_info = dict(training or {})
        self.tokenizer = SentenceTokenizer(len(vocabulary), metadata, config.context_length)
        text_cfg = {
            **config.text_cfg,
            "vocab_size": self.tokenizer.vocab_size,
            "pad_id": PAD,
            "eos_id": END,
            "pool_type": "eos",
        }
        text = _checked(open_clip.CLIPTextCfg, text_cfg)
        vision = dict(config.vision_cfg)
        timm_args = vision.pop("timm_args", None)
        image = _checked(open_clip.CLIPVisionCfg, vision if timm_args is None else _UNUSED)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed(rng))
            towers = open_clip.CustomTextCLIP(config.embed_dim, image, text, quick_gelu=config.quick_gelu)
            if timm_args is not None:
                towers.visual = TimmTower(vision["timm_model_name"], config.embed_dim, timm_args)
        self.visual, self.text = towers.visual, with_causal_attention(towers.text)
        self.logit_scale = towers.logit_scale
        self._image_frozen = False
        self.visual.to(memory_format=torch.channels_last)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(config.mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(1, 3, 1, 1) * 255, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.logit_scale.device

    @property
    def scale(self) -> Tensor:
        """Factor on cosine similarities, at most 100."""
        return self.logit_scale.clamp(max=_MAX_LOGIT_SCALE).exp()

    @property
    def gene_token_embeddings(self) -> Tensor:
        """Learned embedding of each gene of the vocabulary, n_genes x width."""
        return self.text.token_embedding.weight[self.tokenizer.first_gene :]

    def freeze_image(self, frozen: bool = True) -> None:  # noqa: FBT001, FBT002 - as of torch's `train`
        """Train nothing of the image tower but its last projection; or, with ``False``, all of it.

        A frozen tower stays in evaluation mode while the model trains: no dropout, no new statistics of batch norms.
        """
        self.visual.requires_grad_(not frozen)
        for parameter in projection(self.visual):
            parameter.requires_grad_()
        self._image_frozen = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> HibioModel:  # noqa: FBT001, FBT002 - torch's signature
        """Training or evaluation mode, as of any module; a frozen image tower stays in evaluation mode."""
        super().train(mode)
        if self._image_frozen:
            self.visual.eval()
        return self

    def normalise(self, patches: Tensor) -> Tensor:
        """uint8 or float patches in 0–255, batch x 3 x size x size, as the image tower wants them."""
        return ((patches.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def encode_image(self, patches: Tensor) -> Tensor:
        """l2-normalised image embeddings, batch x ``embed_dim``, of patches in 0–255 (batch x 3 x size x size)."""
        return F.normalize(self.visual(self.normalise(patches)).float(), dim=-1)

    def encode_features(self, patches: Tensor) -> Tensor:
        """What the image tower sees before its projection, batch x width, of patches as :meth:`encode_image` takes."""
        return tower_features(self.visual, self.normalise(patches))

    def encode_genes(self, tokens: Tensor) -> Tensor:
        """l2-normalised gene-sentence embeddings, batch x ``embed_dim``, of token ids (batch x context)."""
        return F.normalize(self.text(tokens).float(), dim=-1)

    @torch.inference_mode()
    def embed_images(self, patches: np.ndarray) -> np.ndarray:
        """Embed uint8 patches, n x size x size x 3, in one batch; returns float32, n x ``embed_dim``."""
        pixels = torch.tensor(patches, device=self.device).permute(0, 3, 1, 2)
        return self.eval().encode_image(pixels).cpu().numpy()

    @torch.inference_mode()
    def image_features(self, patches: np.ndarray) -> np.ndarray:
        """Features before the projection, of patches as :meth:`embed_images` takes; returns float32, n x width."""
        pixels = torch.tensor(patches, device=self.device).permute(0, 3, 1, 2)
        return self.eval().encode_features(pixels).float().cpu().numpy()

    @torch.inference_mode()
    def embed_genes(self, tokens: np.ndarray) -> np.ndarray:
        """Embed rows of token ids in one batch; returns float32, n x ``embed_dim``."""
        return self.eval().encode_genes(torch.tensor(trimmed(tokens), device=self.device)).cpu().numpy()

    def fingerprint(self) -> str:
        """A short hash of the weights: embeddings can be compared only where it is the same."""
        return fingerprint(self.state_dict())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model to a folder: ``model.safetensors`` and ``config.json``.

        The JSON holds architecture, preprocessing, vocabulary, idf and training parameters. Each file is written beside
        its place and then renamed, so that an interrupted save leaves no half-written file.

        Parameters
        ----------
        path
            Folder, made if absent.

        Returns
        -------
        The folder.

        Raises
        ------
        DataError
            The folder or a file cannot be written.
        """
        folder = Path(path)
        description = {
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint(),
            "config": self.config.to_dict(),
            "vocabulary": self.vocabulary.to_dict(),
            "metadata": self.tokenizer.metadata,
            "training": self.training_info,
        }
        with writing(folder, _FILES, self.state_dict(), description):
            return folder


def untrained(model: HibioModel, *, rng: RNG = 0) -> HibioModel:
    """A model of the same architecture and vocabulary with random weights: the floor of what training adds.

    Parameters
    ----------
    model
        The model to imitate.
    rng
        Seed of the weights.

    Returns
    -------
    A new model in evaluation mode, on the same device.

    Examples
    --------
    >>> import hibiost as hb
    >>> vocabulary = hb.genes.Vocabulary(("ERBB2", "MGP"), [1, 2], [3, 3])
    >>> model = hb.model.HibioModel(hb.model.ModelConfig.preset("ResNet-10"), vocabulary)
    >>> hb.model.untrained(model).fingerprint() == hb.model.untrained(model).fingerprint()
    True
    """
    fresh = HibioModel(model.config, model.vocabulary, metadata=model.tokenizer.metadata, rng=rng)
    return fresh.to(model.device).eval()


def load(model: str | os.PathLike[str] | HibioModel, *, device: str = "cpu") -> HibioModel:
    """Load a model from a folder written by ``model.save``.

    Only safetensors and JSON are read: loading never executes code.

    Parameters
    ----------
    model
        Folder; a model is passed through.
    device
        Where to put the weights, such as ``"cpu"`` or ``"cuda"``.

    Returns
    -------
    The model, in evaluation mode.

    Raises
    ------
    ModelError
        The folder or a file is absent, damaged, of an unknown format version, or weights and configuration disagree.

    Examples
    --------
    >>> import hibiost as hb
    >>> hb.model.load("no-such-folder")
    Traceback (most recent call last):
    hibiost.errors.ModelError: no model at no-such-folder: ...
    """
    if isinstance(model, HibioModel):
        return model.to(device).eval()
    folder = Path(model)
    description = read(folder, _FILES, version=FORMAT_VERSION, kind="model", mend="hb.tl.pretrain trains a model.")
    try:
        loaded = HibioModel(
            ModelConfig.from_dict(description["config"]),
            Vocabulary.from_dict(description["vocabulary"]),
            metadata=description["metadata"],
            training=description["training"],
        )
    except KeyError as error:
        raise ModelError(f"{folder / _CONFIG} lacks the entry {error}; save the model again.") from error
    weights = tensors_of(folder / _WEIGHTS)
    expected = loaded.state_dict()
    wrong = sorted(set(weights) ^ set(expected)) or [
        name for name, tensor in weights.items() if tensor.shape != expected[name].shape
    ]
    if wrong:
        raise ModelError(
            f"weights and configuration in {folder} do not belong together: {len(wrong)} tensors differ, "
            f"such as {wrong[0]!r}."
        )
    loaded.load_state_dict(weights)
    if loaded.fingerprint() != description.get("fingerprint"):
        raise ModelError(
            f"the weights in {folder} are not those its {_CONFIG} describes; copy or save the model again."
        )
    return loaded.to(device).eval()
