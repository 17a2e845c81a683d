from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import inputs, keys
from .._random import RNG
from .._random import seed as as_seed
from ..errors import DataError
from ..genes import Vocabulary
from ..settings import logger, settings
from ._resolve import new_sentences, resolve_device

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import HibioModel, ModelConfig
    from ..train import Recipe


def pretrain(
    adata: AnnData | Sequence[AnnData],
    *,
    image_encoder: str | ModelConfig = "ViT-B-16",
    epochs: int | None = None,
    recipe: Mapping[str, Any] | Recipe | None = None,
    n_genes: int = 250,
    min_spots: int = 1,
    mpp: float | None = None,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
    n_workers: int = 0,
    device: str = "auto",
    rng: RNG = 0,
) -> HibioModel:
    """Train a model from scratch on spots with H&E and counts: level 1 of HiBio-ST (eqs 1-4, 9, 10).

    Idf is fitted over all slides, the ``n_genes`` keyword genes of each spot become its sentence, and patches and
    sentences are aligned by a symmetric InfoNCE loss over the batch. Slides are decoded one after the other into a
    temporary file of n_spots x image_size^2 x 3 bytes (in ``TMPDIR``); memory holds the counts, one decoded slide and
    one batch.

    Parameters
    ----------
    adata
        One AnnData, of one or several slides, or a list of them; not changed.
    image_encoder
        A preset, see :func:`hibiost.model.presets`, or a configuration.
    epochs
        Passes over the spots; by default the preset's.
    recipe
        Training values that differ from the preset's, see :class:`hibiost.train.Recipe`.
    n_genes
        Length of a sentence.
    min_spots
        Leave genes seen in fewer spots out of the vocabulary.
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
    The model, with vocabulary, idf and ``training_info`` (parameters, slides, loss per epoch); ``model.save(folder)``
    keeps it.

    Raises
    ------
    DataError
        Counts that are none, spots outside their image, sentences longer than the model's context, an unknown training
        value, or fewer than two spots with a sentence.
    MissingSlotError
        No coordinates, or no such layer.
    ImageError
        An image is absent, unreadable or truncated.
    ModelError
        An unknown preset.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(100)
    >>> model = hb.tl.pretrain(adata, image_encoder="ResNet-10", recipe={"epochs": 2, "batch_size": 32})
    >>> [entry["epoch"] for entry in model.training_info["history"]]
    [1, 2]
    """
    from ..model import HibioModel
    from ..train import Pairs, fit

    config, values = _configuration(image_encoder, epochs, recipe, mpp)
    device, seed = resolve_device(device), as_seed(rng)
    adatas = list(adata) if isinstance(adata, Sequence) else [adata]
    if not adatas:
        raise DataError("no AnnData to train on; the list is empty.")
    corpus = (inputs.slide_counts(a, inputs.counts(a, layer), inputs.libraries(a, library_key)) for a in adatas)
    vocabulary = Vocabulary.fit(chain.from_iterable(corpus), min_spots=min_spots)
    slides = [inputs.slides(a, library_key) for a in adatas]
    sentences = [new_sentences(a, vocabulary, n_genes=n_genes, layer=layer) for a in adatas]
    words = _metadata(adatas, library_key)
    model = HibioModel(config, vocabulary, metadata=sorted(set(chain.from_iterable(words.values()))), rng=seed)
    _check_length(model, n_genes, words)

    with tempfile.TemporaryDirectory(prefix="hibiost-") as folder:
        patches, tokens = _corpus(model, slides, sentences, words, values.shift, Path(folder))
        values = values.updated({"batch_size": min(values.batch_size, len(tokens))})
        history = fit(
            model,
            Pairs(patches, tokens),
            recipe=values,
            seed=seed,
            n_workers=n_workers,
            accelerator=device,
            progress=settings.progress,
        )
        del patches
    model.training_info = {
        "seed": seed,
        "n_spots": len(tokens),
        "slides": [slide.library_id for part in slides for slide in part],
        "mpp": _median_mpp(slides),
        "n_genes": n_genes,
        "min_spots": min_spots,
        "recipe": values.to_dict(),
        "history": history,
    }
    return model.to(device).eval()


def _configuration(
    image_encoder: str | ModelConfig, epochs: int | None, recipe: Mapping[str, Any] | Recipe | None, mpp: float | None
) -> tuple[ModelConfig, Recipe]:
    from ..model import ModelConfig
    from ..train import Recipe

    config = ModelConfig.preset(image_encoder) if isinstance(image_encoder, str) else image_encoder
    if mpp is not None:
        config = config.with_mpp(mpp)
    values = recipe if isinstance(recipe, Recipe) else Recipe().updated({**config.recipe, **(recipe or {})})
    return config, values if epochs is None else values.updated({"epochs": epochs})


def _metadata(adatas: Sequence[AnnData], library_key: str) -> dict[tuple[int, str], list[str]]:
    from ..model.tokens import metadata_words

    return {
        (number, library): metadata_words(inputs.slide_metadata(adata, library))
        for number, adata in enumerate(adatas)
        for library in inputs.libraries(adata, library_key)
    }


def _median_mpp(slides: Sequence[Sequence[inputs.Slide]]) -> float | None:
    known = [slide.mpp for part in slides for slide in part if slide.mpp is not None]
    return float(np.median(known)) if known else None


def _check_length(model: HibioModel, n_genes: int, words: Mapping[Any, Sequence[str]]) -> None:
    room = min(model.tokenizer.max_genes(w) for w in words.values())
    if n_genes > room:
        raise DataError(
            f"sentences of {n_genes} genes do not fit a context of {model.config.context_length} tokens, which has "
            f"room for {room} beside start, metadata and end; use fewer n_genes or a longer context_length in text_cfg."
        )


def _corpus(
    model: HibioModel,
    slides: Sequence[Sequence[inputs.Slide]],
    sentences: Sequence[np.ndarray],
    words: Mapping[tuple[int, str], Sequence[str]],
    shift: float,
    folder: Path,
) -> tuple[np.ndarray, np.ndarray]:
    """Patches with a margin for shifts, on disk, and token rows of all spots that have a sentence."""
    from tqdm.auto import tqdm

    from ..train import store_patches

    config = model.config
    side = config.image_size + 2 * round(shift * config.image_size)
    window = round(config.patch_size * side / config.image_size)
    tokens, chosen = [], []
    for number, part in enumerate(slides):
        for slide in part:
            spoken = (sentences[number][slide.rows] >= 0).any(axis=1)
            tokens.append(model.tokenizer(sentences[number][slide.rows[spoken]], words[number, slide.library_id]))
            chosen.append(replace(slide, rows=slide.rows[spoken], xy=slide.xy[spoken]))
    n_spots = sum(len(rows) for rows in tokens)
    silent = sum(len(table) for table in sentences) - n_spots
    if silent:
        logger.info("%d spots without a single keyword gene are left out of training", silent)
    if n_spots < 2:
        raise DataError(f"{n_spots} spots have a sentence; contrastive training needs two or more.")
    batches = inputs.numbered_patches(chosen, size=window, mpp=config.mpp, output=side)
    with tqdm(total=n_spots, desc="read patches", unit="spot", disable=not settings.progress) as bar:

        def counted() -> Iterator[np.ndarray]:
            for _, patches in batches:
                yield patches
                bar.update(len(patches))

        stored = store_patches(counted(), n_spots, side, folder / "patches.uint8")
    return stored, np.concatenate(tokens)
