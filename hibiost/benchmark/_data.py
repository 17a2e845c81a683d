"""The slides of a benchmark, as one AnnData."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anndata import AnnData

from .. import datasets, inputs
from ..io import Corpus, concat

if TYPE_CHECKING:
    from ._recipes import Recipe


def slides_of(
    data: AnnData | Corpus | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    recipe: Recipe | None,
    *,
    layer: str | None,
    library_key: str,
) -> AnnData:
    """The slides asked for; images stay on disk."""
    if data == "her2st":
        return datasets.her2st()
    if isinstance(data, AnnData):
        if recipe is None:
            return data
        wanted = _wanted(recipe, inputs.libraries(data, library_key))
        return data[data.obs[library_key].astype(str).isin(wanted).to_numpy()].copy()
    corpus = data if isinstance(data, Corpus) else Corpus(data, layer=layer, library_key=library_key)
    if recipe is not None:
        corpus = corpus.select(_wanted(recipe, corpus.index.index))
    corpus.check()
    return concat(list(corpus))
