from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .. import inputs, keys
from .._ranks import ALONE, Ranks
from ..errors import check_choice
from ..settings import PRECISIONS, logger, settings
from ._resolve import at_work, resolve_device, resolve_images, resolve_model, sentence_rows, together

if TYPE_CHECKING:
    from anndata import AnnData
    from torch import Tensor

    from ..model import FeatureEncoder, HibioModel

MODALITIES = ("auto", "image", "gene")
SAME_SCALE = 1.25
"""Slides whose pixel size differs from that of training by a larger factor are told."""


@inputs.takes_spatialdata
def embed(
    adata: AnnData,
    *,
    model: str | os.PathLike[str] | HibioModel | FeatureEncoder | None = None,
    modality: Literal["auto", "image", "gene"] = "auto",
    batch_size: int = 32,
    precision: Literal["float32", "bfloat16", "auto"] | None = None,
    library_key: str = keys.LIBRARY,
    key_added: str = keys.EMBED,
    device: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """Embed the H&E patch and the gene sentence of each spot in the model's common space.

    Patches are read slide by slide from the images on disk: besides one decoded image and three batches, only the
    embeddings are held in memory. Under ``torchrun`` or Slurm the processes share the slides, and each gets all
    embeddings.

    Parameters
    ----------
    adata
        Spots with ``obsm["spatial"]`` and, for the images, ``uns["spatial"]``; with sentences of
        :func:`hibiost.pp.tfidf_sentences` for the gene side.
    model
        A model, or what :func:`hibiost.model.load` takes; by default the one named in ``hibiost.settings.model``. Or
        the encoder of another package, see :func:`hibiost.model.feature_encoder`: its features are written as they are,
        not normalised.
    modality
        ``"image"`` or ``"gene"`` embeds that side only; ``"auto"`` embeds images, and sentences where there are any
        and the model reads them.
    batch_size
        Spots embedded at a time.
    precision
        In which the model computes; by default ``hibiost.settings.precision``, which is ``"float32"``. ``"bfloat16"``
        is faster on CPUs that multiply in it; ``"auto"`` takes it there and on GPUs, float32 elsewhere. Embeddings
        of the two are of the same weights, and can be compared: for the presets their cosine is above 0.999.
    library_key
        Column of ``obs`` that tells slides apart.
    key_added
        Prefix of the slots written.
    device
        ``"cpu"``, ``"cuda"``, ``"mps"``, or ``"auto"`` for a GPU where there is one.
    copy
        Return a changed copy instead of changing ``adata``.

    Returns
    -------
    ``None``, or the changed copy. Written are

    ``obsm["X_hibiost_image"]``
        float32, n_obs x dim, l2-normalised; features of another encoder are not.
    ``obsm["X_hibiost_gene"]``
        float32, n_obs x dim, l2-normalised; only where there are sentences.
    ``uns["X_hibiost"]``
        ``fingerprint`` of the weights, and ``params``, with the ``precision`` that was computed in. Embeddings of
        other weights under the same key are removed.

    Raises
    ------
    ModelError
        No model is given or found, or one that reads no sentences where they are to be embedded.
    DataError
        An unknown modality or precision, no spots, spots outside their image, a pixel size that is needed but not
        known, or no gene shared with the model.
    MissingSlotError
        No coordinates; or no sentences although ``modality="gene"``.
    ImageError
        An image is absent, unreadable or truncated.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(100)
    >>> model = hb.tl.pretrain(adata, image_encoder="ResNet-10", recipe={"epochs": 1, "batch_size": 32})
    >>> hb.pp.tfidf_sentences(adata, vocabulary=model.vocabulary)
    >>> hb.tl.embed(adata, model=model)
    >>> adata.obsm["X_hibiost_image"].shape
    (100, 128)
    """
    from ..model import HibioModel
    from ..model.registry import absolute

    inputs.check_spots(adata)
    check_choice("modality", modality, MODALITIES)
    if precision is not None:
        check_choice("precision", precision, PRECISIONS)
    device = resolve_device(device)
    model = settings.model if model is None else model
    found: dict[str, np.ndarray] = {}
    with together(device) as ranks, settings.override(precision=precision or settings.precision):
        resolved = (resolve_model if modality == "gene" else resolve_images)(model, device)
        options: Any = {"batch_size": batch_size, "library_key": library_key, "ranks": ranks}
        if modality != "gene":
            found["image"] = image_embeddings(adata, resolved, **options)
        if modality == "gene":
            inputs.slot(adata, "obsm", keys.SENTENCE, "hb.pp.tfidf_sentences(adata)")
        if modality != "image" and isinstance(resolved, HibioModel) and keys.SENTENCE in adata.obsm:
            found["gene"] = gene_embeddings(adata, resolved, sentence_rows(adata, resolved.vocabulary), **options)
        computed_in = at_work(resolved).precision
    adata = adata.copy() if copy else adata
    fingerprint = resolved.fingerprint()
    _drop_other_weights(adata, key_added, fingerprint)
    for name, values in found.items():
        adata.obsm[f"{key_added}_{name}"] = values
    params = {
        "model": absolute(model) if isinstance(model, str | os.PathLike) else None,
        "encoder": None if isinstance(resolved, HibioModel) else resolved.name,
        "modality": modality,
        "precision": computed_in,
        "library_key": library_key,
    }
    inputs.record(adata, key_added, fingerprint=fingerprint, params=params)
    logger.info("embedded %s of %d spots", " and ".join(f"{name}s" for name in found), adata.n_obs)
    return adata if copy else None


def _drop_other_weights(adata: AnnData, key: str, fingerprint: str) -> None:
    """Leave no embedding of an earlier model under the name of this one."""
    if adata.uns.get(key, {}).get("fingerprint", fingerprint) == fingerprint:
        return
    stale = [name for name in (f"{key}_image", f"{key}_gene") if name in adata.obsm]
    for name in stale:
        del adata.obsm[name]
    logger.info("removed %s: made with other weights", " and ".join(f"obsm[{name!r}]" for name in stale))


def image_embeddings(
    adata: AnnData, model: HibioModel | FeatureEncoder, *, batch_size: int, library_key: str, ranks: Ranks = ALONE
) -> np.ndarray:
    """Embeddings of the patches, float32, n_obs x dim; the processes share the slides."""
    slides = inputs.slides(adata, library_key)
    own = slides[ranks.rank :: ranks.size]
    out = np.zeros((adata.n_obs, model.config.embed_dim), dtype=np.float32)
    for rows, values in of_patches(own, model, at_work(model).images, batch_size=batch_size, desc="embed images"):
        out[rows] = values
    return _of_all(out, [slide.rows for slide in own], ranks)


def of_patches(
    slides: list[inputs.Slide],
    model: HibioModel | FeatureEncoder,
    function: Callable[[np.ndarray], Tensor],
    *,
    batch_size: int,
    desc: str,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of each batch, and what a function makes of their patches, cut as the model wants them.

    Rows of a slide come in the order of its tiles; what several spots show goes through the function once.
    """
    from tqdm.auto import tqdm

    from ..model.inference import arrays

    config = model.config
    _warn_of_other_scales(slides, model)
    batches = inputs.distinct_patches(
        slides, size=config.patch_size, mpp=config.mpp, output=config.image_size, batch_size=batch_size
    )
    total = sum(len(slide.rows) for slide in slides)
    with tqdm(total=total, desc=desc, unit="spot", disable=not settings.progress) as bar:
        computed = (((rows, numbers), function(patches)) for rows, numbers, patches in batches)
        for (rows, numbers), values in arrays(computed):
            yield rows, values[numbers]
            bar.update(len(rows))


def _of_all(out: np.ndarray, own: list[np.ndarray], ranks: Ranks) -> np.ndarray:
    """Rows that other processes computed beside one's own."""
    rows = np.concatenate([np.empty(0, dtype=np.int64), *own])
    for others, values in ranks.collect((rows, out[rows])):
        out[others] = values
    return out


def _warn_of_other_scales(slides: list[inputs.Slide], model: HibioModel | FeatureEncoder) -> None:
    trained = model.training_info.get("mpp")
    if model.config.mpp is not None or trained is None:
        return
    for slide in slides:
        if slide.mpp is not None and not 1 / SAME_SCALE < slide.mpp / trained < SAME_SCALE:
            logger.warning(
                "slide %r has %.3g micrometres per pixel, the model was trained at %.3g: patches of %d px show another "
                "width of tissue; mpp= of hb.tl.pretrain or hb.model.feature_encoder makes them alike on all slides.",
                slide.library_id, slide.mpp, trained, model.config.patch_size,
            )  # fmt: skip


def gene_embeddings(
    adata: AnnData,
    model: HibioModel,
    sentences: np.ndarray,
    *,
    batch_size: int,
    library_key: str,
    ranks: Ranks = ALONE,
) -> np.ndarray:
    """Embeddings of sentences given as indices into the model's vocabulary, float32, n_obs x dim.

    Those of a slide are sorted by length, so that batches hold little padding.
    """
    from tqdm.auto import tqdm

    from ..model.inference import arrays
    from ..model.tokens import metadata_words

    out = np.zeros((adata.n_obs, model.config.embed_dim), dtype=np.float32)
    encode = at_work(model).genes
    lengths = (sentences >= 0).sum(axis=1)
    cut = 0
    slides = list(inputs.libraries(adata, library_key).items())
    own = slides[ranks.rank :: ranks.size]
    total = sum(len(rows) for _, rows in own)
    with tqdm(total=total, desc="embed sentences", unit="spot", disable=not settings.progress) as bar:
        for library, rows in own:
            words = metadata_words(inputs.slide_metadata(adata, library))
            cut += int((lengths[rows] > model.tokenizer.max_genes(words)).sum())
            ordered = rows[np.argsort(lengths[rows], kind="stable")]
            parts = np.split(ordered, range(batch_size, len(rows), batch_size))
            batches = ((part, encode(model.tokenizer(sentences[part], words))) for part in parts)
            for part, values in arrays(batches):
                out[part] = values
                bar.update(len(part))
    if cut:
        logger.warning(
            "%d sentences were longer than the model's context and lost their last genes; use a smaller n_genes.", cut
        )
    return _of_all(out, [rows for _, rows in own], ranks)
