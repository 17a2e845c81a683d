from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import datasets, inputs, keys
from .._random import RNG
from .._random import seed as as_seed
from ..errors import DataError
from ..genes import GeneSets, Vocabulary, overlap_coefficients
from ..genes.overlap import report_overlaps
from ..genes.vocabulary import metadata_words
from ..io import Corpus
from ..settings import logger, settings
from ._resolve import new_sentences, resolve_device

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import HibioModel, ImageEncoder, ModelConfig
    from ..train import PathwayAnchors, Recipe


@inputs.takes_spatialdata
def pretrain(
    adata: AnnData | Corpus | str | os.PathLike[str] | Sequence[AnnData | str | os.PathLike[str]],
    *,
    image_encoder: str | ModelConfig | ImageEncoder = "ViT-B-16",
    epochs: int | None = None,
    pathways: str | os.PathLike[str] | Mapping[str, Iterable[str]] | None = None,
    recipe: Mapping[str, Any] | Recipe | None = None,
    mpp: float | None = None,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
    n_workers: int = 0,
    device: str = "auto",
    rng: RNG = 0,
) -> HibioModel:
    """Train a model on spots with H&E and counts: the three levels of HiBio-ST (eqs 1-14).

    Level one aligns the patch of each spot with the sentence of its keyword genes (eqs 9, 10). Level two aligns patches
    with the pathways that a sentence overlaps (eqs 5, 6, 11), where ``pathways`` are given. Level three, from epoch
    ``region_start`` on, aligns regions (eqs 12, 13), which are found anew every ``region_every`` epochs by clustering
    each slide on space and embeddings (eqs 7, 8); batches then bring the members of a region together. The objective is
    ``L_s + lambda2 L_p + lambda3 L_R`` (eq 14): every ablation of the paper is one entry of ``recipe``.

    Slides are decoded one after the other into a temporary file of n_spots x image_size^2 x 3 bytes (in ``TMPDIR``);
    memory holds the sentences (about 2 kB a spot), one decoded slide and one batch, and the counts: those of AnnData in
    memory, or those of one slide, as files are read slide by slide (with the workers of dask, see
    :meth:`hibiost.io.Corpus.map`), once for the vocabulary and once for the sentences.

    Parameters
    ----------
    adata
        One AnnData, of one or several slides, or a list of them; or files: a folder in HEST's layout, a list of such
        folders, ``.h5ad`` and ``.zarr``, or a :class:`hibiost.io.Corpus` (which may be a selection, and names its
        ``layer`` and ``library_key`` itself). All files are checked first.
    image_encoder
        A preset, see :func:`hibiost.model.presets`, or a configuration: the image tower starts from random weights. Or
        an encoder from elsewhere, with its weights: ``"uni"``, ``"timm:resnet50.a1_in1k"``,
        ``"open_clip:ViT-B-16/laion2b_s34b_b88k"``, ``"hf-hub:ORGANISATION/NAME"``, or what
        :func:`hibiost.model.image_encoder` returns, which also takes local files.
    epochs
        Passes over the spots; by default the preset's.
    pathways
        Gene sets, or what :func:`hibiost.datasets.gene_sets` takes: ``"reactome"``, ``"wikipathways"``, ``"kegg"``, a
        GMT file, a dict. Without, level two is left out.
    recipe
        Training values that differ from the preset's, see :class:`hibiost.train.Recipe`; such as ``{"lambda3": 0}`` to
        leave regions out, or ``{"selection": "top"}`` for the most expressed genes instead of TF-IDF.
    mpp
        Micrometres per pixel at which patches are cut; by default full-resolution pixels as they are.
    layer
        Layer that holds raw counts; ``X`` where not given.
    library_key
        Column of ``obs`` that tells slides apart.
    n_workers
        Processes that read patches; the result does not depend on it.
    device
        ``"cpu"``, ``"cuda"``, ``"mps"``, or ``"auto"`` for a GPU where there is one.
    rng
        Seed: the same seed gives the same weights.

    Returns
    -------
    The model, with vocabulary, idf and ``training_info`` (parameters, slides, the terms of the loss per epoch, renewals
    of the regions); ``model.save(folder)`` keeps it. Where regions were found, each AnnData in memory gets

    ``obsm["region_history"]``
        DataFrame, int32, n_obs x renewals: the region of each spot, numbered from 0 on within its slide; columns are
        the epochs trained before (``"0"``: one region a slide); -1 for spots left out of training.
        :func:`hibiost.pl.region_history` draws it.
    ``uns["region_history"]["params"]``
        The parameters.

    Raises
    ------
    DataError
        Files that cannot be used (all problems of all files are listed), counts that are none, spots outside their
        image, sentences longer than the model's context, gene sets that share no genes with the data, an unknown
        training value, or fewer than two spots with a sentence.
    MissingSlotError
        No coordinates, or no such layer.
    ImageError
        An image is absent, unreadable or truncated.
    ModelError
        An unknown preset or encoder; weights that cannot be had, with the way to get them, or that do not fit.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(100)
    >>> recipe = {"epochs": 2, "batch_size": 32, "region_start": 1}
    >>> model = hb.tl.pretrain(adata, image_encoder="ResNet-10", recipe=recipe)
    >>> [entry["epoch"] for entry in model.training_info["history"]]
    [1, 2]
    >>> list(adata.obsm["region_history"])
    ['0', '1']
    """
    from ..model import HibioModel
    from ..model.encoders import as_encoder
    from ..train import Pairs, Regions, fit

    encoder = as_encoder(image_encoder)
    config, values = _configuration(encoder or image_encoder, epochs, recipe, mpp)
    device, seed = resolve_device(device), as_seed(rng)
    adatas = _sources(adata, layer, library_key)
    if isinstance(adatas, Corpus):
        layer, library_key = adatas.layer, adatas.library_key
    gene_sets = datasets.gene_sets(pathways) if pathways is not None and values.lambda2 > 0 else None
    _tell_levels(values, gene_sets)
    vocabulary = _vocabulary(adatas, values.min_spots, layer, library_key)
    options: Any = {"n_genes": values.n_genes, "selection": values.selection, "layer": layer}
    options |= {"vocabulary": vocabulary, "library_key": library_key}
    each = adatas.map(_parts, **options) if isinstance(adatas, Corpus) else (_parts(a, **options) for a in adatas)
    slides, sentences, of_slides = zip(*each, strict=True)
    words = {(number, slide): found for number, part in enumerate(of_slides) for slide, found in part.items()}
    model = HibioModel(config, vocabulary, metadata=list(vocabulary.metadata), rng=seed)
    started = None if encoder is None else encoder.start(model)
    _check_length(model, values.n_genes, words)
    spots = _spots(slides, sentences)
    values = values.updated({"batch_size": min(values.batch_size, len(spots.sentences))})
    anchors = None if gene_sets is None else _anchors(gene_sets, model, spots.sentences, values, seed)
    regions = None
    if values.lambda3 > 0:
        regions = Regions(spots.slide, spots.xy, n_neighbors=values.n_neighbors, seed=seed)

    with tempfile.TemporaryDirectory(prefix="hibiost-") as folder:
        patches = _patches(model, spots, values.shift, Path(folder))
        history, renewals = fit(
            model,
            Pairs(patches, _tokens(model, spots, words)),
            recipe=values,
            seed=seed,
            pathways=anchors,
            regions=regions,
            n_workers=n_workers,
            accelerator=device,
            progress=settings.progress,
        )
        del patches
    model.training_info = {
        "seed": seed,
        "n_spots": len(spots.sentences),
        "slides": [slide.library_id for slide in spots.slides],
        "mpp": _median_mpp(slides),
        "image_encoder": started,
        "pathways": None if gene_sets is None else dict(gene_sets.source),
        "recipe": values.to_dict(),
        "history": history,
        "regions": renewals,
    }
    if regions is not None and renewals and not isinstance(adatas, Corpus):
        _write_history(adatas, spots, regions.history, values)
    return model.to(device).eval()


def _configuration(
    image_encoder: str | ModelConfig | ImageEncoder,
    epochs: int | None,
    recipe: Mapping[str, Any] | Recipe | None,
    mpp: float | None,
) -> tuple[ModelConfig, Recipe]:
    from ..model import ImageEncoder, ModelConfig
    from ..train import Recipe

    if isinstance(image_encoder, str):
        config = ModelConfig.preset(image_encoder)
    else:
        config = image_encoder.config if isinstance(image_encoder, ImageEncoder) else image_encoder
    if mpp is not None:
        config = config.with_mpp(mpp)
    values = recipe if isinstance(recipe, Recipe) else Recipe().updated({**config.recipe, **(recipe or {})})
    return config, values if epochs is None else values.updated({"epochs": epochs})


def _tell_levels(recipe: Recipe, gene_sets: GeneSets | None) -> None:
    """Say which levels are left out, and why."""
    if gene_sets is None:
        reason = "lambda2 is 0" if recipe.lambda2 == 0 else "no pathways= are given"
        logger.info("level two, pathways, is left out: %s", reason)
    if recipe.lambda3 == 0:
        logger.info("level three, regions, is left out: lambda3 is 0")
    elif recipe.region_start >= recipe.epochs:
        logger.info(
            "level three, regions, is left out: region_start is %d, of %d epochs", recipe.region_start, recipe.epochs
        )


def _sources(adata: Any, layer: str | None, library_key: str) -> list[AnnData] | Corpus:
    """AnnData as they are; files as a corpus, checked, of which one slide is in memory at a time."""
    several = [adata] if isinstance(adata, str | os.PathLike) else adata
    if isinstance(several, Sequence):
        if not several:
            raise DataError("no AnnData to train on; the list is empty.")
        if not any(isinstance(each, str | os.PathLike) for each in several):
            return list(several)
        several = Corpus(several, layer=layer, library_key=library_key)
    if not isinstance(several, Corpus):
        return [several]
    several.check()
    return several


def _vocabulary(adatas: list[AnnData] | Corpus, min_spots: int, layer: str | None, library_key: str) -> Vocabulary:
    if isinstance(adatas, Corpus):
        return adatas.vocabulary(min_spots=min_spots)
    slides = [inputs.libraries(adata, library_key) for adata in adatas]
    counts = (inputs.slide_counts(a, inputs.counts(a, layer), rows) for a, rows in zip(adatas, slides, strict=True))
    words = sum(map(inputs.spots_by_word, adatas, slides), Counter[str]())
    return Vocabulary.fit(chain.from_iterable(counts), min_spots=min_spots, metadata=words)


def _parts(
    adata: AnnData, *, library_key: str, **options: Any
) -> tuple[list[inputs.Slide], np.ndarray, dict[str, list[str]]]:
    """What training takes from an AnnData: its slides, the sentences of its spots, the metadata words of each slide."""
    slides = inputs.slides(adata, library_key)
    words = {slide.library_id: metadata_words(inputs.slide_metadata(adata, slide.library_id)) for slide in slides}
    return slides, new_sentences(adata, library_key=library_key, **options), words


def _median_mpp(slides: Sequence[Sequence[inputs.Slide]]) -> float | None:
    known = [slide.mpp for part in slides for slide in part if slide.mpp is not None]
    return float(np.median(known)) if known else None


def _check_length(model: HibioModel, n_genes: int, words: Mapping[Any, Sequence[str]]) -> None:
    room = min(model.tokenizer.max_genes(w) for w in words.values())
    if n_genes > room:
        raise DataError(
            f"sentences of {n_genes} genes do not fit a context of {model.config.context_length} tokens, which has "
            f"room for {room} beside start, metadata and end; use fewer n_genes in the recipe, or a configuration with "
            "a longer context_length in text_cfg."
        )


@dataclass(frozen=True)
class _Spots:
    """The training spots: those with a sentence, slide after slide."""

    slides: list[inputs.Slide]
    """Each with its training spots only."""
    source: np.ndarray
    """The AnnData of each slide."""
    sentences: np.ndarray

    @property
    def slide(self) -> np.ndarray:
        """The slide of each spot."""
        return np.repeat(np.arange(len(self.slides)), [len(slide.rows) for slide in self.slides])

    @property
    def xy(self) -> np.ndarray:
        return np.concatenate([slide.xy for slide in self.slides])


def _spots(slides: Sequence[Sequence[inputs.Slide]], sentences: Sequence[np.ndarray]) -> _Spots:
    chosen, source, tables = [], [], []
    for number, part in enumerate(slides):
        for slide in part:
            spoken = (sentences[number][slide.rows] >= 0).any(axis=1)
            chosen.append(replace(slide, rows=slide.rows[spoken], xy=slide.xy[spoken]))
            source.append(number)
            tables.append(sentences[number][slide.rows[spoken]])
    spots = _Spots(chosen, np.array(source), np.concatenate(tables))
    silent = sum(map(len, sentences)) - len(spots.sentences)
    if silent:
        logger.info("%d spots without a single keyword gene are left out of training", silent)
    if len(spots.sentences) < 2:
        raise DataError(f"{len(spots.sentences)} spots have a sentence; contrastive training needs two or more.")
    return spots


def _anchors(
    gene_sets: GeneSets, model: HibioModel, sentences: np.ndarray, recipe: Recipe, seed: int
) -> PathwayAnchors:
    """Level two: the overlaps of the spots, and the head that is trained on them."""
    import torch

    from ..train import PathwayAnchors

    names, members = gene_sets.membership(model.vocabulary.genes)
    logger.info("%d of %d pathways have enough genes in the vocabulary", len(names), len(gene_sets))
    overlaps = overlap_coefficients(sentences, members, threshold=recipe.threshold)
    report_overlaps(overlaps, recipe.threshold)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PathwayAnchors(
            overlaps.matrix,
            members,
            embed_dim=model.config.embed_dim,
            width=model.gene_token_embeddings.shape[1],
            n_negatives=recipe.n_negatives,
            temperature=recipe.pathway_temperature,
        )


def _tokens(model: HibioModel, spots: _Spots, words: Mapping[tuple[int, str], Sequence[str]]) -> np.ndarray:
    ends = np.cumsum([len(slide.rows) for slide in spots.slides])[:-1]
    tables = np.split(spots.sentences, ends)
    return np.concatenate(
        [
            model.tokenizer(table, words[int(number), slide.library_id])
            for table, number, slide in zip(tables, spots.source, spots.slides, strict=True)
        ]
    )


def _patches(model: HibioModel, spots: _Spots, shift: float, folder: Path) -> np.ndarray:
    """Patches with a margin for shifts, on disk."""
    from tqdm.auto import tqdm

    from ..train import store_patches

    config, n_spots = model.config, len(spots.sentences)
    side = config.image_size + 2 * round(shift * config.image_size)
    window = round(config.patch_size * side / config.image_size)
    batches = inputs.numbered_patches(spots.slides, size=window, mpp=config.mpp, output=side)
    with tqdm(total=n_spots, desc="read patches", unit="spot", disable=not settings.progress) as bar:

        def counted() -> Iterator[np.ndarray]:
            for _, patches in batches:
                yield patches
                bar.update(len(patches))

        return store_patches(counted(), n_spots, side, folder / "patches.uint8")


def _write_history(adatas: Sequence[AnnData], spots: _Spots, history: Mapping[int, np.ndarray], recipe: Recipe) -> None:
    for number, adata in enumerate(adatas):
        of_adata = spots.source[spots.slide] == number
        rows = np.concatenate([spots.slides[place].rows for place in np.flatnonzero(spots.source == number)])
        table = np.full((adata.n_obs, len(history)), -1, dtype=np.int32)
        table[rows] = np.stack([ids[of_adata] for ids in history.values()], axis=1)
        adata.obsm[keys.REGION_HISTORY] = pd.DataFrame(table, adata.obs_names, [str(epoch) for epoch in history])
        params = {name: getattr(recipe, name) for name in ("region_start", "region_every", "n_neighbors", "lambda3")}
        inputs.record(adata, keys.REGION_HISTORY, params=params)
