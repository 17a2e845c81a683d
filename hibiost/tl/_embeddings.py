from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import inputs, keys
from ..errors import ModelError
from ..settings import settings
from ._embed import gene_embeddings, image_embeddings
from ._resolve import resolve_model, sentence_rows, sentences_for

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import FeatureEncoder, HibioModel


class Embeddings:
    """Embeddings of one model: stored ones where the weights agree, else computed; loads the model when needed."""

    def __init__(
        self,
        adata: AnnData,
        model: str | os.PathLike[str] | HibioModel | FeatureEncoder | None,
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

    @property
    def scale(self) -> float:
        """The learned factor on similarities."""
        return float(self.model.scale.detach())

    def stored(self, adata: AnnData, side: str) -> np.ndarray | None:
        """Embeddings in the AnnData; ``None`` where there are none of these weights."""
        key = f"{keys.EMBED}_{side}"
        found = adata.uns.get(keys.EMBED, {}).get("fingerprint")
        if key not in adata.obsm or found is None or found != self.fingerprint:
            return None
        return np.asarray(inputs.representation(adata, key, "hb.tl.embed(adata)"), dtype=np.float32)

    def of(self, adata: AnnData, side: str, layer: str | None = None) -> np.ndarray:
        """Embeddings of the images or the sentences: those stored, else computed."""
        found = self.stored(adata, side)
        return self._computed(adata, side, layer) if found is None else found

    def _computed(self, adata: AnnData, side: str, layer: str | None) -> np.ndarray:
        self._check_at_hand(adata)
        options: dict[str, Any] = {"batch_size": self._batch_size, "library_key": self._library_key}
        if side == "image":
            return image_embeddings(adata, self.model, **options)
        if keys.SENTENCE in adata.obsm:
            sentences = sentence_rows(adata, self.model.vocabulary)
        else:
            sentences = sentences_for(adata, self.model, layer=layer, library_key=self._library_key)
        return gene_embeddings(adata, self.model, sentences, **options)

    def _check_at_hand(self, adata: AnnData) -> None:
        """Refuse embeddings of two models, of which neither is there to make them anew."""
        try:
            self.model  # noqa: B018 - loads it
        except ModelError as error:
            other = adata.uns.get(keys.EMBED, {}).get("fingerprint")
            if other is None or self.fingerprint in (None, other):
                raise
            raise ModelError(
                f"the spots were embedded with weights {self.fingerprint}, the reference with {other}: they cannot be "
                f"compared, and there is no model to embed the reference anew. {error}"
            ) from error
