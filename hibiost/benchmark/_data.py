"""The slides of a benchmark, as one AnnData."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from .. import datasets, inputs
from ..errors import DataError
from ..io import Corpus, concat
from ..settings import logger

if TYPE_CHECKING:
    from ._paper import DatasetRecipe


def slides_of(
    data: AnnData | Corpus | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    recipe: DatasetRecipe | None,
    *,
    layer: str | None,
    library_key: str,
) -> AnnData:
    """The slides asked for; images stay on disk."""
    if isinstance(data, str) and data == "her2st":
        data = datasets.her2st()
    if isinstance(data, AnnData):
        if recipe is None:
            return data
        slides = inputs.libraries(data, library_key)
        described = pd.DataFrame([inputs.slide_metadata(data, slide) for slide in slides], list(slides))
        chosen = _chosen(recipe, described)
        return data[data.obs[library_key].astype(str).isin(chosen).to_numpy()].copy()
    corpus = data if isinstance(data, Corpus) else Corpus(data, layer=layer, library_key=library_key)
    if recipe is not None:
        corpus = corpus.select(_chosen(recipe, corpus.index))
    corpus.check()
    return concat(list(corpus))


def _chosen(recipe: DatasetRecipe, slides: pd.DataFrame) -> list[str]:
    """The slides of a data set of the paper, of which some may be absent."""
    if recipe.ids is not None:
        found = [slide for slide in recipe.ids if slide in slides.index]
        expected = f"ids such as {recipe.ids[0]!r}"
    else:
        select = recipe.select or {}
        match = [slides.get(key, pd.Series(index=slides.index)).astype(str) == value for key, value in select.items()]
        found = slides.index[np.logical_and.reduce(match)].tolist()
        expected = f"the metadata {select}"
    if not found:
        raise DataError(
            f"the {len(slides)} slides, such as {slides.index[0]!r}, hold none of the data set {recipe.name!r} of the "
            f"paper; expected {expected}."
        )
    if len(found) < recipe.n_slides:
        logger.warning("%d of the %d slides of %s are there", len(found), recipe.n_slides, recipe.name)
    return found
