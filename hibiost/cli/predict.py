"""``hibiost predict``: what :func:`hibiost.tl.predict` does, slide by slide."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

import hibiost as hb

from .. import keys
from .._ranks import apart
from ..errors import DataError
from . import _slides
from .embed import embed

if TYPE_CHECKING:
    from anndata import AnnData

    from ..io import Corpus
    from ..model import HibioModel, Predictor

HELP = "predict gene expression from H&E, also of images alone"
DESCRIPTION = """
What hibiost.tl.predict does, one slide in memory at a time beside the reference: a copy of each slide with predicted
expression. Of an image alone, spots are placed on the tissue first. Tells how many genes can be trusted, where the
reference has two slides or more with images. The same command goes on where it was stopped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``hibiost predict``."""
    _slides.add_arguments(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--reference", nargs="+", help="files, or a folder in HEST-1k's layout, with measured counts")
    source.add_argument("--predictor", help="folder of a predictor (default: the one that comes with the model)")
    parser.add_argument(
        "--model", help="name or folder of a model; or an encoder, for regression (default: HIBIOST_MODEL)"
    )
    parser.add_argument("--method", choices=("retrieval", "regression"), help="from the reference (retrieval)")
    parser.add_argument(
        "--genes", type=lambda text: text.split(","), metavar="A,B", help="genes to predict (default: all)"
    )
    parser.add_argument("--target", choices=("raw", "normalized"), help="counts as they are, or by library size (raw)")


def run(arguments: argparse.Namespace) -> None:
    """Predict each slide."""
    from ..tl._resolve import resolve_device

    device = resolve_device(arguments.device)
    with apart(device) as ranks:
        slides = _slides.Slides.of(arguments)
        source, options = _source(arguments, device)

        def change(adata: AnnData) -> str:
            hb.tl.predict(adata, source, genes=arguments.genes, target=arguments.target, device=device, **options)
            return _told(adata)

        made = {name: getattr(arguments, name) for name in ("genes", "target", "method")}
        made["reference"] = [os.path.abspath(path) for path in arguments.reference or ()]
        made["weights"] = options["model"].fingerprint() if options else source.fingerprint()
        slides.write(change, keys.PREDICTED, made, ranks)


def _source(arguments: argparse.Namespace, device: str) -> tuple[AnnData | Predictor, dict[str, Any]]:
    """What is predicted from, and the model that goes with it; a predictor holds its own."""
    from ..model import load_predictor
    from ..tl._predictor import coming_with
    from ..tl._resolve import resolve_model

    if arguments.reference is None:
        own = ("method", "layer") if arguments.predictor is None else ("model", "method", "layer")
        for name in own:
            if getattr(arguments, name) is not None:
                raise DataError(f"--{name} is for --reference; a predictor has its own. Leave it out.")
        if arguments.predictor is None:
            return coming_with(arguments.model, device), {}
        return load_predictor(arguments.predictor, device=device), {}
    model = _slides.model_of(arguments.model, device)
    corpus = hb.io.Corpus(arguments.reference, layer=arguments.layer)
    if arguments.method == "regression":
        options: Any = {"target": arguments.target or "raw", "genes": arguments.genes, "layer": arguments.layer}
        return hb.tl.fit_predictor(hb.io.concat(list(corpus)), model=model, device=device, **options), {}
    model = resolve_model(model, device)  # retrieval takes no encoder
    return _embedded(corpus, model, arguments.genes, device), {"model": model, "layer": arguments.layer}


def _embedded(corpus: Corpus, model: HibioModel, genes: list[str] | None, device: str) -> AnnData:
    """The slides of a reference in one, with the embeddings that they hold already, or new ones."""
    from ..tl._predict import chosen_genes

    slides = list(corpus)
    reference = hb.io.concat(slides)
    chosen_genes(reference, genes)
    sides = [keys.GENE_EMBEDDING]
    if (corpus.index["has_image"] | corpus.index["has_patches"]).all():
        sides.append(keys.IMAGE_EMBEDDING)
    else:
        reference.obsm.pop(keys.IMAGE_EMBEDDING, None)
    entries = [slide.uns.get(keys.EMBED, {}) for slide in slides if set(sides) <= set(slide.obsm)]
    if [entry.get("fingerprint") for entry in entries] == [model.fingerprint()] * len(slides):
        reference.uns[keys.EMBED] = entries[0]
    else:
        modality = "auto" if len(sides) == 2 else "gene"
        embed(reference, model, modality=modality, layer=corpus.layer, device=device)
    return reference


def _told(adata: AnnData) -> str:
    """How many genes were predicted, and how many of them are trusted."""
    found = f"{adata.obsm[keys.PREDICTED].shape[1]} genes of {adata.n_obs} spots"
    entry = adata.uns[keys.PREDICTED]
    if "trusted" not in entry:
        return f"{found}; how far they can be trusted is not known: it takes two reference slides with images"
    trusted, least = hb.get.predicted_genes(adata)["trusted"].sum(), entry["params"]["min_pcc"]
    return f"{found}, {trusted} of them trusted (expected PCC of at least {least:g} on slides like the reference's)"
