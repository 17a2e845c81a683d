from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from .. import keys
from ..errors import DataError
from ..genes.vocabulary import metadata_words
from ._counts import slide_metadata

if TYPE_CHECKING:
    from anndata import AnnData


def slide_counts(
    adata: AnnData, counts: sparse.csr_matrix | Iterable[sparse.csr_matrix], slides: dict[str, np.ndarray]
) -> Iterator[tuple[np.ndarray, sparse.csr_matrix]]:
    """For each slide the names and counts of the genes it measured, as :meth:`hibiost.genes.Vocabulary.fit` takes them.

    Counts in blocks of rows come block by block.
    ``varm["measured"]`` (bool DataFrame, a column per slide) tells; without it every slide measured every gene.

    Raises
    ------
    DataError
        ``varm["measured"]`` is no such table.
    """
    names = adata.var_names.to_numpy(dtype=object)
    blocks: Iterable[Any] = [counts] if sparse.issparse(counts) else counts
    if keys.MEASURED not in adata.varm:
        yield from ((names, block) for block in blocks)
        return
    measured = adata.varm[keys.MEASURED]
    expected = f"expected a DataFrame with a column of bool for each slide, {list(slides)}"
    if not isinstance(measured, pd.DataFrame):
        raise DataError(f"varm[{keys.MEASURED!r}] is a {type(measured).__name__}; {expected}, or delete it.")
    absent = [name for name in slides if name not in measured]
    if absent:
        raise DataError(f"varm[{keys.MEASURED!r}] has no column {absent[0]!r} (it has {list(measured)}); {expected}.")
    masks = {library: measured[library].to_numpy(dtype=bool) for library in slides}
    start = 0
    for block in blocks:
        stop = start + block.shape[0]
        for library, rows in slides.items():
            here = rows[(rows >= start) & (rows < stop)] - start
            yield names[masks[library]], block[here][:, masks[library]]
        start = stop


def spots_by_word(adata: AnnData, slides: dict[str, np.ndarray]) -> Counter[str]:
    """Number of spots that bear each metadata word, as :meth:`hibiost.genes.Vocabulary.fit` takes them."""
    spots: Counter[str] = Counter()
    for library, rows in slides.items():
        spots.update(dict.fromkeys(metadata_words(slide_metadata(adata, library)), len(rows)))
    return spots
