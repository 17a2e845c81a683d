from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from .. import inputs, keys
from ..errors import DataError, ModelError, nearest
from ..settings import logger, settings
from ._embed import gene_embeddings, image_embeddings
from ._resolve import new_sentences, resolve_device, resolve_model, sentence_rows

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import HibioModel

METHODS = ("retrieval",)
TARGETS = ("raw", "normalized")


@inputs.takes_spatialdata
def predict(
    adata: AnnData,
    reference: AnnData,
    *,
    method: Literal["retrieval"] = "retrieval",
    model: str | os.PathLike[str] | HibioModel | None = None,
    genes: Sequence[str] | None = None,
    target: Literal["raw", "normalized"] = "raw",
    top_k: int = 100,
    layer: str | None = None,
    batch_size: int = 64,
    library_key: str = keys.LIBRARY,
    key_added: str = keys.PREDICTED,
    device: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """Predict gene expression from H&E by retrieval from a reference with measured expression.

    The expression of the ``top_k`` reference spots whose gene sentences are most similar to a spot's image is averaged,
    weighted by similarity (HiBio-ST, section 4 and C.2.3). ``adata`` needs no expression of its own.

    Embeddings that are already there are used if they come from the same weights; those that are not are computed, and
    neither they nor anything else is written to ``reference``.

    Parameters
    ----------
    adata
        Spots to predict for, with coordinates and an H&E image.
    reference
        Spots with raw counts; needs no image.
    method
        ``"retrieval"``.
    model
        A model, or the folder of one; by default the one ``adata`` was embedded with, else ``hibiost.settings.model``.
    genes
        Genes to predict; all of the reference where not given (n_obs x n_genes x 4 bytes).
    target
        ``"raw"``: log1p of counts, the paper's. ``"normalized"``: log1p of counts scaled to the reference's median
        total, free of differences in library size.
    top_k
        Reference spots averaged.
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
        ``fingerprint`` of the weights, and ``params``, with ``target`` and, for normalised counts, ``target_sum``.

    Raises
    ------
    ModelError
        No model, or embeddings made with other weights.
    DataError
        Counts that are none, unknown genes, ``top_k`` below 1, or no gene shared with the model.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(100, n_slides=2)
    >>> slide, reference = adata[:100].copy(), adata[100:].copy()
    >>> model = hb.tl.pretrain(reference, image_encoder="ResNet-10", recipe={"epochs": 1, "batch_size": 32})
    >>> hb.tl.predict(slide, reference, model=model, genes=["ERBB2", "IGLL5"])
    >>> list(slide.obsm["predicted_expression"].columns)
    ['ERBB2', 'IGLL5']
    """
    from ..model.retrieval import retrieved_mean

    inputs.check_spots(adata)
    _check_options(method, target, top_k)
    device = resolve_device(device)
    counts = inputs.counts(reference, layer)
    genes = _genes(reference, genes)
    source = _Embeddings(adata, model, device, batch_size, library_key)
    images = source.of(adata, "image")
    sentences = source.of(reference, "gene", layer)

    target_sum = None if target == "raw" else inputs.median_total(counts)
    columns = reference.var_names.get_indexer(genes)
    expression = inputs.log_expression(counts, target_sum=target_sum)[:, columns]
    k = min(top_k, reference.n_obs)
    predicted = retrieved_mean(images, sentences, expression, k=k, device=device)

    adata = adata.copy() if copy else adata
    adata.obsm[key_added] = pd.DataFrame(predicted, index=adata.obs_names, columns=genes)
    params = {"method": method, "target": target, "target_sum": target_sum, "top_k": k, "layer": layer}
    inputs.record(adata, key_added, fingerprint=source.fingerprint, params=params)
    logger.info("predicted %d genes of %d spots from %d reference spots", len(genes), adata.n_obs, reference.n_obs)
    return adata if copy else None


def _check_options(method: str, target: str, top_k: int) -> None:
    if method not in METHODS:
        raise DataError(f"method is {method!r}; expected one of {list(METHODS)}.{nearest(method, METHODS)}")
    if target not in TARGETS:
        raise DataError(f"target is {target!r}; expected one of {list(TARGETS)}.{nearest(target, TARGETS)}")
    if top_k < 1:
        raise DataError(f"top_k is {top_k}; expected 1 or more.")


def _genes(reference: AnnData, genes: Sequence[str] | None) -> list[str]:
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


class _Embeddings:
    """Embeddings of one model: stored ones where the weights agree, else computed; loads the model when needed."""

    def __init__(
        self,
        adata: AnnData,
        model: str | os.PathLike[str] | HibioModel | None,
        device: str,
        batch_size: int,
        library_key: str,
    ) -> None:
        recorded = adata.uns.get(keys.EMBED, {})
        self._model = None if model is None else resolve_model(model, device)
        self._path = recorded.get("params", {}).get("model") or settings.model
        self._device, self._batch_size, self._library_key = device, batch_size, library_key
        self.fingerprint: str | None = self._model.fingerprint() if self._model else recorded.get("fingerprint")

    @property
    def model(self) -> HibioModel:
        if self._model is None:
            self._model = resolve_model(self._path, self._device)
            found = self._model.fingerprint()
            if self.fingerprint is not None and found != self.fingerprint:
                raise ModelError(
                    f"the spots were embedded with weights {self.fingerprint}, the model at {self._path} has {found}; "
                    "pass the model that embedded them with model=, or call hb.tl.embed(adata, model=...) again."
                )
            self.fingerprint = found
        return self._model

    def of(self, adata: AnnData, side: str, layer: str | None = None) -> np.ndarray:
        from ..train import Recipe

        key = f"{keys.EMBED}_{side}"
        stored = adata.uns.get(keys.EMBED, {}).get("fingerprint")
        if key in adata.obsm and stored is not None and stored == self.fingerprint:
            return np.asarray(adata.obsm[key], dtype=np.float32)
        options: dict[str, Any] = {"batch_size": self._batch_size, "library_key": self._library_key}
        if side == "image":
            return image_embeddings(adata, self.model, **options)
        if keys.SENTENCE in adata.obsm:
            sentences = sentence_rows(adata, self.model.vocabulary)
        else:
            recipe = Recipe().updated(self.model.training_info.get("recipe", {}))
            sentences = new_sentences(
                adata,
                self.model.vocabulary,
                n_genes=recipe.n_genes,
                selection=recipe.selection,
                layer=layer,
                library_key=self._library_key,
            )
        return gene_embeddings(adata, self.model, sentences, **options)
