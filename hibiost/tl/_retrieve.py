from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

import numpy as np

from .. import inputs, keys
from ..errors import DataError, check_choice
from ..settings import logger
from ._embeddings import Embeddings
from ._resolve import resolve_device

if TYPE_CHECKING:
    from anndata import AnnData

    from ..model import HibioModel

SIDES: dict[str, str] = {"image": "gene", "gene": "image"}
"""What is searched, by what is asked with."""


@inputs.takes_spatialdata
def retrieve(
    adata: AnnData,
    reference: AnnData | None = None,
    *,
    query: Literal["image", "gene"] = "image",
    top_k: int = 10,
    model: str | os.PathLike[str] | HibioModel | None = None,
    layer: str | None = None,
    batch_size: int = 32,
    library_key: str = keys.LIBRARY,
    key_added: str = keys.RETRIEVED,
    device: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """Find the gene sentences that fit an image best, or the images that fit a sentence best.

    The search is exact, by the cosine of image and sentence embedding. Embeddings that are already there are used if
    they come from the same weights; those that are not are computed, and neither they nor anything else is written to
    ``reference``. :func:`hibiost.get.retrieved` shows what was found for a spot.

    Parameters
    ----------
    adata
        Spots to ask for.
    reference
        Spots to search: with raw counts or sentences for ``query="image"``, with images for ``query="gene"``. By
        default ``adata`` itself, a spot's own partner included.
    query
        ``"image"``: which sentences fit the spot's image. ``"gene"``: which images fit the spot's sentence.
    top_k
        Matches for each spot; all of the reference where it has fewer spots.
    model
        A model, or what :func:`hibiost.model.load` takes; by default the one ``adata`` was embedded with, else
        ``hibiost.settings.model``.
    layer
        Layer that holds raw counts, where sentences have to be made; ``X`` where not given.
    batch_size
        Spots embedded at a time.
    library_key
        Column of ``obs`` that tells slides apart.
    key_added
        Where to write.
    device
        ``"cpu"``, ``"cuda"``, ``"mps"``, or ``"auto"`` for a GPU where there is one.
    copy
        Return a changed copy instead of changing ``adata``.

    Returns
    -------
    ``None``, or the changed copy. Written are

    ``obsm["retrieved"]``
        int32, n_obs x top_k: rows of the reference, best first.
    ``obsm["retrieved_similarity"]``
        float32, n_obs x top_k: cosine of each.
    ``uns["retrieved"]``
        Of all rows found, as arrays: ``rows``, ascending, with their ``obs_names`` and ``libraries`` in the reference;
        ``fingerprint`` of the weights; and ``params``.

    Raises
    ------
    ModelError
        No model, or embeddings made with other weights that cannot be made anew.
    DataError
        ``query`` or ``top_k`` is out of range, spots of the reference share a name, no counts, or no gene shared with
        the model.
    ImageError
        An image that has to be embedded is absent or unreadable.

    Examples
    --------
    >>> import hibiost as hb
    >>> adata = hb.datasets.tissue(100, n_slides=2)
    >>> slide, reference = adata[:100].copy(), adata[100:].copy()
    >>> model = hb.tl.pretrain(reference, image_encoder="ResNet-10", recipe={"epochs": 1, "batch_size": 32})
    >>> hb.tl.retrieve(slide, reference, model=model, top_k=3)
    >>> slide.obsm["retrieved"].shape
    (100, 3)
    >>> hb.get.retrieved(slide, slide.obs_names[0], reference=reference)["library_id"].to_list()
    ['tissue_1', 'tissue_1', 'tissue_1']
    """
    from ..model.retrieval import most_similar

    bank = adata if reference is None else reference
    inputs.check_spots(adata)
    inputs.check_spots(bank)
    check_choice("query", query, SIDES)
    if top_k < 1:
        raise DataError(f"top_k is {top_k}; expected 1 or more.")
    if not bank.obs_names.is_unique:
        twice = str(bank.obs_names[bank.obs_names.duplicated()][0])
        raise DataError(
            f"several spots of the reference are called {twice!r}: matches could not be told; call "
            "reference.obs_names_make_unique()."
        )
    libraries = inputs.spread(inputs.libraries(bank, library_key), bank.n_obs)
    device = resolve_device(device)
    source = Embeddings(adata, model, device, batch_size, library_key)
    queries = source.of(adata, query, layer)
    rows, similarity = most_similar(
        queries, source.of(bank, SIDES[query], layer), min(top_k, bank.n_obs), device=device
    )

    adata = adata.copy() if copy else adata
    found = np.unique(rows)
    adata.obsm[key_added] = rows.astype(np.int32)
    adata.obsm[f"{key_added}_similarity"] = similarity.astype(np.float32, copy=False)
    inputs.record(
        adata,
        key_added,
        rows=found,
        obs_names=bank.obs_names[found].to_numpy(dtype=object),
        libraries=libraries[found],
        fingerprint=source.fingerprint,
        params={
            "query": query,
            "top_k": rows.shape[1],
            "n_reference": bank.n_obs,
            "own": reference is None,
            "layer": layer,
            "library_key": library_key,
        },
    )
    logger.info(
        "obsm[%r]: the %d best of %d %ss for each of %d %ss.",
        key_added, rows.shape[1], bank.n_obs, {"image": "sentence", "gene": "image"}[query], adata.n_obs,
        {"image": "image", "gene": "sentence"}[query],
    )  # fmt: skip
    return adata if copy else None
