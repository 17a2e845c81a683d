from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import inputs, keys
from ..errors import DataError, check_choice, nearest
from ..settings import logger
from ._confidence import expected_pcc, mean_correlation_ratio, trust
from ._embeddings import Embeddings
from ._resolve import resolve_device

if TYPE_CHECKING:
    from scipy import sparse

    from ..model import FeatureEncoder, HibioModel, Predictor
    from ..model.confidence import Fit

METHODS = ("retrieval", "regression")
TARGETS = ("raw", "normalized")


@inputs.takes_spatialdata
def predict(
    adata: AnnData,
    reference: AnnData | Predictor | str | os.PathLike[str] | None = None,
    *,
    method: Literal["retrieval", "regression"] = "retrieval",
    model: str | os.PathLike[str] | HibioModel | FeatureEncoder | None = None,
    genes: Sequence[str] | None = None,
    target: Literal["raw", "normalized"] | None = None,
    top_k: int = 100,
    weighting: Literal["similarity", "softmax", "uniform", "inverse_distance"] = "similarity",
    calibrate: bool = True,
    min_pcc: float = 0.2,
    layer: str | None = None,
    batch_size: int = 32,
    library_key: str = keys.LIBRARY,
    key_added: str = keys.PREDICTED,
    device: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """Predict gene expression from H&E, by retrieval from a reference with measured expression or by regression.

    By retrieval, the expression of the ``top_k`` reference spots whose gene sentences are most similar to a spot's
    image is averaged, weighted by similarity (HiBio-ST, section 4 and C.2.3). ``adata`` needs no expression of its own.

    Embeddings that are already there are used if they come from the same weights; those that are not are computed, and
    neither they nor anything else is written to ``reference``. The search is exact and takes little memory: a reference
    of a million spots fits on a laptop.

    By regression, a ridge on image features is fitted to the reference, see :func:`hibiost.tl.fit_predictor`; a
    predictor that is fitted already, or the folder of one, is taken in the place of the reference. Without a reference
    it is the one that comes with the model: that of ``"hibiost-mini"`` knows breast tumours, and
    ``hb.model.card("hibiost-mini")`` tells what it was fitted to.

    How far each gene can be trusted is written beside the prediction, see :func:`hibiost.get.predicted_genes`:
    ``expected_pcc`` tells how well slides of the reference are predicted from the rest of it. It takes two slides;
    patients are left out as a whole where ``obs["patient"]`` tells several. Retrieval needs a reference whose images
    are embedded by the same model (``hb.tl.embed(reference, model=model)``); predictors bring what they were fitted
    with. A model that was trained on these slides has seen them: on other slides expect less. By retrieval,
    ``confidence`` also tells how far the neighbours of each spot agree.

    Parameters
    ----------
    adata
        Spots to predict for, with coordinates and an H&E image.
    reference
        Spots with raw counts; for retrieval they need no image. Or a predictor, or the folder of one; by default the
        predictor that comes with the model.
    method
        ``"retrieval"`` or ``"regression"``; not read where a predictor is given.
    model
        A model, or what :func:`hibiost.model.load` takes; by default the one ``adata`` was embedded with, else
        ``hibiost.settings.model``.
        By regression also what :func:`hibiost.model.feature_encoder` returns. A predictor has its own.
    genes
        Genes to predict; all of the reference, or of the predictor, where not given (n_obs x n_genes x 4 bytes).
    target
        ``"raw"``: log1p of counts, the paper's. ``"normalized"``: log1p of counts scaled to the reference's median
        total, free of differences in library size. Where not given, raw, or what the predictor was fitted to.
    top_k
        Reference spots averaged in retrieval.
    weighting
        Weights of the reference spots that retrieval averages. With the cosine similarity s and d^2 = 2 - 2 s they are
        proportional to: ``"similarity"``: max(s, 0), the paper's; ``"softmax"``: exp(s x the model's learned scale);
        ``"uniform"``: 1 (BLEEP); ``"inverse_distance"``: 1 / d^2 (mclSTExp).
    calibrate
        Whether ``expected_pcc`` is computed, on at most 20 slides of the reference and 500 spots of each; not read
        where a predictor is given.
    min_pcc
        The ``expected_pcc`` from which a gene is trusted.
    layer
        Layer of ``reference`` that holds raw counts; ``X`` where not given.
    batch_size
        Spots embedded at a time.
    library_key
        Column of ``obs`` that tells slides apart.
    key_added
        Slot written.
    device
        ``"cpu"``, ``"cuda"``, ``"mps"``, or ``"auto"`` for a GPU where there is one.
    copy
        Return a changed copy instead of changing ``adata``.

    Returns
    -------
    ``None``, or the changed copy. Written are

    ``obsm["predicted_expression"]``
        DataFrame, float32, n_obs x n_genes: log1p expression, columns named by gene.
    ``uns["predicted_expression"]``
        ``fingerprint`` of the model's weights, and ``params``, with ``method``, ``target`` and, for normalised counts,
        ``target_sum``; of a regression also ``fit`` (``"ridge"`` or ``"finetune"``) and the fingerprint ``predictor``.
        Also ``genes``, and for each gene

        ``confidence``: only of retrieval; share of the variance of the neighbours' expression that lies between spots,
        0 to 1, the mean over slides (correlation ratio: V / (V + W) with the variance V of the prediction over spots,
        and the mean W over spots of the weighted variance among the neighbours). NaN where all neighbours are equal.

        ``expected_pcc``: mean correlation over slides of the reference that are predicted from the others, or over the
        validation of a fine-tuned predictor; NaN where the gene is constant on all. Only where it could be computed;
        so is

        ``trusted``: bool, whether ``expected_pcc`` reaches ``min_pcc`` and exceeds three standard deviations of what
        permuted spots would give.

    Raises
    ------
    ModelError
        No model, one that reads images only where gene sentences are searched, embeddings made with other weights, or
        a folder that holds no predictor.
    DataError
        Counts that are none, unknown genes, ``top_k`` below 1, ``min_pcc`` that is no correlation, no gene shared with
        the model, a target that the predictor was not fitted to, or no reference and a model that brings no predictor.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(100, n_slides=2)
    >>> slide, reference = adata[:100].copy(), adata[100:].copy()
    >>> model = hb.tl.pretrain(reference, image_encoder="ResNet-10", recipe={"epochs": 1, "batch_size": 32})
    >>> hb.tl.predict(slide, reference, model=model, genes=["ERBB2", "IGLL5"])
    >>> list(slide.obsm["predicted_expression"].columns)
    ['ERBB2', 'IGLL5']
    >>> list(hb.get.predicted_genes(slide).columns)
    ['confidence']
    """
    from ..model.retrieval import mixed, neighbours

    inputs.check_spots(adata)
    _check_options(method, target or "raw", weighting, top_k, min_pcc)
    if reference is None or method == "regression" or not isinstance(reference, AnnData):
        from ._predictor import by_regression, coming_with

        if reference is None:
            reference, model = coming_with(model, resolve_device(device)), None
        return by_regression(
            adata, reference, model=model, genes=genes, target=target, calibrate=calibrate, min_pcc=min_pcc,
            layer=layer, batch_size=batch_size, library_key=library_key, key_added=key_added, device=device, copy=copy,
        )  # fmt: skip
    target = target or "raw"
    device = resolve_device(device)
    counts = inputs.counts(reference, layer)
    genes = chosen_genes(reference, genes)
    source = Embeddings(adata, model, device, batch_size, library_key)
    images = source.of(adata, "image")
    sentences = source.of(reference, "gene", layer)

    target_sum = None if target == "raw" else inputs.median_total(counts)
    columns = reference.var_names.get_indexer(genes)
    expression = inputs.log_expression(counts, target_sum=target_sum)[:, columns]
    k = min(top_k, reference.n_obs)
    scale = source.scale if weighting == "softmax" else 1.0
    find = partial(neighbours, weighting=weighting, scale=scale, device=device)
    weights = find(images, sentences, k=k)
    predicted = mixed(weights, expression)
    agreement = mean_correlation_ratio(inputs.libraries(adata, library_key), weights, expression, predicted)
    trusted = {}
    if calibrate and (known := _stored_images(source, reference)) is not None:
        fit = _without_held_out(find, known, sentences, expression, k)
        trusted = trust(expected_pcc(reference, expression, fit, library_key=library_key), min_pcc)

    adata = adata.copy() if copy else adata
    adata.obsm[key_added] = pd.DataFrame(predicted, index=adata.obs_names, columns=genes)
    params = {
        "method": method,
        "target": target,
        "target_sum": target_sum,
        "top_k": k,
        "weighting": weighting,
        "scale": scale if weighting == "softmax" else None,
        "min_pcc": min_pcc if trusted else None,
        "layer": layer,
    }
    quality = {"genes": np.array(genes, dtype=object), "confidence": agreement, **trusted}
    inputs.record(adata, key_added, fingerprint=source.fingerprint, params=params, **quality)
    logger.info("predicted %d genes of %d spots from %d reference spots", len(genes), adata.n_obs, reference.n_obs)
    return adata if copy else None


def _check_options(method: str, target: str, weighting: str, top_k: int, min_pcc: float) -> None:
    from ..model.retrieval import WEIGHTINGS

    check_choice("method", method, METHODS)
    check_choice("target", target, TARGETS)
    check_choice("weighting", weighting, WEIGHTINGS)
    if top_k < 1:
        raise DataError(f"top_k is {top_k}; expected 1 or more.")
    if not -1 <= min_pcc <= 1:
        raise DataError(f"min_pcc is {min_pcc}; expected a correlation, -1 to 1.")


def chosen_genes(reference: AnnData, genes: Sequence[str] | None) -> list[str]:
    if genes is None:
        return [str(name) for name in reference.var_names]
    genes = [genes] if isinstance(genes, str) else list(genes)
    unknown = [gene for gene in genes if gene not in reference.var_names]
    if unknown:
        raise DataError(
            f"{len(unknown)} of {len(genes)} genes are not in the reference, such as {unknown[0]!r}."
            f"{nearest(unknown[0], reference.var_names)}"
        )
    return genes


def _stored_images(source: Embeddings, reference: AnnData) -> np.ndarray | None:
    found = source.stored(reference, "image")
    if found is None and keys.SPATIAL in reference.uns:
        logger.info(
            "no expected_pcc: the images of the reference are not embedded by this model; "
            "call hb.tl.embed(reference, model=model) first."
        )
    return found


def _without_held_out(
    find: Callable[..., sparse.csr_matrix],
    images: np.ndarray,
    sentences: np.ndarray,
    expression: sparse.csr_matrix,
    k: int,
) -> Fit:
    """Retrieval from a part of the reference."""
    from ..model.retrieval import mixed

    def fit(training: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        bank, values = sentences[training], expression[training]
        return lambda rows: mixed(find(images[rows], bank, k=min(k, len(training))), values)

    return fit
