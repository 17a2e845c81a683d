from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import datasets, inputs, keys
from .._random import RNG
from .._random import seed as as_seed
from ..errors import DataError, RunError
from ..genes import GeneSets, Vocabulary, overlap_coefficients
from ..genes.overlap import report_overlaps
from ..io import Corpus
from ..settings import logger, settings
from ._resolve import resolve_device, together
from ._spots import Spots, decoded, of_each, sources

if TYPE_CHECKING:
    from anndata import AnnData

    from .._ranks import Ranks
    from ..model import HibioModel, ImageEncoder, ModelConfig
    from ..train import Engine, Pairs, PathwayAnchors, Recipe, Run


@inputs.takes_spatialdata
def pretrain(
    adata: AnnData | Corpus | str | os.PathLike[str] | Sequence[AnnData | str | os.PathLike[str]],
    *,
    image_encoder: str | ModelConfig | ImageEncoder = "ViT-B-16",
    epochs: int | None = None,
    pathways: str | os.PathLike[str] | Mapping[str, Iterable[str]] | None = None,
    vocabulary: Vocabulary | None = None,
    recipe: Mapping[str, Any] | Recipe | None = None,
    mpp: float | None = None,
    validation: AnnData | Corpus | str | os.PathLike[str] | Sequence[AnnData | str | os.PathLike[str]] | None = None,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
    run: str | os.PathLike[str] | None = None,
    engine: Mapping[str, Any] | Engine | None = None,
    device: str = "auto",
    rng: RNG = 0,
) -> HibioModel:
    """Train a model on spots with H&E and counts: the three levels of HiBio-ST (eqs 1-14).

    Level one aligns the patch of each spot with the sentence of its keyword genes (eqs 9, 10). Level two aligns patches
    with the pathways that a sentence overlaps (eqs 5, 6, 11), where ``pathways`` are given. Level three, from epoch
    ``region_start`` on, aligns regions (eqs 12, 13), which are found anew every ``region_every`` epochs by clustering
    each slide on space and embeddings (eqs 7, 8); batches then bring the members of a region together. The objective is
    ``L_s + lambda2 L_p + lambda3 L_R`` (eq 14): every ablation of the paper is one entry of ``recipe``.

    Slides are decoded one after the other into a file of n_spots x image_size^2 x 3 bytes (in the folder of the run, or
    else in ``TMPDIR``). Memory holds the sentences (about 2 kB a spot), one decoded slide and one batch, and the counts
    of AnnData in memory, or of one slide, as files are read slide by slide (with the workers of dask, see
    :meth:`hibiost.io.Corpus.map`): once for the vocabulary and once for the sentences.

    Under ``torchrun`` or Slurm the processes train one model: all losses are taken over the whole batch, so that their
    number changes the result by rounding only. They share the reading of slides, and the renewal of regions; each
    returns the model. They need a ``run`` folder that all of them see.

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
    vocabulary
        Genes and idf of a larger collection, see :func:`hibiost.io.fit_vocabulary`; by default those of the training
        slides, of which the recipe's ``min_spots`` leaves out rare genes.
    recipe
        Training values that differ from the preset's, see :class:`hibiost.train.Recipe`; such as ``{"lambda3": 0}`` to
        leave regions out, or ``{"selection": "top"}`` for the most expressed genes instead of TF-IDF.
    mpp
        Micrometres per pixel at which patches are cut; by default full-resolution pixels as they are.
    validation
        Slides that are not trained on, given as ``adata`` is: Recall@1, 5 and 10 % is measured on each of them after
        each epoch.
    layer
        Layer that holds raw counts; ``X`` where not given.
    library_key
        Column of ``obs`` that tells slides apart.
    run
        Folder of the run, for checkpoints, metrics (``metrics.jsonl``, see :func:`hibiost.get.training`) and the model.
        The same call with the same folder goes on where it was stopped, to the same weights as if it had not been; once
        it is finished, the call returns its model. Configuration and data have to be the same: differences are listed.
    engine
        How the machine is used, see :class:`hibiost.train.Engine`; such as ``{"micro_batch": 64}`` for batches that do
        not fit the memory. The result does not depend on it.
    device
        ``"cpu"``, ``"cuda"``, ``"mps"``, or ``"auto"`` for a GPU where there is one.
    rng
        Seed: the same seed gives the same weights.

    Returns
    -------
    The model, with vocabulary, idf and ``training_info`` (parameters, slides, the terms of the loss per epoch, renewals
    of the regions); ``model.save(folder)`` keeps it, and with ``run`` it is in ``run/model``. Where regions were found,
    each AnnData in memory gets

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
    RunError
        The folder holds a run of another configuration or of other data, a checkpoint cannot be written or read, the
        loss is no number, or there are fewer GPUs than processes.

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
    from ..model import load
    from ..model.encoders import as_encoder
    from ..train import Engine

    encoder = as_encoder(image_encoder)
    config, values = configuration(encoder or image_encoder, epochs, recipe, mpp)
    engine, device, seed = Engine.of(engine), resolve_device(device), as_seed(rng)
    gene_sets = datasets.gene_sets(pathways) if pathways is not None and values.lambda2 > 0 else None
    with together(device) as ranks, _folder(run, ranks) as (folder, kept):
        if kept is not None:
            asked = {"model": config.to_dict(), "recipe": values.to_dict(), "seed": seed, "pathways": _named(gene_sets)}
            asked["image_encoder"] = None if encoder is None else encoder.record
            kept.check("configuration", asked, write=ranks.first, mend="Ask for the same, or name another folder.")
            if kept.finished:
                logger.info("the run in %s is finished; this is its model", folder)
                return load(kept.model, device=device)
        _tell_levels(values, gene_sets)
        adatas = sources(adata, layer, library_key, unreadable=engine.unreadable)
        held_out = None if validation is None else sources(validation, layer, library_key)
        if isinstance(adatas, Corpus):
            layer, library_key = adatas.layer, adatas.library_key
        if vocabulary is None:
            vocabulary = _vocabulary(adatas, ranks, values.min_spots, layer, library_key)
        options: Any = {"n_genes": values.n_genes, "layer": layer, "library_key": library_key, "vocabulary": vocabulary}
        spots = Spots.collected(adatas, ranks, selection=values.selection, unreadable=engine.unreadable, **options)
        if isinstance(adatas, Corpus) and len(spots.slides) < len(adatas):
            logger.warning("%d of %d slides are left out", len(adatas) - len(spots.slides), len(adatas))
        measured = None
        if held_out is not None:
            measured = Spots.collected(held_out, ranks, selection=values.selection, **options)
            _check_apart(spots, measured)
        model, history = _trained(
            config, values, seed, spots, measured, encoder=encoder, vocabulary=vocabulary, gene_sets=gene_sets,
            engine=engine, ranks=ranks, folder=folder, run=kept, device=device,
        )  # fmt: skip
    if history is not None and not isinstance(adatas, Corpus):
        _write_history(adatas, *history, values)
    return model.to(device).eval()


def _trained(
    config: ModelConfig,
    recipe: Recipe,
    seed: int,
    spots: Spots,
    measured: Spots | None,
    *,
    encoder: ImageEncoder | None,
    vocabulary: Vocabulary,
    gene_sets: GeneSets | None,
    engine: Engine,
    ranks: Ranks,
    folder: Path,
    run: Run | None,
    device: str,
) -> tuple[HibioModel, tuple[Spots, dict[int, np.ndarray]] | None]:
    """The model, and the spots it was trained on with the history of their regions, where there is one."""
    from ..model import HibioModel
    from ..train import Regions, fit

    if len(spots) < 2:
        raise DataError(f"{len(spots)} spots have a sentence; contrastive training needs two or more.")
    model = HibioModel(config, vocabulary, metadata=list(vocabulary.metadata), rng=seed)
    started = None if encoder is None else encoder.start(model)
    _check_length(model, recipe.n_genes, spots.words)
    pairs, spots = _pairs(spots, folder, model, ranks, recipe.shift, engine, run)
    recipe = recipe.updated({"batch_size": _batch_size(recipe.batch_size, len(pairs))})
    anchors = None if gene_sets is None else _anchors(gene_sets, model, spots.sentences, recipe, seed)
    regions = None
    if recipe.lambda3 > 0:
        regions = Regions(spots.slide, spots.xy, n_neighbors=recipe.n_neighbors, seed=seed)
    validation = None
    if measured is not None:
        validation = decoded(measured, folder / "validation.uint8", model, ranks)[0], measured.slide
    history, renewals = fit(
        model,
        pairs,
        recipe=recipe,
        seed=seed,
        pathways=anchors,
        regions=regions,
        validation=validation,
        engine=engine,
        run=run,
        accelerator=device,
        progress=settings.progress,
    )
    model.training_info = {
        "seed": seed,
        "n_spots": len(spots),
        "slides": [slide.library_id for slide in spots.slides],
        "mpp": spots.median_mpp,
        "image_encoder": started,
        "pathways": _named(gene_sets),
        "recipe": recipe.to_dict(),
        "history": history,
        "regions": renewals,
    }
    if run is not None and ranks.first:
        model.save(run.model)
        run.clear()
    ranks.wait()
    return model, (spots, regions.history) if regions is not None and renewals else None


def _named(gene_sets: GeneSets | None) -> dict[str, Any] | None:
    return None if gene_sets is None else dict(gene_sets.source)


@contextmanager
def _folder(run: str | os.PathLike[str] | None, ranks: Ranks) -> Iterator[tuple[Path, Run | None]]:
    """Where patches go: the folder of the run, or a temporary one."""
    from ..train import Run

    if run is not None:
        kept = Run(Path(run).expanduser())
        yield kept.folder, kept
        return
    if ranks.size > 1:
        raise RunError(f"{ranks.size} processes train together; give them a folder that all of them see: run='...'.")
    with tempfile.TemporaryDirectory(prefix="hibiost-") as folder:
        yield Path(folder), None


def _pairs(
    spots: Spots, folder: Path, model: HibioModel, ranks: Ranks, shift: float, engine: Engine, run: Run | None
) -> tuple[Pairs, Spots]:
    """The training pairs; of a run that goes on, they have to be those it began with."""
    mend = "Train on the same data, or name another folder."
    if run is not None:
        run.check("data", spots.fingerprints(), write=ranks.first, mend=mend)
    pairs, kept, crcs = decoded(
        spots, folder / "patches.uint8", model, ranks, shift=shift, unreadable=engine.unreadable
    )
    if run is not None:
        run.check("patches", crcs, write=ranks.first, mend=mend)
    return pairs, kept


def _batch_size(asked: int, n_spots: int) -> int:
    if asked > n_spots:
        logger.warning("a batch of %d spots is more than there are: all %d are one batch", asked, n_spots)
    return min(asked, n_spots)


def _check_apart(spots: Spots, measured: Spots) -> None:
    """Refuse to measure on slides that are trained on."""
    trained_on = {slide.library_id for slide in spots.slides}
    if both := sorted(trained_on & {slide.library_id for slide in measured.slides}):
        raise DataError(
            f"{len(both)} slides are trained on and in validation=, such as {both[0]!r}; leave them out of one of both."
        )


def configuration(
    image_encoder: str | ModelConfig | ImageEncoder,
    epochs: int | None,
    recipe: Mapping[str, Any] | Recipe | None,
    mpp: float | None,
) -> tuple[ModelConfig, Recipe]:
    """Architecture and training values, as :func:`pretrain` takes them."""
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


def _vocabulary(
    adatas: list[AnnData] | Corpus, ranks: Ranks, min_spots: int, layer: str | None, library_key: str
) -> Vocabulary:
    if isinstance(adatas, Corpus):
        own = of_each(adatas, ranks, lambda corpus: [corpus.vocabulary(min_spots=0)])
        return Vocabulary.merge(own, min_spots=min_spots)
    slides = [inputs.libraries(adata, library_key) for adata in adatas]
    counts = (inputs.slide_counts(a, inputs.counts(a, layer), rows) for a, rows in zip(adatas, slides, strict=True))
    words = sum(map(inputs.spots_by_word, adatas, slides), Counter[str]())
    return Vocabulary.fit(chain.from_iterable(counts), min_spots=min_spots, metadata=words)


def _check_length(model: HibioModel, n_genes: int, words: Sequence[Sequence[str]]) -> None:
    room = min(model.tokenizer.max_genes(w) for w in words)
    if n_genes > room:
        raise DataError(
            f"sentences of {n_genes} genes do not fit a context of {model.config.context_length} tokens, which has "
            f"room for {room} beside start, metadata and end; use fewer n_genes in the recipe, or a configuration with "
            "a longer context_length in text_cfg."
        )


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


def _write_history(adatas: Sequence[AnnData], spots: Spots, history: Mapping[int, np.ndarray], recipe: Recipe) -> None:
    for number, adata in enumerate(adatas):
        of_adata = spots.source[spots.slide] == number
        rows = np.concatenate([spots.slides[place].rows for place in np.flatnonzero(spots.source == number)])
        table = np.full((adata.n_obs, len(history)), -1, dtype=np.int32)
        table[rows] = np.stack([ids[of_adata] for ids in history.values()], axis=1)
        adata.obsm[keys.REGION_HISTORY] = pd.DataFrame(table, adata.obs_names, [str(epoch) for epoch in history])
        params = {name: getattr(recipe, name) for name in ("region_start", "region_every", "n_neighbors", "lambda3")}
        inputs.record(adata, keys.REGION_HISTORY, params=params)
