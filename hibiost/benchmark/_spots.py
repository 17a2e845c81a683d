from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import inputs, keys
from ..errors import DataError, ModelError
from ..tl._embed import image_embeddings
from ._contestants import Embedded, colours
from ._summary import POOLED
from ._tasks import Case, Protocol, prediction, retrieval

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import HibioModel

SHOWN = ("pcc", "mse", "mae")
_NAMES = {
    "HiBio-ST, retrieval": "HiBio-ST, retrieval",
    "HiBio-ST, ridge": "HiBio-ST, ridge on features",
    "untrained, ridge": "ridge on random features",
    "colours, ridge": "ridge on colour statistics",
    "chance, training mean": "mean of the reference",
}


def spot_level(
    reference: AnnData,
    adata: AnnData,
    *,
    untrained: HibioModel | None = None,
    n_genes: int = 300,
    top_k: int = 100,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
) -> pd.DataFrame:
    """Image-to-sentence retrieval and expression prediction on held-out slides, beside their floors.

    Genes are chosen, and every fit is made, on ``reference`` alone; the scores are means over the slides of ``adata``.
    The floors: chance, the mean of the reference, a ridge on colour statistics and, with ``untrained``, a ridge on
    features of random weights.

    Parameters
    ----------
    reference
        Training slides with images and counts, embedded by :func:`hibiost.tl.embed` with their sentences.
    adata
        Held-out slides, likewise.
    untrained
        A model of the same architecture with random weights, see :func:`hibiost.model.untrained`.
    n_genes
        Genes of highest mean per-slide variance to predict.
    top_k
        Reference spots averaged in retrieval.
    layer
        Layer that holds raw counts; ``X`` where not given.
    library_key
        Column of ``obs`` that tells slides apart.

    Returns
    -------
    A tidy table with columns ``task`` (``"retrieval"`` or ``"prediction"``), ``target`` (``"raw"`` or ``"normalized"``,
    empty for retrieval), ``method``, ``metric`` and ``value``.

    Raises
    ------
    DataError
        A slide is in both, or they share no gene.
    MissingSlotError
        No embeddings.
    ModelError
        The embeddings of the two come from different weights.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(100, n_slides=2)
    >>> model = hb.tl.pretrain(adata, image_encoder="ResNet-10", recipe={"epochs": 1, "batch_size": 32})
    >>> hb.pp.tfidf_sentences(adata, vocabulary=model.vocabulary)
    >>> hb.tl.embed(adata, model=model)
    >>> first = (adata.obs["library_id"] == "tissue_0").to_numpy()
    >>> table = hb.benchmark.spot_level(adata[first].copy(), adata[~first].copy(), n_genes=20)
    >>> sorted(table["metric"].unique())
    ['Recall@1%', 'Recall@10%', 'Recall@5%', 'mae', 'mse', 'pcc']
    """
    shared = sorted(set(inputs.libraries(adata, library_key)) & set(inputs.libraries(reference, library_key)))
    if shared:
        raise DataError(
            f"slides {shared} are both in the reference and held out; hold out slides the model has not seen."
        )
    _check_weights(reference, adata)
    protocol = Protocol(n_genes, top_k=top_k, pivotal=(), layer=layer, library_key=library_key)
    rows = _rows(untrained, library_key)
    cases = {name: Case(reference, adata, read(reference), read(adata), protocol) for name, read in rows.items()}
    found = [("retrieval", "", name, row) for name, case in cases.items() for row in retrieval(case)]
    found += [
        ("prediction", row["target"], _NAMES[f"{name}, {row['method']}"], row)
        for name, case in cases.items()
        for row in prediction(case)
        if row["metric"] in SHOWN and row["slide"] != POOLED
    ]
    values = pd.DataFrame(
        [(*names, row["metric"], row["value"]) for *names, row in found],
        columns=["task", "target", "method", "metric", "value"],
    )
    groups = values.groupby(["task", "target", "method", "metric"], sort=False)
    return groups["value"].mean().reset_index().sort_values(["task", "target"], ascending=[False, False], kind="stable")


def _rows(untrained: HibioModel | None, library_key: str) -> dict[str, Callable[[AnnData], Embedded | None]]:
    rows: dict[str, Callable[[AnnData], Embedded | None]] = {"HiBio-ST": _stored}
    if untrained is not None:
        options: Any = {"batch_size": 64, "library_key": library_key}
        rows["untrained"] = lambda part: Embedded.alike(image_embeddings(part, untrained, **options))
    return {**rows, "colours": lambda part: Embedded.alike(colours(part, library_key)), "chance": lambda part: None}


def _stored(adata: AnnData) -> Embedded:
    call = "hb.pp.tfidf_sentences(adata) and hb.tl.embed(adata, model=model)"
    images, sentences = (
        np.asarray(inputs.slot(adata, "obsm", key, call)) for key in (keys.IMAGE_EMBEDDING, keys.GENE_EMBEDDING)
    )
    return Embedded(images, images, sentences)


def _check_weights(reference: AnnData, adata: AnnData) -> None:
    first, second = (
        inputs.slot(part, "uns", keys.EMBED, "hb.tl.embed(adata, model=model)")["fingerprint"]
        for part in (reference, adata)
    )
    if first != second:
        raise ModelError(f"the reference was embedded with weights {first}, the held-out slides with {second}.")
