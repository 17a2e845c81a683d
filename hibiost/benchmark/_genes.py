from __future__ import annotations

from typing import TYPE_CHECKING

from .. import inputs, keys
from ..genes.variance import most_variable

if TYPE_CHECKING:
    from anndata import AnnData


def variable_genes(
    adata: AnnData,
    n_genes: int = 300,
    *,
    target_sum: float | None = None,
    layer: str | None = None,
    library_key: str = keys.LIBRARY,
) -> list[str]:
    """The genes of highest mean per-slide variance of log1p expression (HiBio-ST, A.2).

    Parameters
    ----------
    adata
        Raw counts of one or several slides.
    n_genes
        How many genes.
    target_sum
        Scale each spot to that many counts first.
    layer
        Layer that holds raw counts; ``X`` where not given.
    library_key
        Column of ``obs`` that tells slides apart.

    Returns
    -------
    Gene names, highest variance first; of equal variance the one that stands first.

    Examples
    --------
    >>> import hibiost as hb
    >>> len(hb.benchmark.variable_genes(hb.datasets.tissue(100), 10))
    10
    """
    expression = inputs.log_expression(inputs.counts(adata, layer), target_sum=target_sum)
    order = most_variable(expression, inputs.libraries(adata, library_key).values())[:n_genes]
    return [str(name) for name in adata.var_names[order]]
