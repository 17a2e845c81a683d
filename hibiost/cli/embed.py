"""``hibiost embed``: what :func:`hibiost.tl.embed` does, slide by slide."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import hibiost as hb

from .. import keys
from .._ranks import apart
from . import _slides

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import FeatureEncoder, HibioModel

HELP = "write slides with gene sentences and embeddings"
DESCRIPTION = """
What hibiost.pp.tfidf_sentences and hibiost.tl.embed do, one slide in memory at a time: a copy of each slide, with the
sentences of the model's vocabulary where it has counts, and with embeddings. The same command goes on where it was
stopped. Under torchrun or srun the processes share the slides.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``hibiost embed``."""
    _slides.add_arguments(parser)
    parser.add_argument(
        "--model",
        help="name or folder of a model, or an encoder such as uni, see 'hibiost models' (default: HIBIOST_MODEL)",
    )
    parser.add_argument("--modality", choices=("auto", "image", "gene"), default="auto", help="what to embed (auto)")


def run(arguments: argparse.Namespace) -> None:
    """Embed each slide."""
    from ..tl._resolve import resolve_device

    device = resolve_device(arguments.device)
    with apart(device) as ranks:
        slides = _slides.Slides.of(arguments)
        model = _slides.model_of(arguments.model, device)
        options: dict[str, Any] = {"modality": arguments.modality, "layer": arguments.layer, "device": device}

        def change(adata: AnnData) -> str:
            embed(adata, model, **options)
            found = [side for side in ("image", "gene") if f"{keys.EMBED}_{side}" in adata.obsm]
            return f"{adata.n_obs} spots, embeddings of {' and '.join(f'{side}s' for side in found)}"

        made = {"model": model.fingerprint(), "modality": arguments.modality}
        slides.write(change, keys.EMBED, made, ranks)


def embed(adata: AnnData, model: HibioModel | FeatureEncoder, *, modality: str, layer: str | None, device: str) -> None:
    """Sentences as the model was trained on, where there are counts, and embeddings."""
    from ..model import HibioModel
    from ..tl._resolve import sentence_options

    if isinstance(model, HibioModel) and (modality == "gene" or (modality == "auto" and adata.n_vars)):
        options = {"vocabulary": model.vocabulary, "layer": layer, "weights": False, **sentence_options(model)}
        hb.pp.tfidf_sentences(adata, **options)
    hb.tl.embed(adata, model=model, modality=modality, device=device)
