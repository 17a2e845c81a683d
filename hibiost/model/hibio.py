"""The two towers with their vocabulary, and how they go to a file and back."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._files import replacing
from .._random import RNG, seed
from ..errors import ModelError, nearest
from ..genes import Vocabulary
from . import hub
from .attention import with_causal_attention
from .cards import FILE as CARD
from .cards import checked, markdown
from .config import ModelConfig
from .files import writing
from .inference import Inference
from .tokens import END, PAD, SentenceTokenizer, trimmed
from .towers import TimmTower, projection, tower_features
from .weights import as_loaded, fingerprint, kept

FORMAT_VERSION = 1
FILES = "model.safetensors", "config.json"
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
        self.card_info: dict[str, Any] = {}
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

    def inference(self, precision: str = "float32") -> Inference:
        """The model as it embeds, in evaluation mode; the model keeps its weights, and its fingerprint.

        Parameters
        ----------
        precision
            ``"float32"``; ``"bfloat16"``, in which the weights are rounded; or ``"auto"``, bfloat16 where the device
            multiplies in it. Embeddings are float32 in any case; for the presets the cosine of the two is above 0.999.

        Returns
        -------
        ``images`` and ``features`` of patches and ``genes`` of token ids, as :meth:`embed_images`,
        :meth:`image_features` and :meth:`embed_genes`, but as tensors on the device; and its ``precision``.

        Raises
        ------
        ModelError
            An unknown precision.
        """
        return Inference(self.eval(), precision)

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

    def fingerprint(self, *, precision: str = "float32") -> str:
        """A short hash of the weights: embeddings can be compared only where it is the same.

        With ``precision="float16"``, that of the model that :meth:`save` writes in float16.
        """
        return fingerprint(as_loaded(kept(self.state_dict(), precision)))

    def description(self, *, precision: str = "float32", card: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What ``config.json`` tells of the model that :meth:`save` writes with the same arguments."""
        told = self.card_info if card is None else checked(card)
        return {
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint(precision=precision),
            "config": self.config.to_dict(),
            "vocabulary": self.vocabulary.to_dict(),
            "metadata": self.tokenizer.metadata,
            "training": self.training_info,
            **({"card": dict(told)} if told else {}),
        }

    def save(
        self, path: str | os.PathLike[str], *, precision: str = "float32", card: Mapping[str, Any] | None = None
    ) -> Path:
        """Write the model to a folder: ``model.safetensors``, ``config.json`` and a card, ``README.md``.

        The JSON holds architecture, preprocessing, vocabulary, idf and training parameters. Each file is written beside
        its place and then renamed, so that an interrupted save leaves no half-written file.

        Parameters
        ----------
        path
            Folder, made if absent.
        precision
            ``"float16"`` halves the file: matrices and kernels are rounded, vectors such as the statistics of batch
            norms are not. Loaded again, the model computes in float32; its embeddings differ from those of this model
            by the rounding, and so does its fingerprint: embeddings of the two are not taken for the same.
        card
            What the card tells beyond the training, by default what this model was loaded with: ``name``, ``licence``
            (as the hub writes it, such as ``"bsd-3-clause"``), ``datasets`` (a list of names on the hub), ``data``,
            ``evaluation`` and ``limitations`` (Markdown), ``command``, ``hardware``, ``duration`` and ``environment``
            (a dict, such as versions by package). See :func:`hibiost.model.card`.

        Returns
        -------
        The folder.

        Raises
        ------
        ModelError
            An unknown precision or entry of the card.
        DataError
            The folder or a file cannot be written.
        """
        return self._write(Path(path), precision, card)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str = "Upload a model of hibiost",
        precision: str = "float32",
        card: Mapping[str, Any] | None = None,
    ) -> str:
        """Upload the three files of :meth:`save` to the Hugging Face hub, for ``hibiost.model.load("hf-hub:REPO_ID")``.

        Parameters
        ----------
        repo_id
            ``"ORGANISATION/NAME"``; made if absent.
        private
            Make it for those alone who may see it; a repository that is there stays as it is.
        token
            A token that may write; by default the one of ``hf auth login`` or ``HF_TOKEN``.
        revision
            Branch to write to, made if absent; by default the main one.
        commit_message
            What the history of the repository tells.
        precision, card
            As of :meth:`save`.

        Returns
        -------
        Address of the repository.

        Raises
        ------
        ModelError
            An unknown precision or entry of the card, no network, or no right to write there.
        """
        at = "" if revision is None else f"@{revision}"
        with tempfile.TemporaryDirectory(prefix="hibiost-") as folder:
            self._write(Path(folder), precision, card, hub.PREFIX + repo_id + at)
            return hub.push(
                Path(folder),
                repo_id,
                private=private,
                token=token,
                revision=revision,
                commit_message=commit_message,
            )

    def _write(self, folder: Path, precision: str, card: Mapping[str, Any] | None, source: str | None = None) -> Path:
        about = self.description(precision=precision, card=card)
        tensors = kept(self.state_dict(), precision)
        with replacing(folder / CARD) as readme, writing(folder, FILES, tensors, about):
            readme.write_text(markdown(about, source), encoding="utf-8")
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
