"""Models, devices, sentences and embeddings, as the verbs of this room need them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .. import inputs, keys
from .._ranks import Ranks, joined
from ..errors import DataError, ModelError, check_choice
from ..genes import Vocabulary, select_genes
from ..genes.tfidf import Selection
from ..settings import settings

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import FeatureEncoder, HibioModel
    from ..model.inference import EncoderInference, Inference

DEVICES = ("auto", "cpu", "cuda", "mps")


def resolve_device(device: str) -> str:
    """The device to compute on; ``"auto"`` takes a GPU where there is one."""
    import torch

    check_choice("device", device, DEVICES)
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[device]:
        raise DataError(f"device {device!r} is not there; use device='auto' or 'cpu'.")
    return device


@contextmanager
def together(device: str) -> Iterator[Ranks]:
    """Work with the other processes of torchrun or Slurm, where there are any; only the first one speaks."""
    with joined(device) as ranks:
        quiet: dict[str, Any] = {} if ranks.first else {"verbosity": "error", "progress": False}
        with settings.override(**quiet):
            yield ranks


def resolve_model(model: str | os.PathLike[str] | HibioModel | FeatureEncoder | None, device: str) -> HibioModel:
    """The model given, else the one in the settings; no encoder of images."""
    from ..model import FeatureEncoder, load

    chosen = settings.model if model is None else model
    if isinstance(chosen, FeatureEncoder):
        raise ModelError(
            f"{chosen.name} reads images only; expected a model of hb.tl.pretrain, which reads gene sentences too. "
            "Encoders are for hb.tl.embed(adata, modality='image') and hb.tl.fit_predictor(reference)."
        )
    return load(chosen, device=device)


def resolve_images(
    model: str | os.PathLike[str] | HibioModel | FeatureEncoder | None, device: str
) -> HibioModel | FeatureEncoder:
    """The model, or the encoder of another package, on the device."""
    from ..model import FeatureEncoder

    return model.to(device) if isinstance(model, FeatureEncoder) else resolve_model(model, device)


@overload
def at_work(model: HibioModel) -> Inference: ...
@overload
def at_work(model: HibioModel | FeatureEncoder) -> Inference | EncoderInference: ...
def at_work(model: HibioModel | FeatureEncoder) -> Inference | EncoderInference:
    """The model as it embeds, in the precision of the settings."""
    return model.inference(settings.precision)


def sentence_rows(adata: AnnData, vocabulary: Vocabulary) -> np.ndarray:
    """The sentences in ``obsm``, as indices into a vocabulary; genes it does not hold are -1."""
    table = np.asarray(adata.obsm[keys.SENTENCE])
    index = vocabulary.match(inputs.slot(adata, "uns", keys.SENTENCE, "hb.pp.tfidf_sentences(adata)")["genes"])
    return np.where(table >= 0, index[table], -1)


def new_sentences(
    adata: AnnData,
    vocabulary: Vocabulary,
    *,
    n_genes: int,
    selection: Selection = "tfidf",
    layer: str | None,
    library_key: str,
) -> np.ndarray:
    """Sentences made with a vocabulary's idf (HiBio-ST, eqs 1-4), as indices into it."""
    counts = inputs.count_blocks(adata, layer)
    index = vocabulary.match(adata.var_names)
    idf = np.where(index >= 0, vocabulary.idf[index], 0.0)
    slides = inputs.libraries(adata, library_key).values()
    best = select_genes(counts, idf, n_genes=n_genes, selection=selection, among=index >= 0, slides=slides)
    return np.where(best >= 0, index[best], -1)


def sentences_for(adata: AnnData, model: HibioModel, *, layer: str | None, library_key: str) -> np.ndarray:
    """New sentences as the model was trained on, as indices into its vocabulary."""
    return new_sentences(adata, model.vocabulary, layer=layer, library_key=library_key, **sentence_options(model))


def sentence_options(model: HibioModel) -> dict[str, Any]:
    """``n_genes`` and ``selection`` of the sentences that the model was trained on."""
    from ..train import Recipe

    recipe = Recipe().updated(model.training_info.get("recipe", {}))
    return {"n_genes": recipe.n_genes, "selection": recipe.selection}
