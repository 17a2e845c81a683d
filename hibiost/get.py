"""Readers of the slots that hibiost writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from . import keys
from .errors import DataError, MissingSlotError, nearest

__all__ = ["sentences"]

if TYPE_CHECKING:
    from anndata import AnnData


def sentences(adata: AnnData, *, n_genes: int | None = None, key: str = keys.SENTENCE, sep: str = " ") -> pd.Series:
    """Gene sentences as strings, best gene first.

    Parameters
    ----------
    adata
        AnnData on which :func:`hibiost.pp.tfidf_sentences` was called.
    n_genes
        Only the first genes of each sentence; all where it is not given.
    key
        The ``key_added`` of that call.
    sep
        What stands between two genes.

    Returns
    -------
    A Series of str indexed by ``adata.obs_names``; an empty sentence is ``""``.

    Raises
    ------
    MissingSlotError
        ``obsm[key]`` or ``uns[key]`` is not there.
    DataError
        ``n_genes`` is below 1.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> import hibiost as hb
    >>> counts = np.array([[4, 1, 0], [4, 0, 1], [4, 0, 3]], dtype="float32")
    >>> adata = ad.AnnData(counts)
    >>> adata.var_names = ["ACTB", "ERBB2", "IGLL5"]
    >>> hb.pp.tfidf_sentences(adata, n_genes=2)
    >>> hb.get.sentences(adata).tolist()
    ['ERBB2', 'IGLL5', 'IGLL5']
    """
    if n_genes is not None and n_genes < 1:
        raise DataError(f"n_genes is {n_genes}; expected at least 1, or None for whole sentences.")
    for attribute in ("obsm", "uns"):
        found = list(getattr(adata, attribute))
        if key not in found:
            raise MissingSlotError(
                f"no {attribute}[{key!r}] in the AnnData (there: {found}); "
                f"call hibiost.pp.tfidf_sentences first.{nearest(key, found)}"
            )
    table = np.asarray(adata.obsm[key])[:, :n_genes]
    words = np.asarray(adata.uns[key]["genes"], dtype=object)[table]
    lines = [sep.join(row[kept]) for row, kept in zip(words, table >= 0, strict=True)]
    return pd.Series(lines, index=adata.obs_names, name=key, dtype=object)
